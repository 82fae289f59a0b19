// Any bytes as a package: opened, its manifest checked, every hash compared. Fails only by a crash or a sanitizer's word.

#include <cstddef>
#include <cstdint>
#include <string>

#include "errors.hpp"
#include "package.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const auto package = segship::Package::from_bytes(std::string(reinterpret_cast<const char*>(data), size), "fuzz");
        package->check();
    } catch (const segship::SegshipError&) {
    }
    return 0;
}
