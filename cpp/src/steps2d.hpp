#pragma once
// The manifest's value steps and grid steps, one at a time, on a picture (H, W, C).

#include <optional>

#include "json.hpp"
#include "preprocess2d.hpp"
#include "resize.hpp"

namespace segship {

// One step: changes the picture and says how the grid changed, where it did. Value steps compute in float32 (doubles where
// the manifest says so), one rounding for each operation that the manifest names, in its order.
std::optional<GridStep> run_step(Picture& picture, const Json& step);

}  // namespace segship
