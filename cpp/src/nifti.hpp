#pragma once
// NIfTI files (.nii, .nii.gz): bytes to an array with its geometry, and labels back under the same header.
//
// libnifti knows the headers' layouts, byte orders and quaternions; what a header may say, and what is mended in it, is
// decided here as nibabel decides it, because labels must not depend on who reads the file. The bytes are judged before
// they are unpacked: how large the header says it is, whether the file holds that much, whether its check sum is right.

#include <cstdint>
#include <string>
#include <vector>

#include "gzip.hpp"
#include "volume.hpp"
#include "volume_text.hpp"

namespace segship {

// What the file says of itself. Axes are the file's own: the first runs fastest.
struct NiftiHeader {
    std::vector<std::uint8_t> block;  // as it stands in the file
    std::vector<std::size_t> shape;   // trailing axes of one voxel beyond the third are left out
    std::vector<double> zooms;        // pixdim of the axes in `shape`
    Affine affine{};                  // voxel to millimetres, x to the right, y to the front, z to the head
    int datatype = 0;                 // NIfTI's code
    std::size_t itemsize = 1;         // bytes a voxel
    bool swapped = false;             // of another byte order than this machine's
    std::size_t offset = 0;           // where the voxels begin
    double slope = 1, intercept = 0;
    double unit_mm = 1;        // length of the header's unit in millimetres; only SimpleITK looks at it
    bool orthonormal = true;   // are the axes at right angles? SimpleITK reads no others
};

// The header from a file's first bytes (544 of them, or all). Raises InputError.
NiftiHeader parse_header(const std::vector<std::uint8_t>& first, const std::string& name);

// `count` numbers of the header's type and byte order, slope and intercept applied in double precision, as float.
void to_floats(const NiftiHeader& header, const std::uint8_t* bytes, std::size_t count, float* into);

struct NiftiFile {
    NiftiHeader header;
    // The last axis first (C order): slope and intercept applied in double precision, then rounded once.
    Array<float> values;
};

// Raises InputError for what is no NIfTI, holds less than its header says, fails its check sum, holds colours or complex
// numbers, or exceeds `limits` (judged by the header, before anything is unpacked).
NiftiFile read_nifti(ByteSource& source, const VolumeLimits& limits, const std::string& name);

// A header block for labels of the file's own axes `shape` on the grid of another file. Position, spacing, units and texts
// stay as they are, byte for byte; only what describes the numbers is new.
std::vector<std::uint8_t> labels_header(const std::vector<std::uint8_t>& block, const std::vector<std::size_t>& shape,
                                        int bits);

// A header block for a grid that did not come from a NIfTI file.
std::vector<std::uint8_t> new_header(const Affine& affine, const std::vector<double>& zooms);

// A whole .nii or .nii.gz of labels. `labels` has the file's last axis first, `shape` is in the file's order.
std::vector<std::uint8_t> encode_nifti(const LabelMap& labels, const std::vector<std::size_t>& shape, int bits,
                                       const std::vector<std::uint8_t>& block, bool packed);

}  // namespace segship
