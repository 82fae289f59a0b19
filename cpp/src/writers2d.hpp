#pragma once
// Pictures' results as images and files: src/segship/inference/{cutout,writers}.py in C++. Each file is encoded in memory,
// written beside its final name and renamed.

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

// One image, ready to be looked at or written: (H, W) grey of 8 or 16 bits, (H, W, 3) RGB or (H, W, 4) RGBA.
struct Rendered {
    std::variant<Array<std::uint8_t>, Array<std::uint16_t>> pixels;
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

// Write the decision as `segship predict` does: the suffix chooses the form (.png or .npz). One class: 0/255; several independent
// classes: <class>/<name>.png each; exclusive ones: their ids; saliency: the map. Other kinds by `options`. Returns the
// files written. OutputError for another suffix or a place that cannot be written.
std::vector<std::string> save(const Prediction2d& found, const std::string& path, const OutputOptions& options = {});

// (H, W) probabilities of 0..1 in 8 bits, rounded: for looking at.
void write_probability_png(const std::string& path, const Array<float>& values);
// Bytes at `path`, whole or not at all; folders are made. OutputError.
void write_bytes(const std::string& path, const Bytes& data);
// Lossless PNG of (H, W), (H, W, 3) RGB or (H, W, 4) RGBA.
Bytes encode_png(const Array<std::uint8_t>& pixels);
Bytes encode_png(const Array<std::uint16_t>& pixels);
// An indexed PNG of (H, W) ids up to 255.
Bytes encode_palette_png(const Array<std::uint8_t>& labels, const std::map<int, Color>& colors);

// <folder>/<class index>/<name>: where one of several independent classes is kept.
std::string class_path(const std::string& path, std::size_t index);

}  // namespace segship
