#pragma once
// Volumes: from files to arrays and back, by the reading rules that the manifest names (src/segship/inference/volumes.py).

#include <string>
#include <vector>

#include "json.hpp"
#include "volume.hpp"

namespace segship {

// One case by the rules of manifest["input"]: one file, or one a channel in order. `name` empty: from the first file.
// Raises InputError, with the file's name, for what cannot be read, exceeds `limits`, or lies on another grid than the
// case's first channel.
Volume read_volume(const std::vector<std::string>& files, const Json& manifest, const VolumeLimits& limits = {},
                   const std::string& name = "");

// A case from numbers: (C, z, y, x) or (z, y, x).
Volume volume_from_array(Array<float> array, const Spacing& spacing, const std::string& name = "array");

// (z, y, x) whole numbers of a case, read by the same rules as its channels.
LabelMap read_labels(const std::string& file, const Json& manifest, const VolumeLimits& limits = {});

// A label file as bytes, on the file's own axes: `ending` is .nii.gz, .nii, .nrrd, .mha, .png, .bmp, .tif or .tiff, `bits` 8 or 16.
// A case that came as NIfTI keeps its header: affine, quaternion, spacing, units, texts. Raises OutputError, UsageError.
std::vector<std::uint8_t> label_bytes(const LabelMap& labels, int bits, const Volume& volume, const std::string& ending);

// Write a label file, whole or not at all; a 3D TIFF gets its spacing in a json beside it. Returns the files written.
std::vector<std::string> write_labels(const std::string& path, const LabelMap& labels, int bits, const Volume& volume);

// Write beside the final name and rename. Raises OutputError.
void write_file(const std::string& path, const std::vector<std::uint8_t>& content);

}  // namespace segship
