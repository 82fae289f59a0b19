#pragma once
// The other volume files that ITK's users keep: NRRD (.nrrd) and MetaImage (.mha), read and written without ITK. Spacing,
// place and directions come out as ITK gives them.

#include <cstdint>
#include <string>
#include <vector>

#include "volume.hpp"

namespace segship {

struct ItkFile {
    Array<float> values;              // the last axis first (C order): (z, y, x), (y, x) or (channel, z, y, x)
    std::vector<std::size_t> shape;   // of the file, first axis fastest
    std::vector<double> spacing;      // of its axes
    Affine affine{};                  // voxels to millimetres as NIfTI's, for the first three axes
};

// A .nrrd or .mha, by its name's ending. Raises InputError for what is damaged, too large, or of a kind that is not read.
ItkFile read_itk(const std::string& path, const VolumeLimits& limits, const std::string& name);
ItkFile itk_from_bytes(const std::string& data, const VolumeLimits& limits, const std::string& name);

// Labels with the file's last axis first, packed; `suffix` is .nrrd or .mha, `shape` in the file's order.
std::vector<std::uint8_t> encode_itk(const LabelMap& labels, const std::vector<std::size_t>& shape, int bits, const Affine& affine,
                                     const std::vector<double>& spacing, const std::string& suffix);

}  // namespace segship
