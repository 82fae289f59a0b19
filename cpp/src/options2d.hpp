#pragma once
// What becomes of an answer: the mask itself, the object cut out, or the object on another background.
// src/segship/inference/options.py in C++.

#include <array>
#include <cstdint>
#include <string>

#include "array.hpp"

namespace segship {

// How one prediction becomes one image; the fields are those of Python's OutputOptions.
struct OutputOptions {
    // mask, ids, color, cityscapes, cutout, composite, overlay
    std::string kind = "mask";
    // Decide at this value (0..1, strictly above); below 0: the package's own decision.
    double threshold = -1;
    bool clean_mask = false;
    // Estimate hair-fine alpha and the object's own colours: mask levels above the first are surely the object, below the
    // second surely not, and what lies between is estimated; both sure areas are shrunk by a square of side `erode` first.
    bool matting = false;
    int foreground_threshold = 240;
    int background_threshold = 10;
    int erode = 10;
    // composite: RGBA, or a picture uint8 (h, w, 3) RGB that is resized to cover.
    std::array<std::uint8_t, 4> background{255, 255, 255, 255};
    Array<std::uint8_t> background_picture;
    // straight: colours as they are, alpha beside them. rembg: colours multiplied by alpha as well.
    std::string cutout_style = "straight";
    // mask: three equal planes instead of one
    bool rgb_mask = false;
    // mask: an indexed PNG with the manifest's colours
    bool palette = false;
    // mask as .npz: the probabilities too
    bool probabilities = false;

    bool has_threshold() const { return threshold >= 0; }
    bool is_label_kind() const { return kind == "ids" || kind == "color" || kind == "cityscapes"; }
    // rembg ignores matting where only the mask is wanted.
    bool estimates_alpha() const {
        return matting && kind != "overlay" && !is_label_kind() && !(kind == "mask" && cutout_style == "rembg");
    }
    bool needs_picture() const { return (kind != "mask" && !is_label_kind()) || estimates_alpha(); }
};

// UsageError for values that mean nothing.
void check_options(const OutputOptions& options);

// RGBA from 'r,g,b[,a]', '#rgb', '#rrggbb[aa]', 'transparent', 'white', 'black' and the other names of CSS' first sixteen
// colours. UsageError for what is no colour.
std::array<std::uint8_t, 4> parse_color(const std::string& text);

// Clean masks are smoothed by this many pixels.
constexpr double CLEANING_SIGMA = 2.0;

}  // namespace segship
