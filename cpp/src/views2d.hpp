#pragma once
// The views of test-time augmentation: the manifest once for each, with another resizing. src/segship/inference/views.py.

#include <string>
#include <vector>

#include "json.hpp"

namespace segship {

// One recipe for each view: every ratio (the package's own where none are given), as it is and mirrored. `kind` is "1.x"
// or "0.x": mmseg 1.x resizes by factors of the picture's own size, 0.x by factors of the test size. UsageError where the
// package knows no augmentation or takes one size alone.
std::vector<Json> augmented(const Json& manifest, const std::string& kind, const std::vector<double>& ratios);

// The recipe that the package's golden sample is proved by: at network.check_size, its windows made smaller alike.
Json check_recipe(const Json& manifest);

// `batch`, or what of it fits where inputs are large.
std::size_t affordable_batch(std::size_t batch, std::size_t pixels);

}  // namespace segship
