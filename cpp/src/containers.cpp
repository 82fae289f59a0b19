#include "containers.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "errors.hpp"

namespace segship {

const std::vector<std::string> IMAGE_SUFFIXES = {".png", ".jpg",  ".jpeg", ".jpe",  ".jfif", ".tif",  ".tiff", ".bmp",
                                                 ".dib", ".webp", ".gif",  ".heic", ".heif", ".hif",  ".avif"};

namespace {

struct CutShort {};
struct Damaged {
    std::string why;
};

// Numbers out of bytes; what lies beyond the end is `CutShort`.
class Bytes {
public:
    explicit Bytes(const std::string& data, bool big = true) : data_(data), big_(big) {}

    std::size_t size() const { return data_.size(); }
    bool has(std::size_t at, std::size_t count) const { return at <= size() && count <= size() - at; }
    std::uint64_t number(std::size_t at, std::size_t bytes) const {
        if (!has(at, bytes)) throw CutShort{};
        std::uint64_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            const std::size_t place = big_ ? i : bytes - 1 - i;
            value = value << 8 | static_cast<unsigned char>(data_[at + place]);
        }
        return value;
    }
    bool is(std::size_t at, const std::string& text) const {
        return has(at, text.size()) && data_.compare(at, text.size(), text) == 0;
    }
    const std::string& text() const { return data_; }

private:
    const std::string& data_;
    bool big_;
};

// ------------------------------------------------------------------------------------------------- TIFF and EXIF

struct TiffFacts {
    std::uint64_t width = 0, height = 0, bits = 1, photometric = 1, samples = 1, orientation = 1, compression = 1, planar = 1;
    int extra = -1;
    bool several = false;
};

// The tags of the first page. BigTIFF has the same fields, wider.
TiffFacts walk_tiff(const std::string& data) {
    const Bytes bytes(data, data.compare(0, 2, "MM") == 0);
    const bool wide = bytes.number(2, 2) == 43;
    const std::size_t word = wide ? 8 : 4, entry_size = wide ? 20 : 12, count_size = wide ? 8 : 2;
    const std::size_t start = bytes.number(wide ? 8 : 4, word);
    const std::uint64_t entries = bytes.number(start, count_size);
    if (entries > 65'535) throw Damaged{"too many tags"};
    TiffFacts facts;
    const auto value = [&](std::size_t entry) {
        const std::uint64_t type = bytes.number(entry + 2, 2);
        const std::size_t size = type == 1 ? 1 : type == 3 ? 2 : type == 16 ? 8 : 4;
        const std::uint64_t count = bytes.number(entry + 4, word);
        const std::size_t here = entry + 4 + word;
        const bool inside = count <= word / size;
        return bytes.number(inside ? here : static_cast<std::size_t>(bytes.number(here, word)), size);
    };
    for (std::uint64_t i = 0; i < entries; ++i) {
        const std::size_t entry = start + count_size + static_cast<std::size_t>(i) * entry_size;
        const std::uint64_t tag = bytes.number(entry, 2);
        if (tag == 256) facts.width = value(entry);
        if (tag == 257) facts.height = value(entry);
        if (tag == 258) facts.bits = value(entry);
        if (tag == 259) facts.compression = value(entry);
        if (tag == 262) facts.photometric = value(entry);
        if (tag == 274) facts.orientation = value(entry);
        if (tag == 277) facts.samples = value(entry);
        if (tag == 284) facts.planar = value(entry);
        if (tag == 338) facts.extra = static_cast<int>(std::min<std::uint64_t>(value(entry), 999));
    }
    const std::size_t next = start + count_size + static_cast<std::size_t>(entries) * entry_size;
    facts.several = bytes.has(next, word) && bytes.number(next, word) != 0;
    return facts;
}

int sensible_orientation(std::uint64_t value) {
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
}

Container tiff_container(const std::string& data) {
    const TiffFacts facts = walk_tiff(data);
    if (facts.width == 0 || facts.height == 0) throw Damaged{"no size in its header"};
    Container found{"TIFF", facts.height, facts.width, facts.several, static_cast<int>(std::min<std::uint64_t>(facts.bits, 64)),
                    static_cast<int>(std::min<std::uint64_t>(facts.samples, 64)), facts.photometric == 3, 1};
    found.orientation = sensible_orientation(facts.orientation);
    found.photometric = static_cast<int>(std::min<std::uint64_t>(facts.photometric, 65'535));
    found.compression = static_cast<int>(std::min<std::uint64_t>(facts.compression, 65'535));
    found.extra = facts.extra;
    const bool one_more = facts.samples == 2 || facts.samples == 4;
    found.spare = !one_more || facts.photometric == 5 || facts.extra == 0;  // CMYK, or a sample that means nothing
    found.misread = facts.planar == 2 && facts.bits > 8 && facts.samples > 1;
    return found;
}

// ------------------------------------------------------------------------------------------------- the others

Container walk_png(const std::string& data) {
    const Bytes bytes(data);
    Container found{"PNG", 0, 0, false, 8, 2, false, 1};
    for (std::size_t at = 8;;) {
        if (!bytes.has(at, 12)) throw CutShort{};
        const std::size_t length = bytes.number(at, 4), body = at + 8;
        const bool whole = bytes.has(body, length + 4);
        if (bytes.is(at + 4, "IHDR")) {
            found.width = bytes.number(body, 4);
            found.height = bytes.number(body + 4, 4);
            found.bits = static_cast<int>(bytes.number(body + 8, 1));
            found.colour = static_cast<int>(bytes.number(body + 9, 1));
            found.palette = found.colour == 3;
        } else if (bytes.is(at + 4, "acTL")) {
            found.several = bytes.number(body, 4) > 1;
        } else if (bytes.is(at + 4, "eXIf") && whole) {
            found.orientation = exif_orientation(data.substr(body, length));
        } else if (bytes.is(at + 4, "IEND")) {
            break;
        }
        at = body + length + 4;
    }
    if (found.height == 0 || found.width == 0) throw Damaged{"no size in its header"};
    return found;
}

bool has_no_length(std::uint64_t marker) {
    return marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8);
}

bool starts_frame(std::uint64_t marker) {
    return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

Container walk_jpeg(const std::string& data) {
    const Bytes bytes(data);
    Container found{"JPEG", 0, 0, false, 8, 3, false, 1};
    std::size_t at = 2;
    while (true) {
        if (!bytes.has(at, 4)) throw CutShort{};
        if (bytes.number(at, 1) != 0xFF) throw Damaged{"no marker where one must be"};
        const std::uint64_t marker = bytes.number(at + 1, 1);
        if (marker == 0xFF) {  // fill bytes before a marker are allowed
            ++at;
            continue;
        }
        if (has_no_length(marker)) {
            at += 2;
            continue;
        }
        if (starts_frame(marker)) {
            found.bits = static_cast<int>(bytes.number(at + 4, 1));
            found.height = bytes.number(at + 5, 2);
            found.width = bytes.number(at + 7, 2);
            found.colour = static_cast<int>(bytes.number(at + 9, 1));
        }
        if (marker == 0xDA) break;
        const std::size_t length = bytes.number(at + 2, 2);
        if (marker == 0xE1 && bytes.is(at + 4, std::string("Exif\0\0", 6)) && length > 8 && bytes.has(at + 10, length - 8)) {
            found.orientation = exif_orientation(data.substr(at + 10, length - 8));
        }
        at += 2 + std::max<std::size_t>(length, 1);
    }
    // Inside a scan 0xFF is always followed by 0x00, so an end marker behind the first scan ends the picture.
    if (data.find("\xff\xd9", at) == std::string::npos) throw CutShort{};
    if (found.height == 0 || found.width == 0) throw Damaged{"no size in its header"};
    return found;
}

// Whether Pillow leaves a BMP's palette out: entry i is the level i, of two entries black and white.
bool is_ramp(const Bytes& bytes, std::size_t start, std::uint64_t count, std::size_t entry) {
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::string level(3, static_cast<char>(count == 2 ? 255 * i : i));
        if (!bytes.is(start + static_cast<std::size_t>(i) * entry, level)) return false;
    }
    return true;
}

Container walk_bmp(const std::string& data) {
    const Bytes bytes(data, false);
    const std::uint64_t offset = bytes.number(10, 4), header = bytes.number(14, 4);
    const bool old = header == 12;
    const auto width = static_cast<std::int32_t>(bytes.number(18, old ? 2 : 4));
    const auto height = old ? static_cast<std::int32_t>(bytes.number(20, 2)) : static_cast<std::int32_t>(bytes.number(22, 4));
    if (width <= 0 || height == 0 || height == INT32_MIN) throw Damaged{"no size in its header"};
    const std::uint64_t bits = bytes.number(old ? 24 : 28, 2), packed = old ? 0 : bytes.number(30, 4);
    const auto rows = static_cast<std::uint64_t>(std::abs(height));
    const std::uint64_t row = (static_cast<std::uint64_t>(width) * bits + 31) / 32 * 4;
    const bool plain = packed == 0 || packed == 3;
    // The last row's filling may be missing.
    if (plain && offset + row * rows > bytes.size() + 3) throw CutShort{};
    Container found{"BMP", rows, static_cast<std::size_t>(width), false, static_cast<int>(bits), 3, false, 1};
    if (bits <= 8) {
        const std::uint64_t given = old ? 0 : bytes.number(46, 4), count = given == 0 ? std::uint64_t{1} << bits : given;
        found.palette = count > 256 || !is_ramp(bytes, 14 + static_cast<std::size_t>(header), count, old ? 3 : 4);
    }
    found.spare = bits != 32 || packed != 3 || header < 56 || bytes.number(66, 4) == 0;  // no mask for alpha
    found.misread = old && (bits > 8 || found.palette);  // of the oldest header's pictures OpenCV gives grey
    return found;
}

Container walk_webp(const std::string& data) {
    const Bytes bytes(data, false);
    if (bytes.number(4, 4) + 8 > bytes.size()) throw CutShort{};
    Container found{"WebP", 0, 0, false, 8, 3, false, 1};
    for (std::size_t at = 12; bytes.has(at, 8);) {
        const std::size_t length = bytes.number(at + 4, 4), body = at + 8;
        if (bytes.is(at, "VP8X")) {
            found.several = (bytes.number(body, 1) & 0x02) != 0;
            found.width = bytes.number(body + 4, 3) + 1;
            found.height = bytes.number(body + 7, 3) + 1;
        } else if (bytes.is(at, "VP8 ") && found.width == 0) {
            found.width = bytes.number(body + 6, 2) & 0x3FFF;
            found.height = bytes.number(body + 8, 2) & 0x3FFF;
        } else if (bytes.is(at, "VP8L") && found.width == 0) {
            const std::uint64_t sides = bytes.number(body + 1, 4);
            found.width = (sides & 0x3FFF) + 1;
            found.height = (sides >> 14 & 0x3FFF) + 1;
        } else if (bytes.is(at, "EXIF") && bytes.has(body, length)) {
            const std::size_t skip = bytes.is(body, std::string("Exif\0\0", 6)) ? 6 : 0;
            found.orientation = exif_orientation(data.substr(body + skip, length - skip));
        }
        at = body + length + length % 2;
    }
    if (found.height == 0 || found.width == 0) throw Damaged{"no size in its header"};
    return found;
}

std::string kind_of(const std::string& data) {
    const Bytes bytes(data);
    if (bytes.is(0, "\x89PNG\r\n\x1a\n")) return "PNG";
    if (bytes.is(0, "\xff\xd8\xff")) return "JPEG";
    const std::string magic = data.substr(0, 4);
    if (magic == std::string("II*\0", 4) || magic == std::string("MM\0*", 4) || magic == std::string("II+\0", 4) ||
        magic == std::string("MM\0+", 4)) {
        return "TIFF";
    }
    if (bytes.is(0, "BM")) return "BMP";
    if (bytes.is(0, "RIFF") && bytes.is(8, "WEBP")) return "WebP";
    if (bytes.is(0, "GIF87a") || bytes.is(0, "GIF89a")) return "GIF";
    if (bytes.is(4, "ftyp")) return bytes.is(8, "avi") ? "AVIF" : "HEIC";
    return "";
}

}  // namespace

int exif_orientation(const std::string& tiff) {
    if (tiff.compare(0, 2, "II") != 0 && tiff.compare(0, 2, "MM") != 0) return 1;
    try {
        return sensible_orientation(walk_tiff(tiff).orientation);
    } catch (const CutShort&) {
        return 1;
    } catch (const Damaged&) {
        return 1;
    }
}

Container inspect_container(const std::string& data, const std::string& name) {
    if (data.empty()) throw InputError(name + " is empty (0 bytes); copy that file again");
    const std::string kind = kind_of(data);
    if (kind.empty()) {
        throw InputError(name + " is not an image that can be read here; give one of PNG, JPEG, TIFF, BMP, WebP");
    }
    try {
        if (kind == "PNG") return walk_png(data);
        if (kind == "JPEG") return walk_jpeg(data);
        if (kind == "TIFF") return tiff_container(data);
        if (kind == "BMP") return walk_bmp(data);
        if (kind == "WebP") return walk_webp(data);
    } catch (const CutShort&) {
        throw InputError(name + " is a " + kind + " file that was cut short; copy or download that file again");
    } catch (const Damaged& damage) {
        throw InputError(name + " is a damaged " + kind + " file (" + damage.why + "); copy or download that file again");
    }
    throw InputError(name + " is a " + kind + " picture, which the C++ runner does not read; save it as PNG or JPEG");
}

}  // namespace segship
