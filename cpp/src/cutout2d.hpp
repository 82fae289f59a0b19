#pragma once
// From a prediction and its options to one image: the mask, the object cut out, or the object elsewhere.
// src/segship/inference/cutout.py in C++.

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "array.hpp"
#include "draw2d.hpp"
#include "json.hpp"
#include "options2d.hpp"
#include "predict2d.hpp"

namespace segship {

using Bytes = std::vector<std::uint8_t>;
using Levels = std::variant<Array<std::uint8_t>, Array<std::uint16_t>>;

// One image, ready to be looked at or written: (H, W) grey of 8 or 16 bits, (H, W, 3) RGB or (H, W, 4) RGBA.
struct Rendered {
    Levels pixels;
    std::vector<std::string> notes;
    // Colours that an indexed PNG shows its numbers in; empty for others.
    std::map<int, Color> palette;

    Bytes encode() const;
};

// Whether the class of id 0 means that there is nothing; of a street's classes none does.
bool has_background(const Json& recipe);

// UsageError where a package's answer cannot become such an image.
void check_output(const Json& manifest, const OutputOptions& options);
// The image that the options ask for. UsageError where the answer or a missing picture does not allow it.
Rendered render(const Prediction2d& found, const OutputOptions& options);

// The manifest's colour of each label.
std::map<int, Color> colors_of(const Json& recipe);
// Whether ids of this package need 16 bits: then all its label files have them.
bool wide_ids(const Json& recipe);
// Labels that are known to fit.
Array<std::uint8_t> eight_bits(const Array<std::uint16_t>& labels);
// A mask (height, width) as 0 and 255.
Array<std::uint8_t> black_and_white(const std::uint8_t* mask, std::size_t height, std::size_t width);

}  // namespace segship
