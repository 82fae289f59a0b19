#pragma once
// The command line of segship-run: the names and meanings of `segship predict`.

#include <string>
#include <vector>

#include "options2d.hpp"
#include "segship/segship.hpp"

namespace segship {

struct Arguments {
    std::string package;
    std::vector<std::string> inputs;
    std::string out;
    Options options;
    bool streams_given = false;
    bool batch_given = false;

    // What is written.
    OutputOptions output;
    std::string format = "png";  // png, npz
    std::string grid = "input";
    bool probabilities = false;
    bool probability_images = false;
    bool overlay = false;    // also the picture with its mask drawn on it, in overlays/
    bool instances = false;  // also numbered components, in instances/
    std::string stages;  // folder; empty: none
    std::string tta;     // "1.x", "0.x"; empty: none
    std::vector<double> tta_ratios;
    bool half_sums = false;
    std::string previous_labels;  // folder
    std::size_t num_parts = 1, part_id = 0;

    bool json = false;
    bool quiet = false;
    bool help = false;
    bool version = false;

    // Options that were given and that only packages of pictures, or of volumes, have; for the refusal.
    std::vector<std::string> for_pictures, for_volumes;
};

// UsageError for arguments that cannot be used, in one line.
Arguments parse_arguments(const std::vector<std::string>& words);

extern const char* const HELP;

}  // namespace segship
