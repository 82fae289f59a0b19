#pragma once
// SHA-256 by OpenSSL, which uses the processor's own instructions where it has them.

#include <cstddef>
#include <memory>
#include <string>

namespace segship {

// Hashes what it is given piece by piece.
class Sha256 {
public:
    Sha256();
    ~Sha256();
    Sha256(const Sha256&) = delete;
    Sha256& operator=(const Sha256&) = delete;
    void add(const void* data, std::size_t size);
    // 64 lower-case hexadecimal digits; nothing may be added afterwards.
    std::string hex();

private:
    struct State;
    std::unique_ptr<State> state_;
};

std::string sha256_bytes(const std::string& data);
// std::ios_base::failure where the file cannot be read.
std::string sha256_file(const std::string& path);

}  // namespace segship
