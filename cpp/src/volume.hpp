#pragma once
// One case as read: every channel on one grid, and where it lies. Arrays are (C, z, y, x) / (z, y, x), spacings
// (z, y, x) in millimetres, whatever the file's own order is.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"

namespace segship {

using Shape3 = std::array<std::size_t, 3>;
using Spacing = std::array<double, 3>;
using Affine = std::array<std::array<double, 4>, 4>;
using LabelMap = Array<std::uint16_t>;

// nibabel's orientation: for each input axis the output axis it becomes, and -1 where it is flipped.
struct OrientedAxis {
    std::size_t axis;
    int flip;
};
using Orientation = std::array<OrientedAxis, 3>;

// What a volume file may be: voxels once unpacked, bytes as it lies there.
struct VolumeLimits {
    std::size_t max_pixels = std::size_t{1} << 30;
    std::size_t max_bytes = std::size_t{8} << 30;
};

// Where a case lies in space, and how its array came out of the file: all that writing labels back needs.
struct Geometry {
    std::vector<std::size_t> shape;         // of the file, in its own axes
    std::vector<double> spacing;            // of the file's axes
    Affine affine{};                        // the file's voxels to millimetres, as in a NIfTI header
    std::vector<std::uint8_t> header;       // of a NIfTI file, as it stands there; empty for other files
    std::optional<Orientation> turned;      // leads from the array's axes back to the file's; none: not turned
    bool reverse = true;                    // is the array's first axis the file's last?
};

struct Volume {
    Array<float> channels;  // (C, z, y, x)
    Spacing spacing{};
    std::string name;
    std::optional<Geometry> geometry;  // none for arrays that came from no file
    std::vector<std::string> notes;
    bool prepared = false;  // the values stand on the network's grid already, and no step is run on them
    std::optional<LabelMap> previous;  // labels of a cascade's first stage, where they came with the case

    Shape3 shape() const { return {channels.shape[1], channels.shape[2], channels.shape[3]}; }
};

// What one preprocessing step did to the grid.
struct Moved {
    enum class Kind { transpose, crop, resample, pad };
    Kind kind = Kind::crop;
    Shape3 before{}, after{};
    Spacing before_spacing{}, after_spacing{};
    std::array<std::size_t, 3> axes{0, 1, 2};  // of a transpose: output axis i is input axis axes[i]
    Shape3 start{0, 0, 0};                     // of a crop or padding: where the smaller grid begins in the larger
};

// Where a network input came from: all that is needed to put labels back onto the case's own grid.
struct VolumeFrame {
    std::string name;
    Shape3 shape{};
    Spacing spacing{};
    std::vector<Moved> moved;
};

inline std::size_t count(const Shape3& shape) { return shape[0] * shape[1] * shape[2]; }
inline Shape as_shape(const Shape3& shape) { return {shape[0], shape[1], shape[2]}; }
inline Shape as_shape(std::size_t channels, const Shape3& shape) { return {channels, shape[0], shape[1], shape[2]}; }
inline Shape3 last_three(const Shape& shape) {
    const std::size_t n = shape.size();
    return {shape[n - 3], shape[n - 2], shape[n - 1]};
}

}  // namespace segship
