#pragma once
// The manifest's preprocessing steps on volumes (src/segship/inference/volume_chain.py). What changes the grid leaves a
// record (`Moved`) that is walked backwards afterwards.

#include "json.hpp"
#include "resample.hpp"
#include "volume.hpp"

namespace segship {

struct PreparedVolume {
    Array<float> x;  // (C, z, y, x) on the network's grid, before any tile is cut
    Spacing spacing{};
    VolumeFrame frame;
};

// Run the manifest's steps over one case; its channels are taken. `previous` holds the labels of a cascade's first stage
// on the case's own grid. Raises InputError for NaN, wrong channels or a grid without extent, PackageError for a step
// that only pictures have.
PreparedVolume prepare_volume(Volume& volume, const Json& manifest, const LabelMap* previous = nullptr);

// Which of the resampling rules a method of the manifest names; PackageError for one that volumes do not have.
Rule::Kind resample_kind(const std::string& method, const std::string& what);

}  // namespace segship
