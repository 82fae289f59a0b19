#pragma once
// One axis of a resampling as a matrix with few entries a row, and its product with arrays.

#include <cstddef>
#include <vector>

#include "resample.hpp"

namespace segship {

// Row o: output sample o is the sum of `count[o]` source samples from `first[o]` on, weighted.
struct AxisMatrix {
    std::vector<std::size_t> first, count, start;  // start: where the row's weights begin
    std::vector<double> weights;  // rounded to the type of what they mix
    std::size_t rows() const { return first.size(); }
};

// Weights below are left out: the prefilter's tail fades by a factor of 3.7 with each sample.
constexpr double kNegligible = 1e-10, kNegligibleWide = 1e-18;

// Orders 1 and 3 of the spline rules. Raises PackageError for another order.
AxisMatrix axis_matrix(std::size_t before, std::size_t after, int order, double negligible = kNegligible);

// Of float and double. (outer, before, inner) to (outer, after, inner): the matrix along the middle axis.
template <typename T>
void apply_matrix(const AxisMatrix& matrix, const T* x, std::size_t outer, std::size_t before, std::size_t inner, T* out);

// The same for torch's linear rule: a(1 - w) + bw in float32, to the last bit.
void apply_taps(const AxisTaps& taps, const float* x, std::size_t outer, std::size_t before, std::size_t inner, float* out);

// The same taking whole samples.
template <typename T>
void apply_index(const std::vector<std::size_t>& index, const T* x, std::size_t outer, std::size_t before, std::size_t inner, T* out);

}  // namespace segship
