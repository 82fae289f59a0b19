#pragma once
// From scores on the network's grid to labels on the case's own grid, walking the preprocessing's record backwards
// (src/segship/inference/volume_decode.py).

#include "json.hpp"
#include "volume.hpp"
#include "volume_network.hpp"

namespace segship {

// What is decided: labels (z, y, x) for exclusive classes and regions, masks (K, z, y, x) and the labels that they make
// for independent ones.
struct Decided {
    LabelMap labels;
    Array<std::uint8_t> masks;
};

// `scores` may be overwritten.
Decided decide(Scores& scores, const VolumeFrame& frame, const Json& manifest);

// (K, z, y, x) on the case's own grid. Outside the crop box the background has 1, regions and classes 0.
Array<float> probabilities(const Scores& scores, const VolumeFrame& frame, const Json& manifest);

// The manifest's component rules, sizes in cubic millimetres of the case's own spacing.
void clean(LabelMap& labels, const VolumeFrame& frame, const Json& manifest);

// How labels are written: 8 bits, 16 where numbers go beyond 255.
int label_bits(const Json& manifest);

}  // namespace segship
