#pragma once
// Pictures' results as files: src/segship/inference/writers.py in C++. Each file is encoded in memory,
// written beside its final name and renamed.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "array.hpp"
#include "cutout2d.hpp"
#include "options2d.hpp"
#include "predict2d.hpp"

namespace segship {

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
