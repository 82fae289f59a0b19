#pragma once
// Volumes in other files than NIfTI: single pictures, TIFF of three axes, prepared arrays
// (src/segship/inference/volume_formats.py). Sizes are judged by the header first.

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gzip.hpp"
#include "volume.hpp"

namespace segship {

// Of a single picture, as nnU-Net's reader has it: so far apart that nothing joins slices.
constexpr double kPictureSpacing[3] = {999.0, 1.0, 1.0};

// (C, 1, H, W): one channel for grey, three for colour (R, G, B), four with alpha; bit depth kept, EXIF ignored.
Array<float> read_picture(const std::string& path, const VolumeLimits& limits, const std::string& name);

// (z, y, x) as stored, a page a slice.
Array<float> read_tiff3d(const std::string& path, const VolumeLimits& limits, const std::string& name);

// Labels (H, W) as .png, .bmp or .tif.
std::vector<std::uint8_t> encode_picture(const LabelMap& labels, int bits, const std::string& suffix);
// Labels (z, y, x), a page a slice.
std::vector<std::uint8_t> encode_tiff(const LabelMap& labels, int bits);

// The file that gives a TIFF's spacing: `case.json` beside `case_0000.tif` and beside labels `case.tif`.
std::string spacing_beside(const std::string& path);
// (z, y, x) from a TIFF's json; none without one. Raises InputError for one that holds something else.
std::optional<Spacing> read_spacing(const std::string& path);

// numpy's .npy of real numbers as float32, C order. Raises InputError for anything else.
Array<float> read_prepared(const std::string& path, const VolumeLimits& limits, const std::string& name);
Array<float> read_array(ByteSource& source, const VolumeLimits& limits, const std::string& name);

// A case as a package's golden sample holds it: an .npz of `channels` (C, z, y, x), `spacing` (z, y, x) in millimetres
// and, of a cascade's second stage, `previous`, the labels of its first. Raises InputError.
Volume read_sample(const std::string& path, const VolumeLimits& limits, const std::string& name);

}  // namespace segship
