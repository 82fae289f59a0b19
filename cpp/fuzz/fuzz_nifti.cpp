// Any bytes as a NIfTI file, packed or not.

#include <cstddef>
#include <cstdint>

#include "errors.hpp"
#include "nifti.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const segship::VolumeLimits limits{std::size_t{1} << 16, std::size_t{1} << 24};
    try {
        segship::MemorySource source(data, size);
        segship::read_nifti(source, limits, "fuzz");
    } catch (const segship::SegshipError&) {
    }
    return 0;
}
