#pragma once
// Which files make a case: `liver_0000.nii.gz`, `liver_0001.nii.gz` ... are the channels of the case `liver`
// (src/segship/inference/volume_cases.py).

#include <string>
#include <vector>

#include "json.hpp"

namespace segship {

struct Case {
    std::string name;                // of its label file, without ending
    std::vector<std::string> files;  // one a channel, in order; one alone where a file holds all channels
};

struct FoundCases {
    std::vector<Case> cases;            // sorted by name
    std::vector<std::string> problems;  // what is wrong with others, a line each
    std::vector<std::string> notes;     // files left out because they have no channel number
};

// The cases in folders and files. Raises UsageError for a path that is not there, or nothing found.
FoundCases find_cases(const std::vector<std::string>& inputs, const Json& manifest);

// 'liver' of 'liver_0000.nii.gz' and of 'liver.nii.gz'; a `folder_file` is called by its folder.
std::string case_name(const std::string& path, const std::string& ending, const std::string& folder_file = "");

}  // namespace segship
