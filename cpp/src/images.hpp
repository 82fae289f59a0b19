#pragma once
// From a file, bytes or an array to pixels, by the reading rules that the manifest names: src/segship/inference/images.py
// in C++. All limits and damage are checked before a pixel is decoded.

#include <cstddef>
#include <string>

#include "image.hpp"
#include "json.hpp"

namespace segship {

struct ImageLimits {
    std::size_t max_pixels = 250'000'000;
    std::size_t max_bytes = std::size_t{1} << 30;
};

// What is kept of a picture besides what the network sees: for cutouts, composites and overlays.
struct Keep {
    bool colors = false;
    bool alpha = false;
};

// One picture by the rules of `spec`, the manifest's `input`. InputError, with the input's name, for anything that cannot
// be read or exceeds the limits.
Image read_image(const std::string& path, const Json& spec, const ImageLimits& limits = {}, Keep keep = {});
Image read_image_bytes(const std::string& data, const Json& spec, const std::string& name, const ImageLimits& limits = {},
                       Keep keep = {});
// An array (H, W) or (H, W, 1|3|4), RGB(A).
Image image_from_array(const Pixels& array, const Json& spec, const std::string& name, const ImageLimits& limits = {},
                       Keep keep = {});

// A file as uint8 (H, W, 3) RGB, turned upright: the picture behind a composite.
Array<std::uint8_t> read_rgb(const std::string& path, const ImageLimits& limits = {});

}  // namespace segship
