#pragma once
// Pictures through an opened package, for the public API and for the program.

#include "images.hpp"
#include "opened.hpp"
#include "predict2d.hpp"

namespace segship {

// Decode one picture by the package's reading rules. PackageError for a package of volumes.
Image read_picture(const Opened& model, const std::string& path, Keep keep = {});

// The answer for one picture, as the command line or the API asks for it.
Prediction2d predict_picture(const Opened& model, const Image& picture, const Run2d& run);

// Pixels of one network input of a package that takes several sizes, at most; 0 where nobody knows, or it takes one.
std::size_t pixels_at_once(const Json& manifest);

// Every stage of a picture as one npz, with the keys of Predictor.trace; further outputs as network_1 ...
void write_stages(const Prediction2d& found, const std::string& path);

// Fields of the public answer.
void fill_prediction(Prediction& answer, const Prediction2d& found, const Ask& ask);

}  // namespace segship
