#pragma once
// From a network's raw output to probabilities, masks and labels, in the order that the manifest names:
// src/segship/inference/{decode,bands}.py in C++.
//
//     activation -> (restore) -> decision -> (restore)
//
// On the network's own grid (no frame) nothing is restored. Arrays are (K, h, w) in, (K, H, W) or (H, W) out.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "array.hpp"
#include "json.hpp"
#include "preprocess2d.hpp"

namespace segship {

// A saliency map: 0..255 or 0..1, as the manifest writes it.
using SaliencyMap = std::variant<Array<std::uint8_t>, Array<float>>;

// In place over (classes, count): "sigmoid", "softmax" or "none".
void activate(float* planes, std::size_t classes, std::size_t count, const std::string& activation);

// Index of the largest along the first axis; the first maximum wins.
Array<std::uint16_t> argmax(const Array<float>& scores);

// What argmax and thresholds look at: restored logits, or probabilities (restored where the manifest says so).
Array<float> scores_on_grid(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated);
// (K, H, W) of 0 and 1: probability strictly above the threshold.
Array<std::uint8_t> threshold_masks(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated);
// (H, W) class index.
Array<std::uint16_t> argmax_index(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated);
// (H, W) labels from (K, H, W) regions, written one over the other in `order`.
Array<std::uint16_t> region_labels(const Array<std::uint8_t>& masks, const std::vector<int>& order);
// (H, W) by the manifest's polarity, min-max and rounding rules.
SaliencyMap saliency_map(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated);
// A map of 0..1 as 0..255, rounded; grey levels stay as they are.
Array<std::uint8_t> levels_of(const SaliencyMap& map);
// The label of each output channel of a threshold, regions or argmax network, in channel order.
std::vector<Json> class_labels(const Json& recipe);

// The scores of some rows of the picture, (K, rows, W), from `top` on.
using Band = std::function<void(std::size_t top, Array<float>& scores)>;
// Scores from the network's grid to the picture's own grid, a few rows at a time: a picture of 2048 x 1024 with 19 classes
// is never held at full size. `take` is called for every band, from several threads at once. Values are those of
// `restore` up to float32's rounding.
void restored_bands(const Array<float>& planes, const Frame& frame, const std::string& method, const std::string& path,
                    const Band& take);

}  // namespace segship
