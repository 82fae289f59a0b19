#pragma once
// Where a file's axes point, and how an array is turned, as nibabel.orientations has it.

#include <optional>
#include <string>

#include "volume.hpp"

namespace segship {

// For each axis of the file the direction (0 right, 1 front, 2 head) that it changes most; none where the affine does
// not say (a column of zeros).
std::optional<Orientation> io_orientation(const Affine& affine);

// 'RAS' and the like; PackageError for letters that do not name three directions.
Orientation orientation_of(const std::string& letters);

// What turns axes of the first orientation into the second.
Orientation transform_between(const Orientation& start, const Orientation& end);

bool is_identity(const Orientation& turn);

// The affine of an array of `shape` after `turn`, expressed for the turned array's voxels.
Affine turned_affine(const Affine& affine, const Orientation& turn, const std::vector<std::size_t>& shape);

// The inverse of what `turn` does to voxel indices: nibabel's inv_ornt_aff.
Affine undo_turn(const Orientation& turn, const std::vector<std::size_t>& shape);

Affine multiply(const Affine& a, const Affine& b);
// Of an affine map; the last row is (0, 0, 0, 1). NaN where there is none.
Affine inverse(const Affine& affine);

// 'LPS' and the like: where each axis of a file points; '?' for one that does not say.
std::string directions(const Affine& affine);

}  // namespace segship
