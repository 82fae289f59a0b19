#include "volume_itk.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include <zlib.h>

#include "errors.hpp"
#include "files.hpp"
#include "gzip.hpp"
#include "nifti.hpp"
#include "volume_text.hpp"
#include "volume_view.hpp"

namespace segship {
namespace {

const char* const kCopyAgain = "it is damaged or cut short, copy or download that file again";
constexpr std::size_t kMostPacked = 1100;  // deflate packs no better

// What either header says.
struct Header {
    std::vector<std::size_t> sizes;
    std::vector<std::vector<double>> axes;  // where one step along each axis leads, x to the left and y to the back
    std::vector<double> origin;
    std::string type, encoding;
    bool big_endian = false;
    std::size_t begins = 0;  // of the voxels
};

using Fields = std::map<std::string, std::string>;

std::string trimmed(const std::string& text) {
    const auto first = text.find_first_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

InputError damaged(const std::string& name, const std::string& why) {
    return InputError(name + " cannot be read (" + why + "); " + kCopyAgain);
}

InputError not_read(const std::string& name, const std::string& what) {
    return InputError(name + " " + what + ", which is not read here; save it as .nii.gz");
}

const std::string& wanted(const Fields& fields, const std::string& key, const std::string& name) {
    const auto found = fields.find(key);
    if (found == fields.end()) throw damaged(name, "its header lacks '" + key + "'");
    return found->second;
}

std::vector<double> numbers(const std::string& text, const std::string& name) {
    std::istringstream stream(text);
    std::vector<double> out;
    for (std::string word; stream >> word;) {
        char* end = nullptr;
        out.push_back(std::strtod(word.c_str(), &end));
        if (*end != '\0' || out.size() > 64) throw damaged(name, "'" + word.substr(0, 40) + "' is no number");
    }
    return out;
}

std::vector<std::size_t> whole_numbers(const std::string& text, const std::string& name) {
    std::vector<std::size_t> out;
    for (const double value : numbers(text, name)) {
        if (!(value >= 1 && value <= 1e15) || value != std::floor(value)) throw damaged(name, "'" + text.substr(0, 40) + "' is no size");
        out.push_back(static_cast<std::size_t>(value));
    }
    return out;
}

// Lines up to `last` (the header's end), each split at `between`.
Fields fields_of(const std::string& data, std::size_t from, const std::string& between, const std::string& last, std::size_t& end,
                 const std::string& name) {
    Fields out;
    while (true) {
        const auto stop = data.find('\n', from);
        if (stop == std::string::npos || stop > (std::size_t{1} << 20)) throw damaged(name, "its header has no end");
        const std::string line = trimmed(data.substr(from, stop - from));
        from = end = stop + 1;
        if (line == last) return out;
        const auto place = line.find(between);
        if (place == std::string::npos || line[0] == '#') continue;
        const std::string key = lower(trimmed(line.substr(0, place)));
        out[key] = trimmed(line.substr(place + between.size()));
        if (key == last) return out;
    }
}

// ------------------------------------------------------------------------------------------------------ NRRD

// '(1,0,0) (0,1,0) none'
std::vector<std::vector<double>> vectors(const std::string& text, const std::string& name) {
    std::vector<std::vector<double>> out;
    std::istringstream stream(text);
    for (std::string word; std::getline(stream, word, ')');) {
        const auto open = word.find('(');
        if (word.find("none") != std::string::npos) throw not_read(name, "has an axis of several numbers a voxel");
        if (open == std::string::npos) break;
        std::string inside = word.substr(open + 1);
        std::replace(inside.begin(), inside.end(), ',', ' ');
        out.push_back(numbers(inside, name));
    }
    return out;
}

// Signs that lead from a NRRD's named space to x to the left and y to the back.
std::array<double, 3> to_lps(const std::string& space, const std::string& name) {
    if (space == "right-anterior-superior" || space == "ras") return {-1, -1, 1};
    if (space == "left-anterior-superior" || space == "las") return {1, -1, 1};
    if (space.empty() || space == "left-posterior-superior" || space == "lps") return {1, 1, 1};
    throw not_read(name, "lies in the space '" + space.substr(0, 40) + "'");
}

Header nrrd_header(const std::string& data, const std::string& name) {
    Header out;
    if (data.compare(0, 7, "NRRD000") != 0) throw damaged(name, "it is no NRRD file");
    const auto first = data.find('\n');
    if (first == std::string::npos) throw damaged(name, "its header has no end");
    const Fields fields = fields_of(data, first + 1, ":", "", out.begins, name);
    if (fields.count("data file") || fields.count("datafile")) throw not_read(name, "keeps its voxels in another file");
    out.type = lower(wanted(fields, "type", name));
    out.encoding = lower(wanted(fields, "encoding", name));
    out.sizes = whole_numbers(wanted(fields, "sizes", name), name);
    if (fields.count("endian")) out.big_endian = lower(fields.at("endian")) == "big";
    for (const char* key : {"line skip", "byte skip", "lineskip", "byteskip"}) {
        if (fields.count(key) && fields.at(key) != "0") throw not_read(name, "skips bytes before its voxels");
    }
    const std::size_t axes = out.sizes.size();
    if (fields.count("kinds")) {
        std::istringstream kinds(fields.at("kinds"));
        for (std::string kind; kinds >> kind;) {
            if (kind != "domain" && kind != "space" && kind != "???") throw not_read(name, "has an axis of the kind '" + kind.substr(0, 40) + "'");
        }
    }
    const auto signs = to_lps(fields.count("space") ? lower(fields.at("space")) : "", name);
    if (fields.count("space directions")) {
        out.axes = vectors(fields.at("space directions"), name);
    } else {
        const auto spacings = fields.count("spacings") ? numbers(fields.at("spacings"), name) : std::vector<double>(axes, 1.0);
        for (std::size_t i = 0; i < std::min(axes, spacings.size()); ++i) {
            out.axes.emplace_back(axes, 0.0);
            out.axes.back()[i] = std::isfinite(spacings[i]) ? spacings[i] : 1.0;
        }
    }
    out.origin.assign(axes, 0.0);
    if (fields.count("space origin")) {
        const auto origin = vectors(fields.at("space origin"), name);
        if (!origin.empty()) out.origin = origin[0];
    }
    for (auto& axis : out.axes) {
        for (std::size_t i = 0; i < std::min<std::size_t>(3, axis.size()); ++i) axis[i] *= signs[i];
    }
    for (std::size_t i = 0; i < std::min<std::size_t>(3, out.origin.size()); ++i) out.origin[i] *= signs[i];
    return out;
}

// ------------------------------------------------------------------------------------------------- MetaImage

Header meta_header(const std::string& data, const std::string& name) {
    Header out;
    const Fields fields = fields_of(data, 0, "=", "elementdatafile", out.begins, name);
    if (lower(wanted(fields, "elementdatafile", name)) != "local") throw not_read(name, "keeps its voxels in another file");
    if (fields.count("elementnumberofchannels") && fields.at("elementnumberofchannels") != "1") {
        throw InputError(name + " holds " + fields.at("elementnumberofchannels").substr(0, 20) + " numbers a voxel; give one file a channel");
    }
    if (fields.count("binarydata") && lower(fields.at("binarydata")) != "true") throw not_read(name, "holds its numbers as text");
    out.type = lower(wanted(fields, "elementtype", name));
    out.sizes = whole_numbers(wanted(fields, "dimsize", name), name);
    const auto is_true = [&](const char* key) { return fields.count(key) && lower(fields.at(key)) == "true"; };
    out.big_endian = is_true("binarydatabyteordermsb") || is_true("elementbyteordermsb");
    out.encoding = is_true("compresseddata") ? "zlib" : "raw";
    const std::size_t axes = out.sizes.size();
    std::vector<double> spacing(axes, 1.0), matrix;
    for (const char* key : {"elementsize", "elementspacing"}) {
        if (fields.count(key)) spacing = numbers(fields.at(key), name);
    }
    for (const char* key : {"rotation", "orientation", "transformmatrix"}) {
        if (fields.count(key)) matrix = numbers(fields.at(key), name);
    }
    out.origin.assign(axes, 0.0);
    for (const char* key : {"position", "origin", "offset"}) {
        if (fields.count(key)) out.origin = numbers(fields.at(key), name);
    }
    if (spacing.size() != axes || (!matrix.empty() && matrix.size() != axes * axes)) throw damaged(name, "its geometry is not of its axes");
    for (std::size_t i = 0; i < axes; ++i) {
        out.axes.emplace_back(axes, 0.0);
        for (std::size_t k = 0; k < axes; ++k) {
            out.axes[i][k] = (matrix.empty() ? (i == k ? 1.0 : 0.0) : matrix[i * axes + k]) * spacing[i];
        }
    }
    return out;
}

// ------------------------------------------------------------------------------------------------------ voxels

int nifti_type(const std::string& type, const std::string& name) {
    static const std::map<std::string, int> types{
        {"unsigned char", 2}, {"uchar", 2}, {"uint8", 2}, {"uint8_t", 2}, {"met_uchar", 2},
        {"signed char", 256}, {"int8", 256}, {"int8_t", 256}, {"met_char", 256},
        {"short", 4}, {"short int", 4}, {"signed short", 4}, {"signed short int", 4}, {"int16", 4}, {"int16_t", 4}, {"met_short", 4},
        {"unsigned short", 512}, {"ushort", 512}, {"unsigned short int", 512}, {"uint16", 512}, {"uint16_t", 512}, {"met_ushort", 512},
        {"int", 8}, {"signed int", 8}, {"int32", 8}, {"int32_t", 8}, {"met_int", 8}, {"met_long", 8},
        {"unsigned int", 768}, {"uint", 768}, {"uint32", 768}, {"uint32_t", 768}, {"met_uint", 768}, {"met_ulong", 768},
        {"long long", 1024}, {"int64", 1024}, {"int64_t", 1024}, {"longlong", 1024}, {"met_long_long", 1024},
        {"unsigned long long", 1280}, {"uint64", 1280}, {"uint64_t", 1280}, {"met_ulong_long", 1280},
        {"float", 16}, {"met_float", 16}, {"double", 64}, {"met_double", 64}};
    const auto found = types.find(type);
    if (found == types.end()) throw InputError(name + " holds numbers of type '" + type.substr(0, 40) + "'; this package reads one number a voxel");
    return found->second;
}

std::size_t bytes_of(int type) {
    if (type == 2 || type == 256) return 1;
    if (type == 4 || type == 512) return 2;
    return type == 8 || type == 768 || type == 16 ? 4 : 8;
}

// Before memory is taken for what a header declares.
void check_held(const std::string& data, const Header& header, std::size_t size, const std::string& name) {
    const std::size_t held = data.size() - header.begins;
    const bool packed = header.encoding != "raw";
    if (held >= (packed ? size / kMostPacked : size)) return;
    throw damaged(name, "its header declares " + grouped(size) + " bytes of voxels, it holds " + (packed ? "far fewer" : grouped(held)));
}

// `size` bytes that zlib or gzip packed.
std::vector<std::uint8_t> inflated(const std::string& data, std::size_t from, std::size_t size, const std::string& name) {
    std::vector<std::uint8_t> out(size);
    z_stream stream{};
    if (inflateInit2(&stream, 32 + MAX_WBITS) != Z_OK) throw damaged(name, "out of memory");
    std::size_t done = 0, at = from;
    int state = Z_OK;
    while (done < size && state == Z_OK) {
        const std::size_t give = std::min<std::size_t>(data.size() - at, 1u << 30), take = std::min<std::size_t>(size - done, 1u << 30);
        stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data() + at));
        stream.avail_in = static_cast<uInt>(give);
        stream.next_out = out.data() + done;
        stream.avail_out = static_cast<uInt>(take);
        state = inflate(&stream, Z_NO_FLUSH);
        at += give - stream.avail_in;
        done += take - stream.avail_out;
    }
    inflateEnd(&stream);
    if (done < size) throw damaged(name, "its header declares " + grouped(size) + " bytes of voxels, it holds " + grouped(done));
    return out;
}

Array<float> read_voxels(const std::string& data, const Header& header, const std::string& name) {
    NiftiHeader numbers;
    numbers.datatype = nifti_type(header.type, name);
    numbers.itemsize = bytes_of(numbers.datatype);
    numbers.swapped = header.big_endian;  // this program is built for little-endian machines
    const bool packed = header.encoding == "gzip" || header.encoding == "gz" || header.encoding == "zlib";
    if (!packed && header.encoding != "raw") throw not_read(name, "is packed by '" + header.encoding.substr(0, 40) + "'");
    const Shape shape(header.sizes.rbegin(), header.sizes.rend());
    const std::size_t size = elements(shape) * numbers.itemsize;
    check_held(data, header, size, name);
    Array<float> out(shape);
    if (packed) {
        to_floats(numbers, inflated(data, header.begins, size, name).data(), out.size(), out.data.data());
    } else {
        to_floats(numbers, reinterpret_cast<const std::uint8_t*>(data.data()) + header.begins, out.size(), out.data.data());
    }
    return out;
}

double length(const std::vector<double>& vector) {
    double sum = 0;
    for (const double value : vector) sum += value * value;
    return std::sqrt(sum);
}

}  // namespace

ItkFile read_itk(const std::string& path, const VolumeLimits& limits, const std::string& name) {
    return itk_from_bytes(read_file(path, limits.max_bytes), limits, name);
}

ItkFile itk_from_bytes(const std::string& data, const VolumeLimits& limits, const std::string& name) {
    const Header header = ends_with(lower(name), ".nrrd") ? nrrd_header(data, name) : meta_header(data, name);
    const std::size_t axes = header.sizes.size();
    if (axes < 2 || axes > 4) throw InputError(name + " has " + std::to_string(axes) + " axes; give two to four");
    const bool fits = header.axes.size() == axes && header.origin.size() == axes &&
                      std::all_of(header.axes.begin(), header.axes.end(), [axes](const auto& axis) { return axis.size() == axes; });
    if (!fits) throw damaged(name, "its geometry is not of its axes");
    Wide voxels = 1;
    for (const std::size_t side : header.sizes) voxels = times(voxels, side);
    if (voxels > limits.max_pixels) {
        throw InputError(name + " has " + grouped(voxels) + " voxels, the limit is " + grouped(limits.max_pixels) +
                         "; crop it, or raise the limit with --max-pixels (Limits.max_pixels)");
    }
    ItkFile out;
    out.shape = header.sizes;
    for (std::size_t i = 0; i < 4; ++i) out.affine[i][i] = 1;
    for (std::size_t i = 0; i < axes; ++i) {
        const double size = length(header.axes[i]);
        if (!std::isfinite(size)) throw damaged(name, "its geometry holds no numbers");
        out.spacing.push_back(size);
    }
    for (std::size_t row = 0; row < std::min<std::size_t>(3, axes); ++row) {
        const double sign = row < 2 ? -1 : 1;
        for (std::size_t i = 0; i < std::min<std::size_t>(3, axes); ++i) out.affine[row][i] = sign * header.axes[i][row];
        out.affine[row][3] = sign * header.origin[row];
    }
    out.values = read_voxels(data, header, name);
    return out;
}

// ----------------------------------------------------------------------------------------------------- writing

namespace {

std::string exact(double value) {
    const std::string text = number_text(value == 0 ? 0.0 : value);
    return ends_with(text, ".0") ? text.substr(0, text.size() - 2) : text;
}

std::string spaced(const std::vector<std::size_t>& values) {
    std::string out;
    for (const std::size_t value : values) out += (out.empty() ? "" : " ") + std::to_string(value);
    return out;
}

std::vector<std::uint8_t> zlib_bytes(const std::vector<std::uint8_t>& body) {
    uLongf size = compressBound(static_cast<uLong>(body.size()));
    std::vector<std::uint8_t> out(size);
    if (compress2(out.data(), &size, body.data(), static_cast<uLong>(body.size()), 6) != Z_OK) throw OutputError("labels cannot be packed");
    out.resize(size);
    return out;
}

}  // namespace

std::vector<std::uint8_t> encode_itk(const LabelMap& labels, const std::vector<std::size_t>& shape, int bits, const Affine& affine,
                                     const std::vector<double>& spacing, const std::string& suffix) {
    const std::size_t axes = shape.size();
    std::vector<std::uint8_t> body(labels.size() * static_cast<std::size_t>(bits / 8));
    for (std::size_t i = 0; i < labels.size(); ++i) {
        body[bits == 8 ? i : 2 * i] = static_cast<std::uint8_t>(labels.data[i] & 0xFF);
        if (bits == 16) body[2 * i + 1] = static_cast<std::uint8_t>(labels.data[i] >> 8);
    }
    std::vector<std::vector<double>> steps(axes, std::vector<double>(axes));  // one along each axis, x to the left
    std::vector<double> origin(axes);
    for (std::size_t row = 0; row < axes; ++row) {
        const double sign = row < 2 ? -1 : 1;
        for (std::size_t i = 0; i < axes; ++i) steps[i][row] = sign * affine[row][i];
        origin[row] = sign * affine[row][3];
    }
    std::string head;
    std::vector<std::uint8_t> packed;
    if (suffix == ".nrrd") {
        std::string directions, place;
        for (std::size_t i = 0; i < axes; ++i) {
            const double scale = length(steps[i]) > 0 ? spacing[i] / length(steps[i]) : 1;
            std::string vector;
            for (const double value : steps[i]) vector += (vector.empty() ? "" : ",") + exact(value * scale);
            directions += (i ? " (" : "(") + vector + ")";
            place += (i ? "," : "") + exact(origin[i]);
        }
        head = "NRRD0004\ntype: " + std::string(bits == 8 ? "unsigned char" : "unsigned short") + "\ndimension: " + std::to_string(axes) +
               (axes == 3 ? "\nspace: left-posterior-superior" : "\nspace dimension: " + std::to_string(axes)) + "\nsizes: " + spaced(shape) +
               "\nspace directions: " + directions + "\nkinds:" + (axes == 3 ? " domain domain domain" : " domain domain") +
               "\nendian: little\nencoding: gzip\nspace origin: (" + place + ")\n\n";
        packed = gzip_bytes({}, body);
    } else {
        packed = zlib_bytes(body);
        std::string matrix, sides, place, centre;
        for (std::size_t i = 0; i < axes; ++i) {
            const double size = length(steps[i]) > 0 ? length(steps[i]) : 1;
            for (const double value : steps[i]) matrix += " " + exact(value / size);
            sides += " " + exact(spacing[i]);
            place += " " + exact(origin[i]);
            centre += " 0";
        }
        head = "ObjectType = Image\nNDims = " + std::to_string(axes) + "\nBinaryData = True\nBinaryDataByteOrderMSB = False\n" +
               "CompressedData = True\nCompressedDataSize = " + std::to_string(packed.size()) + "\nTransformMatrix =" + matrix +
               "\nOffset =" + place + "\nCenterOfRotation =" + centre + "\nElementSpacing =" + sides + "\nDimSize = " + spaced(shape) +
               "\nElementType = " + (bits == 8 ? "MET_UCHAR" : "MET_USHORT") + "\nElementDataFile = LOCAL\n";
    }
    std::vector<std::uint8_t> out(head.begin(), head.end());
    out.insert(out.end(), packed.begin(), packed.end());
    return out;
}

}  // namespace segship
