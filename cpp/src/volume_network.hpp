#pragma once
// A volume through the network window by window: tiles x mirrorings x ensemble members
// (src/segship/inference/volume_network.py). What is averaged, how tiles are weighted and summed is the manifest's.

#include <vector>

#include "json.hpp"
#include "predict_volume.hpp"

namespace segship {

struct Scores {
    Array<float> values;         // (K, z, y, x)
    bool half = false;           // summed in float16; the values are such numbers
    bool probabilities = false;  // activated already
};

// The network's answer for a whole grid: x (C, z, y, x) to logits or probabilities. A window of two axes runs over every
// slice. What the manifest leaves out comes back as background.
Scores scores_of(const Array<float>& x, const Json& manifest, const std::vector<NetworkRun>& members, const TileOptions& options,
                 const WindowProgress& progress);

// How many windows go through the network at once.
std::size_t batch_of(const TileOptions& options, const std::vector<std::size_t>& window);

}  // namespace segship
