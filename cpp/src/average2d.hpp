#pragma once
// An ensemble as one function on arrays, its members averaged by the manifest's rule (the averaging of
// src/segship/inference/members.py).

#include <vector>

#include "array.hpp"
#include "json.hpp"

namespace segship {

// True where outputs leave `run_members` after the activation: an ensemble that averages probabilities.
bool averages_probabilities(const Json& manifest);

// (N, C, h, w) to all outputs (N, K, h', w').
std::vector<Array<float>> run_members(const std::vector<NetworkRun>& members, const Array<float>& x, const Json& manifest);

}  // namespace segship
