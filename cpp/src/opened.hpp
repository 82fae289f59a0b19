#pragma once
// A package with its chosen variant on the engine: what the predictors of pictures and of volumes share
// (src/segship/inference/predictor.py).

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "networks.hpp"
#include "package.hpp"
#include "precision.hpp"
#include "segship/segship.hpp"

namespace segship {

struct Opened {
    Options options;
    std::unique_ptr<Package> package;
    Choice choice;
    std::unique_ptr<Members> members;

    const Json& manifest() const { return package->manifest(); }
    bool takes_volumes() const { return manifest().at("input").at("kind") == "volume"; }
    // The networks of the chosen folds, in the order they were named; all of them where none was.
    std::vector<NetworkRun> networks() const;

    // A cascade's first stage, opened when it is first needed.
    mutable std::mutex guard;
    mutable std::unique_ptr<Opened> previous;
};

// Open a package and compile its network, so that errors show now.
std::unique_ptr<Opened> open_model(const std::string& path, const Options& options);
std::unique_ptr<Opened> open_model(std::unique_ptr<Package> package, const Options& options);

// "0" or "fold_0" as indices of the manifest's members. UsageError for a fold that there is not.
std::vector<std::size_t> chosen_members(const std::vector<std::string>& folds, const Json& manifest);

// The first stage of a cascade's package. InputError where it is not there, PackageError for another package than the one
// it continues.
const Opened& previous_stage(const Opened& model);

}  // namespace segship
