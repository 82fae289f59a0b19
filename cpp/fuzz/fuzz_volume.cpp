// Any bytes as a NRRD, a numpy array or a MetaImage, by what they begin with.

#include <cstddef>
#include <cstdint>
#include <string>

#include "errors.hpp"
#include "gzip.hpp"
#include "volume_formats.hpp"
#include "volume_itk.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const segship::VolumeLimits limits{std::size_t{1} << 16, std::size_t{1} << 24};
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    try {
        if (bytes.compare(0, 6, "\x93NUMPY") == 0) {
            segship::MemorySource source(data, size);
            segship::read_array(source, limits, "fuzz.npy");
        } else {
            segship::itk_from_bytes(bytes, limits, bytes.compare(0, 4, "NRRD") == 0 ? "fuzz.nrrd" : "fuzz.mha");
        }
    } catch (const segship::SegshipError&) {
    }
    return 0;
}
