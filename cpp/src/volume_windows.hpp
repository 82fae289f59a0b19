#pragma once
// The sliding window over volumes as arithmetic: where windows lie, how they are weighted, mirrored and summed
// (src/segship/inference/tiling.py). A window of two axes is one of three whose first side is 1, run slice by slice.

#include <cstdint>
#include <string>
#include <vector>

#include "json.hpp"
#include "predict_volume.hpp"
#include "volume.hpp"

namespace segship {

struct Tiling {
    bool flat = false;  // two axes: the first of three is a slice
    Shape3 window{};
    std::array<double, 3> step{};
    std::string positions, weighting, pad_mode;
    double sigma_scale = 0;
    bool single_tile = true;
    float pad_value = 0;
    std::size_t crop_remainder_below = 0;
    std::vector<std::size_t> mirror_axes;  // of the three axes
    bool probabilities = false;            // averaged after the activation
    bool half = false;                     // summed in float16
};

// The manifest's tiling with the user's changes. UsageError for a package without, or options that mean nothing.
Tiling tiling_of(const Json& manifest, const TileOptions& options);

// Every window's first corner, first axis outermost, on a grid that is padded already.
std::vector<Shape3> window_starts(const Shape3& shape, const Tiling& tiling);

struct Interval {
    std::size_t first, size;
};
using Box3 = std::array<Interval, 3>;

// What is padded before each axis, and how large it is then.
Box3 padding(const Shape3& shape, const Tiling& tiling);

// What stays of a grid where the manifest cuts short remainders away; all of it else.
Box3 remainder_crop(const Shape3& shape, const Tiling& tiling);

// (C, z, y, x) cut to `kept` and padded for the window.
Array<float> cut_and_pad(const Array<float>& x, const Box3& kept, const Box3& padded, const Tiling& tiling);

// No axis first, then every combination of the mirror axes, small ones first; a bit an axis.
std::vector<unsigned> mirror_subsets(const std::vector<std::size_t>& axes);

// The weight of each position in a window; empty where all count the same.
std::vector<float> window_weights(const Tiling& tiling, std::size_t windows);

std::size_t count_windows(const Shape3& shape, const Tiling& tiling);

}  // namespace segship
