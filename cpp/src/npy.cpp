#include "npy.hpp"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <memory>

#include <zip.h>

#include "errors.hpp"
#include "files.hpp"

namespace segship {

namespace {

constexpr std::time_t NO_TIME = 315'619'200;  // 2 January 1980: zip knows no earlier year, and equal content is an equal file
constexpr zip_uint32_t LEVEL = 6;             // numpy's

struct DiscardZip {
    void operator()(zip_t* archive) const { zip_discard(archive); }
};

// UTF-8 to the 32-bit characters of numpy's "<U"; what is no UTF-8 becomes '?'.
std::vector<std::uint32_t> characters(const std::string& text) {
    std::vector<std::uint32_t> found;
    for (std::size_t i = 0; i < text.size();) {
        const auto first = static_cast<unsigned char>(text[i]);
        const std::size_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        if (first >= 0x80 && (first < 0xC0 || i + length > text.size())) {
            found.push_back('?');
            ++i;
            continue;
        }
        std::uint32_t value = length == 1 ? first : first & (0xFFU >> (length + 1));
        for (std::size_t k = 1; k < length; ++k) value = (value << 6) | (static_cast<unsigned char>(text[i + k]) & 0x3FU);
        found.push_back(value);
        i += length;
    }
    return found;
}

OutputError failed(const std::string& path, zip_t* archive) {
    return OutputError("cannot write " + path + ": " + zip_strerror(archive) +
                       "; choose another place with -o or free some room");
}

}  // namespace

std::string npy_header(const std::string& descr, const Shape& shape) {
    std::string sides;
    for (std::size_t i = 0; i < shape.size(); ++i) {
        sides += std::to_string(shape[i]) + (i + 1 < shape.size() ? ", " : shape.size() == 1 ? "," : "");
    }
    std::string about = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + sides + "), }";
    // Magic, version and length take 10 bytes, and the data begins at a multiple of 64 behind a newline.
    about.append(63 - (10 + about.size()) % 64, ' ');
    about += '\n';
    std::string header("\x93NUMPY\x01\x00", 8);
    header += static_cast<char>(about.size() & 0xFF);
    header += static_cast<char>(about.size() >> 8);
    return header + about;
}

void Npz::add(const std::string& name, const std::string& descr, const Shape& shape, const void* data, std::size_t width) {
    entries_.push_back({name, npy_header(descr, shape), data, elements(shape) * width, ""});
}

void Npz::add_own(const std::string& name, const std::string& descr, const Shape& shape, std::string bytes) {
    entries_.push_back({name, npy_header(descr, shape), nullptr, bytes.size(), std::move(bytes)});
}

void Npz::add_labels(const std::string& name, const Array<std::uint16_t>& labels, bool eight_bits) {
    if (!eight_bits) return add(name, labels);
    add_own(name, "|u1", labels.shape, std::string(labels.data.begin(), labels.data.end()));
}

void Npz::add_texts(const std::string& name, const std::vector<std::string>& texts) {
    std::vector<std::vector<std::uint32_t>> all;
    std::size_t longest = 1;
    for (const std::string& text : texts) {
        all.push_back(characters(text));
        longest = std::max(longest, all.back().size());
    }
    std::string bytes(texts.size() * longest * 4, '\0');
    for (std::size_t i = 0; i < all.size(); ++i) {
        std::memcpy(&bytes[i * longest * 4], all[i].data(), all[i].size() * 4);
    }
    add_own(name, "<U" + std::to_string(longest), {texts.size()}, std::move(bytes));
}

void Npz::save(const std::string& path) const {
    replacing(path, [&](const std::string& temporary) {
        int code = 0;
        std::unique_ptr<zip_t, DiscardZip> archive(zip_open(temporary.c_str(), ZIP_CREATE | ZIP_TRUNCATE, &code));
        if (!archive) throw OutputError("cannot write " + path + ": " + last_failure() + "; choose another place with -o");
        std::vector<std::vector<zip_buffer_fragment_t>> pieces;  // live until the archive is closed
        pieces.reserve(entries_.size());
        for (const Entry& entry : entries_) {
            // libzip reads the fragments and changes none of them.
            const auto bytes = [](const void* data) { return static_cast<zip_uint8_t*>(const_cast<void*>(data)); };
            const void* data = entry.data == nullptr ? entry.own.data() : entry.data;
            pieces.push_back({{bytes(entry.header.data()), entry.header.size()}});
            if (entry.bytes != 0) pieces.back().push_back({bytes(data), entry.bytes});
            zip_source_t* source =
                zip_source_buffer_fragment(archive.get(), pieces.back().data(), pieces.back().size(), 0);
            if (source == nullptr) throw failed(path, archive.get());
            const zip_int64_t index = zip_file_add(archive.get(), (entry.name + ".npy").c_str(), source, ZIP_FL_ENC_UTF_8);
            if (index < 0) {
                zip_source_free(source);
                throw failed(path, archive.get());
            }
            const auto member = static_cast<zip_uint64_t>(index);
            zip_set_file_compression(archive.get(), member, ZIP_CM_DEFLATE, LEVEL);
            zip_file_set_mtime(archive.get(), member, NO_TIME, 0);
        }
        if (zip_close(archive.get()) != 0) throw failed(path, archive.get());
        archive.release();
    });
}

}  // namespace segship
