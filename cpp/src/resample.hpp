#pragma once
// Resampling of volumes by the rules that nnU-Net and its kin were trained with, as matrix products along the axes
// (src/segship/inference/resample.py). Every rule is separable and linear: an axis is one small matrix, whose rows hold
// some forty weights that count and are zero elsewhere.

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "volume.hpp"

namespace segship {

// How a grid becomes another: `order` in the plane (or everywhere), nearest along a separate axis.
struct Rule {
    enum class Kind { spline, torch, torch_align_corners };
    int order = 1;
    std::string separate_z = "never";  // auto, always, never
    double anisotropy_threshold = 3;
    Kind kind = Kind::spline;
};

// The axis that is resampled apart from the other two, or none (MIC-DKFZ/nnUNet: default_resampling.py).
std::optional<std::size_t> separate_axis(const Rule& rule, const Spacing& before, const Spacing& after);

// (C, z, y, x) on the grid `shape`; the same array where the shape is right already.
Array<float> resample(Array<float> array, const Shape3& shape, const Rule& rule, const Spacing& before, const Spacing& after);

// One channel (z, y, x) of shape `have`, written into `into` of shape `want`; the shapes differ. Of float, and of double
// for the spline rules: for who rounds the values again, to the last bit.
template <typename T>
void resample_channel(const T* x, const Shape3& have, const Shape3& want, const Rule& rule, std::optional<std::size_t> separate, T* into);

// Both samples of each output sample of a linear interpolation, and the weight of the upper.
struct AxisTaps {
    std::vector<std::size_t> low, high;
    std::vector<double> weight;
};
AxisTaps axis_taps(std::size_t before, std::size_t after, Rule::Kind kind);

// Source index of each output sample along a separate axis (torch calls it nearest-exact).
std::vector<std::size_t> nearest_index(std::size_t before, std::size_t after, Rule::Kind kind);

// A label map (z, y, x; -1 may stand in it) on another grid: each label's indicator is resized linearly and the largest
// wins; `half`: a label is written where its indicator is at least 0.5, in ascending order, else 0.
Array<std::int32_t> resample_labels(const Array<std::int32_t>& labels, const Shape3& shape, const Rule& rule,
                                    const Spacing& before, const Spacing& after, bool half);

}  // namespace segship
