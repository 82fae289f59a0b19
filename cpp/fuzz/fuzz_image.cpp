// Any bytes as a picture, by the three kinds of readers.

#include <cstddef>
#include <cstdint>
#include <iostream>
#include <string>

#include "errors.hpp"
#include "images.hpp"

namespace {

segship::Json rules(const char* reader) {
    return {{"reader", reader},
            {"channels", {{{"name", "R"}}, {{"name", "G"}}, {{"name", "B"}}}},
            {"channel_order", "rgb"},
            {"exif_rotation", "apply"}};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const segship::Json readers[] = {rules("opencv:color"), rules("pillow:rgb"), rules("skimage")};
    std::cerr.setstate(std::ios::failbit);  // OpenCV tells every refusal there; the sanitizers' reports do not take it
    const segship::ImageLimits limits{std::size_t{1} << 20, std::size_t{1} << 22};
    const std::string bytes(reinterpret_cast<const char*>(data), size);
    for (const segship::Json& reader : readers) {
        try {
            segship::read_image_bytes(bytes, reader, "fuzz", limits, {true, true});
        } catch (const segship::SegshipError&) {
        }
    }
    return 0;
}
