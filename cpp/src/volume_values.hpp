#pragma once
// The manifest's value steps on volumes (src/segship/inference/preprocess.py): one rounding for each operation that the
// manifest names, in its order.

#include <cstdint>
#include <vector>

#include "array.hpp"
#include "json.hpp"

namespace segship {

using VolumeMask = std::vector<std::uint8_t>;

// normalize, divide, divide_by_maximum, channels, clip, zscore, rescale_min_max or replace_non_finite on (C, z, y, x), in
// place. `mask` is the non-zero mask that zscore may name; null: nothing is masked. PackageError for another step.
void apply_value_step(Array<float>& x, const Json& step, const VolumeMask* mask);

}  // namespace segship
