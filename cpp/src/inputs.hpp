#pragma once
// Which files a run takes and how their results are called: find_inputs and output_names of src/segship/inference in C++.

#include <set>
#include <string>
#include <vector>

namespace segship {

// Files named by paths, patterns and folders: in the order given, folders walked recursively and sorted. Folders and
// patterns give only files with an image's suffix, and none of `left_out` (real paths); a file named outright is always
// taken. Each file comes once. UsageError for a path that does not exist or a folder without images.
std::vector<std::string> find_inputs(const std::vector<std::string>& inputs, const std::set<std::string>& left_out = {});

// The path without "." and doubled slashes, as Python's Path has it; ".." stays, as a link may stand before it.
std::string tidied(const std::string& path);

// Names for the inputs' results, without suffix: unlike each other also where case does not count. The stem, where all
// stems differ, else the path below the inputs' common folder; where two files differ in their suffix alone, that suffix
// becomes part of the name (cell_jpg).
std::vector<std::string> output_names(const std::vector<std::string>& inputs);

// The path with links resolved as far as it exists.
std::string real_path(const std::string& path);

}  // namespace segship
