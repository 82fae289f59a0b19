// Any text as a manifest: most mutations of a zip fail its hashes long before the manifest is read.

#include <cstddef>
#include <cstdint>
#include <string>

#include "errors.hpp"
#include "manifest.hpp"
#include "networks.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const segship::Json manifest = segship::parse_manifest(std::string(reinterpret_cast<const char*>(data), size));
        segship::usual_size(manifest);
    } catch (const segship::SegshipError&) {
    }
    return 0;
}
