#include "gzip.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "errors.hpp"
#include "parallel.hpp"
#include "volume_text.hpp"

namespace segship {
namespace {

constexpr std::size_t kBuffer = std::size_t{1} << 18;
constexpr std::size_t kPiece = std::size_t{1} << 20;
constexpr std::size_t kWindow = std::size_t{1} << 15;
constexpr int kLevel = 6;

std::string file_name(const std::string& path) { return path.substr(path.find_last_of('/') + 1); }

InputError unreadable(const std::string& path, int error) {
    return InputError(path + " cannot be read: " + std::strerror(error) + "; check the path and its permissions");
}

}  // namespace

// ---------------------------------------------------------------------------------------------------- sources

std::size_t MemorySource::read(std::uint8_t* into, std::size_t size) {
    const std::size_t part = std::min(size, size_ - at_);
    if (part) std::memcpy(into, data_ + at_, part);
    at_ += part;
    return part;
}

FileSource::FileSource(const std::string& path, std::size_t max_bytes) : path_(path) {
    struct stat about {};
    if (stat(path.c_str(), &about) != 0) throw unreadable(path, errno);
    if (S_ISDIR(about.st_mode)) throw unreadable(path, EISDIR);
    if (!S_ISREG(about.st_mode)) throw InputError(path + " is no file; check the path");
    size_ = static_cast<std::size_t>(about.st_size);
    if (size_ > max_bytes) {
        throw InputError(file_name(path) + " has " + grouped(size_) + " bytes, the limit is " + grouped(max_bytes) +
                         "; raise it with --max-bytes");
    }
    file_ = std::fopen(path.c_str(), "rb");
    if (file_ == nullptr) throw unreadable(path, errno);
}

FileSource::~FileSource() {
    if (file_ != nullptr) std::fclose(file_);
}

std::size_t FileSource::read(std::uint8_t* into, std::size_t size) {
    const std::size_t part = std::fread(into, 1, size, file_);
    if (part < size && std::ferror(file_)) throw unreadable(path_, errno);
    return part;
}

// --------------------------------------------------------------------------------------------------- unpacking

Unpacker::Unpacker(ByteSource& source) : source_(source), buffer_(kBuffer) {
    stream_.next_in = buffer_.data();
    stream_.avail_in = 0;
    fill();
    packed_ = stream_.avail_in >= 2 && buffer_[0] == 0x1F && buffer_[1] == 0x8B;
    if (packed_ && inflateInit2(&stream_, 16 + MAX_WBITS) != Z_OK) throw UnpackFailed{"out of memory"};
}

Unpacker::~Unpacker() {
    if (packed_) inflateEnd(&stream_);
}

bool Unpacker::fill() {
    const std::size_t part = source_.read(buffer_.data(), buffer_.size());
    stream_.next_in = buffer_.data();
    stream_.avail_in = static_cast<uInt>(part);
    return part != 0;
}

std::size_t Unpacker::read(std::uint8_t* into, std::size_t size) {
    std::size_t done = 0;
    while (done < size && !ended_) {
        const std::size_t part = take(into + done, std::min<std::size_t>(size - done, std::size_t{1} << 30));
        done += part;
    }
    return done;
}

std::size_t Unpacker::take(std::uint8_t* into, std::size_t size) {
    if (stream_.avail_in == 0 && !fill()) {
        if (packed_) throw UnpackFailed{"Compressed file ended before the end-of-stream marker was reached"};
        ended_ = true;
        return 0;
    }
    if (!packed_) {
        const std::size_t part = std::min<std::size_t>(size, stream_.avail_in);
        std::memcpy(into, stream_.next_in, part);
        stream_.next_in += part;
        stream_.avail_in -= static_cast<uInt>(part);
        return part;
    }
    stream_.next_out = into;
    stream_.avail_out = static_cast<uInt>(size);
    const int state = inflate(&stream_, Z_NO_FLUSH);
    const std::size_t made = size - stream_.avail_out;
    if (state == Z_STREAM_END) {
        if (!another_member()) ended_ = true;
    } else if (state != Z_OK && state != Z_BUF_ERROR) {
        throw UnpackFailed{stream_.msg != nullptr ? stream_.msg : "damaged data"};
    }
    return made;
}

// Behind a member another may follow, or zeros that fill up a tape's block.
bool Unpacker::another_member() {
    for (;;) {
        while (stream_.avail_in && *stream_.next_in == 0) {
            ++stream_.next_in;
            --stream_.avail_in;
        }
        if (stream_.avail_in || !fill()) break;
    }
    if (stream_.avail_in == 0) return false;
    if (*stream_.next_in != 0x1F) throw UnpackFailed{"Not a gzipped file (something else follows)"};
    return inflateReset(&stream_) == Z_OK;
}

// ----------------------------------------------------------------------------------------------------- packing

namespace {

// One piece of a deflate stream that ends at a byte; `before` are the bytes in front of it.
std::vector<std::uint8_t> deflated(const std::uint8_t* data, std::size_t size, const std::uint8_t* before,
                                   std::size_t known, int flush = Z_SYNC_FLUSH) {
    z_stream stream{};
    if (deflateInit2(&stream, kLevel, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK) {
        throw OutputError("not enough memory to pack a file");
    }
    if (known) deflateSetDictionary(&stream, before, static_cast<uInt>(known));
    std::vector<std::uint8_t> out(deflateBound(&stream, static_cast<uLong>(size)) + 64);
    stream.next_in = const_cast<Bytef*>(data);
    stream.avail_in = static_cast<uInt>(size);
    stream.next_out = out.data();
    stream.avail_out = static_cast<uInt>(out.size());
    deflate(&stream, flush);
    out.resize(out.size() - stream.avail_out);
    out.shrink_to_fit();
    deflateEnd(&stream);
    return out;
}

bool any(const std::uint8_t* data, std::size_t size) {
    return std::any_of(data, data + size, [](std::uint8_t value) { return value != 0; });
}

void append_le32(std::vector<std::uint8_t>& out, std::uint32_t value) {
    for (int i = 0; i < 4; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
}

}  // namespace

std::vector<std::uint8_t> gzip_bytes(const std::vector<std::uint8_t>& head, const std::vector<std::uint8_t>& body) {
    const std::size_t pieces = (body.size() + kPiece - 1) / kPiece;
    std::vector<std::vector<std::uint8_t>> parts(pieces);
    const std::vector<std::uint8_t> zeros(kPiece);
    // Empty space behind empty space is packed once and used again.
    const std::vector<std::uint8_t> empty = deflated(zeros.data(), kPiece, zeros.data(), kWindow);
    on_threads(pieces, [&](std::size_t i) {
        const std::size_t start = i * kPiece, size = std::min(kPiece, body.size() - start);
        const std::size_t known = std::min(start, kWindow);
        const std::uint8_t* data = body.data() + start;
        const bool blank = size == kPiece && known == kWindow && !any(data - known, known + size);
        parts[i] = blank ? empty : deflated(data, size, data - known, known);
    });
    // RFC 1952: deflate, no name, no time (so that bytes do not depend on the clock), Unix
    std::vector<std::uint8_t> out{0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 3};
    const auto first = deflated(head.data(), head.size(), nullptr, 0);
    out.insert(out.end(), first.begin(), first.end());
    for (auto& part : parts) {
        out.insert(out.end(), part.begin(), part.end());
        std::vector<std::uint8_t>().swap(part);
    }
    const auto last = deflated(nullptr, 0, nullptr, 0, Z_FINISH);  // an empty last block
    out.insert(out.end(), last.begin(), last.end());
    uLong check = crc32_z(crc32(0, nullptr, 0), head.data(), head.size());
    check = crc32_z(check, body.data(), body.size());
    append_le32(out, static_cast<std::uint32_t>(check));
    append_le32(out, static_cast<std::uint32_t>((head.size() + body.size()) & 0xFFFFFFFFu));
    return out;
}

}  // namespace segship
