#pragma once
// A decoded picture, as src/segship/inference/images.py gives it: pixels (H, W, C) in the channel order that the manifest
// asks for, of the type that its reader gives.

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "array.hpp"

namespace segship {

// (H, W, C), the last axis fastest. 8 bits for the readers opencv:* and pillow:rgb; skimage keeps the file's depth.
using Pixels = std::variant<Array<std::uint8_t>, Array<std::uint16_t>, Array<float>>;

struct Image {
    Pixels pixels;
    // The 8-bit pixels are 0 or 1: a file (or array) of one bit, which scikit-image reads as bool.
    bool boolean = false;
    std::string name;
    std::string channel_order = "rgb";  // "bgr", "rgb" or "grey"
    // What a user should know: that only the first of several frames was read …
    std::vector<std::string> notes;
    // The picture as the file shows it, uint8 (H, W, 3) RGB, and its own alpha (H, W); empty unless asked for when it
    // was read (`Colors::keep`): cutouts and overlays need them.
    Array<std::uint8_t> colors;
    Array<std::uint8_t> alpha;

    const Shape& shape() const {
        return std::visit([](const auto& array) -> const Shape& { return array.shape; }, pixels);
    }
    std::size_t height() const { return shape()[0]; }
    std::size_t width() const { return shape()[1]; }
    std::size_t channels() const { return shape()[2]; }
};

// The pixels as float32, without scaling: stage "read" of a trace.
inline Array<float> as_floats(const Pixels& pixels) {
    return std::visit([](const auto& array) { return Array<float>(array.shape, {array.data.begin(), array.data.end()}); },
                      pixels);
}

}  // namespace segship
