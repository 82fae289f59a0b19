#include "nifti.hpp"

#include <algorithm>
#include <cstring>
#include <new>

#include "errors.hpp"

namespace segship {
namespace {

constexpr std::size_t kMostOfHeader = 544;
constexpr std::size_t kSlack = std::size_t{64} << 20;  // bytes that may follow the voxels; beyond, the file is a bomb
constexpr std::size_t kMostPacked = 1100;  // deflate packs no better
constexpr std::size_t kChunk = std::size_t{1} << 18;
const char* const kCopyAgain = "it is damaged or cut short, copy or download that file again";

template <typename T>
T swapped_bytes(T value) {
    std::uint8_t bytes[sizeof(T)];
    std::memcpy(bytes, &value, sizeof(T));
    std::reverse(bytes, bytes + sizeof(T));
    std::memcpy(&value, bytes, sizeof(T));
    return value;
}

template <typename T>
void convert(const std::uint8_t* from, std::size_t count, const NiftiHeader& header, float* into) {
    const bool plain = header.slope == 1 && header.intercept == 0;
    for (std::size_t i = 0; i < count; ++i) {
        T value;
        std::memcpy(&value, from + i * sizeof(T), sizeof(T));
        if (header.swapped) value = swapped_bytes(value);
        if (plain) {
            // through double precision, as Python goes, for the types that float cannot hold exactly
            into[i] = sizeof(T) <= 4 ? static_cast<float>(value) : static_cast<float>(static_cast<double>(value));
        } else {
            into[i] = static_cast<float>(static_cast<double>(value) * header.slope + header.intercept);
        }
    }
}

using Convert = void (*)(const std::uint8_t*, std::size_t, const NiftiHeader&, float*);

Convert converter(int datatype) {
    switch (datatype) {
        case 2: return convert<std::uint8_t>;
        case 256: return convert<std::int8_t>;
        case 4: return convert<std::int16_t>;
        case 512: return convert<std::uint16_t>;
        case 8: return convert<std::int32_t>;
        case 768: return convert<std::uint32_t>;
        case 1024: return convert<std::int64_t>;
        case 1280: return convert<std::uint64_t>;
        case 16: return convert<float>;
        default: return convert<double>;
    }
}

std::size_t checked_count(const NiftiHeader& header, const VolumeLimits& limits, const std::string& name) {
    Wide voxels = 1;
    for (const auto side : header.shape) voxels = times(voxels, side);
    if (voxels > limits.max_pixels) {
        throw InputError(name + " has " + grouped(voxels) + " voxels, the limit is " + grouped(limits.max_pixels) +
                         "; crop it, or raise the limit with --max-pixels (Limits.max_pixels)");
    }
    return static_cast<std::size_t>(voxels);
}

// The unpacked bytes behind those that were looked at for the header.
class Rest {
public:
    Rest(Unpacker& unpacker, std::vector<std::uint8_t> first) : unpacker_(unpacker), first_(std::move(first)) {}

    std::size_t read(std::uint8_t* into, std::size_t size) {
        const std::size_t known = std::min(size, first_.size() - at_);
        if (known) std::memcpy(into, first_.data() + at_, known);
        at_ += known;
        return known + (known < size ? unpacker_.read(into + known, size - known) : 0);
    }

private:
    Unpacker& unpacker_;
    std::vector<std::uint8_t> first_;
    std::size_t at_ = 0;
};

void skip(Rest& rest, std::size_t size, std::vector<std::uint8_t>& chunk) {
    while (size) {
        const std::size_t part = rest.read(chunk.data(), std::min(size, chunk.size()));
        if (part == 0) throw UnpackFailed{"it ends before its first voxel"};
        size -= part;
    }
}

void unpack(Rest& rest, const NiftiHeader& header, std::vector<std::uint8_t>& chunk, Array<float>& into) {
    const Convert convert_some = converter(header.datatype);
    std::size_t done = 0;
    while (done < into.size()) {
        const std::size_t wanted = std::min(kChunk / 8, into.size() - done);
        const std::size_t part = rest.read(chunk.data(), wanted * header.itemsize);
        if (part < wanted * header.itemsize) {
            throw UnpackFailed{"its header declares " + grouped(into.size() * header.itemsize) + " bytes of voxels, it holds " +
                               grouped(done * header.itemsize + part)};
        }
        convert_some(chunk.data(), wanted, header, into.data.data() + done);
        done += wanted;
    }
}

// The check sum stands at the end of what was packed.
void read_to_the_end(Rest& rest, std::vector<std::uint8_t>& chunk, const std::string& name) {
    std::size_t extra = 0;
    while (const std::size_t part = rest.read(chunk.data(), chunk.size())) {
        extra += part;
        if (extra > kSlack) {
            throw InputError(name + " unpacks to far more than its header declares; do not use this file");
        }
    }
}

NiftiFile read_checked(ByteSource& source, const VolumeLimits& limits, const std::string& name) {
    Unpacker unpacker(source);
    std::vector<std::uint8_t> first(kMostOfHeader), chunk(kChunk);
    first.resize(unpacker.read(first.data(), first.size()));
    NiftiFile out;
    out.header = parse_header(first, name);
    const NiftiHeader& header = out.header;
    const std::size_t voxels = checked_count(header, limits, name);
    const Wide declared = Wide{header.offset} + Wide{voxels} * header.itemsize;
    if (!unpacker.packed() && source.length() < declared) {
        throw UnpackFailed{"its header declares " + grouped(declared) + " bytes, it has " + grouped(source.length())};
    }
    if (unpacker.packed() && declared / kMostPacked > source.length()) {  // before memory is taken for them
        throw UnpackFailed{"its header declares " + grouped(Wide{voxels} * header.itemsize) + " bytes of voxels, it holds far fewer"};
    }
    Rest rest(unpacker, std::move(first));
    skip(rest, header.offset, chunk);
    try {
        out.values = Array<float>(Shape(header.shape.rbegin(), header.shape.rend()));
    } catch (const std::bad_alloc&) {
        throw InputError(name + " does not fit into this machine's memory; use a larger machine or crop it");
    }
    unpack(rest, header, chunk, out.values);
    if (unpacker.packed()) read_to_the_end(rest, chunk, name);
    return out;
}

}  // namespace

void to_floats(const NiftiHeader& header, const std::uint8_t* bytes, std::size_t count, float* into) {
    converter(header.datatype)(bytes, count, header, into);
}

NiftiFile read_nifti(ByteSource& source, const VolumeLimits& limits, const std::string& name) {
    try {
        return read_checked(source, limits, name);
    } catch (const UnpackFailed& error) {
        throw InputError(name + " cannot be unpacked (" + error.why + "); " + kCopyAgain);
    }
}

std::vector<std::uint8_t> encode_nifti(const LabelMap& labels, const std::vector<std::size_t>& shape, int bits,
                                       const std::vector<std::uint8_t>& block, bool packed) {
    std::vector<std::uint8_t> head = labels_header(block, shape, bits);
    head.resize(head.size() + 4);  // no extensions follow
    std::vector<std::uint8_t> body(labels.size() * static_cast<std::size_t>(bits / 8));
    const bool little = block[0] == 0x5C || block[0] == 0x1C;  // of 348 or 540
    for (std::size_t i = 0; i < labels.size(); ++i) {
        const std::uint16_t value = labels.data[i];
        if (bits == 8) {
            body[i] = static_cast<std::uint8_t>(value);
        } else {
            body[2 * i + (little ? 0 : 1)] = static_cast<std::uint8_t>(value & 0xFF);
            body[2 * i + (little ? 1 : 0)] = static_cast<std::uint8_t>(value >> 8);
        }
    }
    if (packed) return gzip_bytes(head, body);
    head.insert(head.end(), body.begin(), body.end());
    return head;
}

}  // namespace segship
