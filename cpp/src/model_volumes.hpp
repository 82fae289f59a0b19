#pragma once
// Volumes through an opened package, for the public API and for the program.

#include <optional>

#include "opened.hpp"
#include "predict_volume.hpp"
#include "volumes.hpp"

namespace segship {

// What the command line may ask besides the API's options.
struct VolumeAsk {
    bool probabilities = false;
    bool stages = false;
    bool half_sums = false;
    std::string previous_labels;  // file with the labels of a cascade's first stage; empty: its package runs
    Progress progress;
};

// Read one case by the package's reading rules. PackageError for a package of pictures.
Volume read_case(const Opened& model, const std::vector<std::string>& files, const std::string& name = "");

// The answer for one case; of a cascade the first stage runs before, or its labels are read.
VolumePrediction predict_case(const Opened& model, Volume volume, const VolumeAsk& ask);

// Every stage of a case as one npz, with the keys of Predictor.trace.
void write_stages(const VolumePrediction& found, const std::string& path);

// Fields of the public answer.
void fill_prediction(Prediction& answer, VolumePrediction found);

}  // namespace segship
