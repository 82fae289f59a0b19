#pragma once
// Which variant of a package to run: src/segship/inference/precision.py in C++.

#include <string>

#include "json.hpp"

namespace segship {

// `auto` takes a variant whose recorded loss of the package's own metric is at most this.
constexpr double AUTO_MAX_DROP = 0.002;

struct Choice {
    std::string precision;
    std::string reason;
};

// "fp32" ... for any name or alias; "auto" stays. UsageError for an unknown name.
std::string canonical_precision(const std::string& name);

// The variant to run. PrecisionMissing when the package does not have the one asked for.
Choice choose_precision(const Json& manifest, const std::string& wanted, double max_drop = AUTO_MAX_DROP);

}  // namespace segship
