#pragma once
// The manifest's clean-up rules over label maps and masks (H, W): src/segship/inference/postprocess.py in C++.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "array.hpp"
#include "json.hpp"

namespace segship {

// Connected components numbered 1, 2, 3 … in scan order.
struct Components2d {
    Array<std::uint32_t> numbers;
    std::size_t count = 0;
};
// "face" joins neighbours that share a side, "full" also those that share a corner.
Components2d components(const Array<std::uint8_t>& mask, const std::string& connectivity);

// Apply the rules to one class's mask of 0 and 1; `label` is its id, for rules that name labels.
Array<std::uint8_t> clean_mask(Array<std::uint8_t> mask, const Json& rules, int label);
// Apply the rules to a label map; what a rule takes away becomes background (0).
Array<std::uint16_t> clean_labels(Array<std::uint16_t> labels, const Json& rules);
// Of a mask of grey levels: opening with a 3x3 cross, Gaussian, then 255 from 127 up.
Array<std::uint8_t> smooth_mask(const Array<std::uint8_t>& mask, double sigma);

}  // namespace segship
