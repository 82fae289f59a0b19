#pragma once
// Scores on the network's grid to labels on the input's grid, without ever holding the scores at full size
// (src/segship/inference/enlarge.py).
//
// Where one class is the largest at all corners of a cell it is the largest everywhere inside, so its label is written
// without looking at a score again; only in cells on the border between two labels is anything interpolated, and there
// only classes that can win. The answer is that of interpolating every class and taking the first maximum.
//
// Scores are (K, z, y, x); labels (Z, Y, X).

#include <functional>

#include "resample.hpp"

namespace segship {

// Index of the largest score along the first axis, the first of equals.
LabelMap largest(const Array<float>& scores);

// Index of the largest interpolated score, the first of equals.
LabelMap argmax_on_grid(const Array<float>& scores, const Shape3& shape, const Rule& rule, const Spacing& before, const Spacing& after);

// (Z, Y, X) 0 or 1: where the interpolated score of class `k` is above `limit`.
Array<std::uint8_t> above_on_grid(const Array<float>& scores, std::size_t k, float limit, const Shape3& shape, const Rule& rule,
                                  const Spacing& before, const Spacing& after);

// One class on the grid `shape`.
Array<float> resample_one(const Array<float>& scores, std::size_t k, const Shape3& shape, const Rule& rule, const Spacing& before,
                          const Spacing& after);

}  // namespace segship
