// numpy's .npy as a prepared case: `segship prepare` leaves such arrays.

#include <algorithm>
#include <cstring>

#include "errors.hpp"
#include "gzip.hpp"
#include "half.hpp"
#include "volume_formats.hpp"
#include "volume_text.hpp"

namespace segship {
namespace {

InputError no_array(const std::string& name, const std::string& why) {
    return InputError(name + " is no array that numpy reads (" + why + "); prepare the case again");
}

struct Header {
    char order = '<', kind = 'f';
    std::size_t itemsize = 4;
    bool fortran = false;
    std::vector<std::size_t> shape;
};

std::string behind(const std::string& text, const std::string& key, const std::string& name) {
    const auto at = text.find("'" + key + "':");
    if (at == std::string::npos) throw no_array(name, "its header lacks '" + key + "'");
    const auto first = text.find_first_not_of(' ', at + key.size() + 3);
    return first == std::string::npos ? "" : text.substr(first);
}

Header parse(const std::string& text, const std::string& name) {
    Header out;
    const std::string type = behind(text, "descr", name);
    if (type.size() < 5 || type[0] != '\'' || type[4] != '\'') throw no_array(name, "its numbers are of another type");
    out.order = type[1];
    out.kind = type[2];
    out.itemsize = static_cast<std::size_t>(type[3] - '0');
    out.fortran = behind(text, "fortran_order", name).compare(0, 4, "True") == 0;
    const std::string shape = behind(text, "shape", name);
    std::size_t at = 1;
    while (shape.size() > at && shape[0] == '(' && shape[at] != ')') {
        std::size_t side = 0, used = 0;
        while (at < shape.size() && shape[at] >= '0' && shape[at] <= '9' && used < 18) {
            side = side * 10 + static_cast<std::size_t>(shape[at++] - '0');
            ++used;
        }
        if (used == 0) throw no_array(name, "its shape is damaged");
        out.shape.push_back(side);
        while (at < shape.size() && (shape[at] == ',' || shape[at] == ' ')) ++at;
    }
    return out;
}

template <typename T>
T as(const std::uint8_t* bytes) {
    T value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
}

float number(const std::uint8_t* bytes, char kind, std::size_t size) {
    if (kind == 'f') {
        if (size == 2) return half_to_float(as<std::uint16_t>(bytes));
        return size == 4 ? as<float>(bytes) : static_cast<float>(as<double>(bytes));
    }
    if (kind == 'i') {
        if (size == 1) return static_cast<float>(as<std::int8_t>(bytes));
        if (size == 2) return static_cast<float>(as<std::int16_t>(bytes));
        return size == 4 ? static_cast<float>(as<std::int32_t>(bytes)) : static_cast<float>(as<std::int64_t>(bytes));
    }
    if (size == 1) return static_cast<float>(bytes[0]);
    if (size == 2) return static_cast<float>(as<std::uint16_t>(bytes));
    return size == 4 ? static_cast<float>(as<std::uint32_t>(bytes)) : static_cast<float>(as<std::uint64_t>(bytes));
}

std::string header_text(ByteSource& source, const std::string& name) {
    std::uint8_t start[12] = {};
    if (source.read(start, 8) < 8 || std::memcmp(start, "\x93NUMPY", 6) != 0 || start[6] < 1 || start[6] > 3) {
        throw no_array(name, "its first bytes are no header");
    }
    const std::size_t width = start[6] == 1 ? 2 : 4;
    if (source.read(start + 8, width) < width) throw no_array(name, "it is cut short");
    std::size_t length = 0;
    for (std::size_t i = 0; i < width; ++i) length |= std::size_t{start[8 + i]} << (8 * i);
    if (length > 65536) throw no_array(name, "its header is too long");
    std::string text(length, '\0');
    if (source.read(reinterpret_cast<std::uint8_t*>(text.data()), length) < length) throw no_array(name, "it is cut short");
    return text;
}

// Numbers in the file's order to C order.
Array<float> c_order(const Array<float>& stored, const Header& header) {
    if (!header.fortran) return stored;
    Array<float> out(header.shape);
    std::vector<std::size_t> index(header.shape.size(), 0);
    for (const float value : stored.data) {
        std::size_t at = 0;
        for (std::size_t i = 0; i < index.size(); ++i) at = at * header.shape[i] + index[i];
        out.data[at] = value;
        for (std::size_t i = 0; i < index.size() && ++index[i] == header.shape[i]; ++i) index[i] = 0;
    }
    return out;
}

}  // namespace

Array<float> read_prepared(const std::string& path, const VolumeLimits& limits, const std::string& name) {
    FileSource source(path, limits.max_bytes);
    return read_array(source, limits, name);
}

Array<float> read_array(ByteSource& source, const VolumeLimits& limits, const std::string& name) {
    const Header header = parse(header_text(source, name), name);
    const bool sizes = header.itemsize == 1 || header.itemsize == 2 || header.itemsize == 4 || header.itemsize == 8;
    const bool numbers = header.kind == 'b' || header.kind == 'i' || header.kind == 'u' || header.kind == 'f';
    Wide values = 1;
    for (const auto side : header.shape) values = times(values, side);
    if (!numbers || !sizes || (header.kind == 'f' && header.itemsize == 1) || values == 0 || header.shape.size() < 3 ||
        header.shape.size() > 4) {
        throw InputError(name + " holds " + std::string(1, header.kind) + std::to_string(header.itemsize) + " of shape " +
                         tuple_text(header.shape) + "; a case is numbers (C, z, y, x)");
    }
    if (values > limits.max_pixels) {
        throw InputError(name + " has " + grouped(values) + " values, the limit is " + grouped(limits.max_pixels) +
                         " (--max-pixels)");
    }
    const auto count = static_cast<std::size_t>(values);
    if (source.length() / header.itemsize < count) throw no_array(name, "it is cut short");
    Array<float> out(header.shape);
    std::vector<std::uint8_t> chunk(header.itemsize << 16);
    for (std::size_t done = 0; done < count;) {
        const std::size_t part = std::min<std::size_t>(count - done, std::size_t{1} << 16);
        if (source.read(chunk.data(), part * header.itemsize) < part * header.itemsize) throw no_array(name, "it is cut short");
        for (std::size_t i = 0; i < part; ++i) {
            std::uint8_t* bytes = chunk.data() + i * header.itemsize;
            if (header.order == '>') std::reverse(bytes, bytes + header.itemsize);
            out.data[done + i] = number(bytes, header.kind, header.itemsize);
        }
        done += part;
    }
    return header.fortran ? c_order(out, header) : out;
}

}  // namespace segship
