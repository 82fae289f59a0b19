#pragma once
// The manifest's component rules on label maps of three axes (src/segship/inference/postprocess.py).

#include "json.hpp"
#include "volume.hpp"

namespace segship {

// Drop all but the largest component(s) of each named label, or of their union where the rule is joint; with minimum_mm3
// only components below it, the largest never. In place; `voxel_mm3` is one voxel's size.
void keep_largest(LabelMap& labels, const Json& rule, double voxel_mm3);

}  // namespace segship
