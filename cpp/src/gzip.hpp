#pragma once
// gzip by zlib: bytes that stream out of a file, packed or not, and files packed on all threads.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <zlib.h>

namespace segship {

// Why packed bytes cannot be had; the caller knows the file's name.
struct UnpackFailed {
    std::string why;
};

// Bytes in order, from a file or from memory.
class ByteSource {
public:
    virtual ~ByteSource() = default;
    // Up to `size` bytes; fewer only at the end.
    virtual std::size_t read(std::uint8_t* into, std::size_t size) = 0;
    // All bytes there are.
    virtual std::size_t length() const = 0;
};

class MemorySource : public ByteSource {
public:
    MemorySource(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
    std::size_t read(std::uint8_t* into, std::size_t size) override;
    std::size_t length() const override { return size_; }

private:
    const std::uint8_t* data_;
    std::size_t size_;
    std::size_t at_ = 0;
};

class FileSource : public ByteSource {
public:
    // Raises InputError for what cannot be opened, or is longer than `max_bytes`.
    FileSource(const std::string& path, std::size_t max_bytes);
    ~FileSource() override;
    FileSource(const FileSource&) = delete;
    FileSource& operator=(const FileSource&) = delete;
    std::size_t read(std::uint8_t* into, std::size_t size) override;
    std::size_t length() const override { return size_; }

private:
    std::FILE* file_ = nullptr;
    std::string path_;
    std::size_t size_ = 0;
};

// What a source holds: unpacked where it begins as gzip does, one member after the other, check sums included.
class Unpacker {
public:
    explicit Unpacker(ByteSource& source);
    ~Unpacker();
    Unpacker(const Unpacker&) = delete;
    Unpacker& operator=(const Unpacker&) = delete;
    bool packed() const { return packed_; }
    // Up to `size` bytes; fewer only at the end. Raises UnpackFailed.
    std::size_t read(std::uint8_t* into, std::size_t size);

private:
    std::size_t take(std::uint8_t* into, std::size_t size);
    bool fill();
    bool another_member();

    ByteSource& source_;
    bool packed_ = false;
    bool ended_ = false;
    std::vector<std::uint8_t> buffer_;
    z_stream stream_{};
};

// `head` and `body` as one gzip file: pieces of a fixed size packed side by side, so equal data gives equal bytes.
std::vector<std::uint8_t> gzip_bytes(const std::vector<std::uint8_t>& head, const std::vector<std::uint8_t>& body);

}  // namespace segship
