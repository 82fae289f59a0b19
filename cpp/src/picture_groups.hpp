#pragma once
// Several pictures of one prepared size through the network at once: `batch` of src/segship/inference/predictor.py.

#include <exception>
#include <optional>
#include <vector>

#include "model_pictures.hpp"

namespace segship {

// What became of one picture of a group: an answer, or the failure that is its own.
struct GroupAnswer {
    std::optional<Prediction2d> found;
    std::exception_ptr failure;
};

// How many pictures a group should have: the batch asked for, or that of a static variant, which would be filled up with
// repetitions otherwise; 1 where each picture fills batches by itself (windows, views) or is large.
std::size_t group_size(const Opened& model, std::size_t batch, const Run2d& run);

// The answers for pictures, in their order; those of equal prepared size share a batch.
std::vector<GroupAnswer> predict_group(const Opened& model, const std::vector<Image>& pictures, const Run2d& run);

}  // namespace segship
