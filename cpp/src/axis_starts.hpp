#pragma once
// Where the windows of a sliding window begin, for pictures and volumes alike (src/segship/inference/tiling.py).

#include <cstddef>
#include <string>
#include <vector>

namespace segship {

// Whole steps along an axis, where a window step is one of voxels or pixels.
std::size_t stride_of(double step);

// Where windows begin along one axis; a single 0 where one window covers it all.
std::vector<std::size_t> axis_starts(std::size_t size, std::size_t window, double step, const std::string& positions);

}  // namespace segship
