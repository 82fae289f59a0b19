#include "opened.hpp"

#include <algorithm>
#include <filesystem>

#include "files.hpp"
#include "manifest.hpp"
#include "predict_volume.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

std::string joined(const std::vector<std::string>& names, const std::string& without) {
    std::string text;
    for (const std::string& name : names) {
        const bool begins = name.compare(0, without.size(), without) == 0;
        text += (text.empty() ? "" : ", ") + (begins ? name.substr(without.size()) : name);
    }
    return text;
}

void check(const Options& options) {
    if (options.batch < 1 || options.streams < 1 || options.threads < 0) {
        throw UsageError("batch, streams and threads are at least 1, got " + std::to_string(options.batch) + ", " +
                         std::to_string(options.streams) + ", " + std::to_string(options.threads));
    }
    if (options.step_size < 0 || options.step_size > 1) {
        throw UsageError("step size is a part of the window, above 0 and up to 1, not " + std::to_string(options.step_size));
    }
}

}  // namespace

std::vector<std::size_t> chosen_members(const std::vector<std::string>& folds, const Json& manifest) {
    const auto members = manifest.at("network").at("members").get<std::vector<std::string>>();
    std::vector<std::size_t> chosen;
    for (const std::string& name : folds) {
        const auto found = std::find_if(members.begin(), members.end(), [&](const std::string& member) {
            return member == name || member == "fold_" + name;
        });
        if (found == members.end()) {
            throw UsageError("the package has no fold '" + name + "'; it has: " + joined(members, "fold_"));
        }
        const auto index = static_cast<std::size_t>(found - members.begin());
        if (std::find(chosen.begin(), chosen.end(), index) == chosen.end()) chosen.push_back(index);
    }
    return chosen;
}

std::vector<NetworkRun> Opened::networks() const {
    const std::vector<NetworkRun> all = members->runs(options.batch);
    const std::vector<std::size_t> chosen = chosen_members(options.folds, manifest());
    if (chosen.empty()) return all;
    std::vector<NetworkRun> some;
    for (const std::size_t index : chosen) some.push_back(all.at(index));
    return some;
}

std::unique_ptr<Opened> open_model(std::unique_ptr<Package> package, const Options& options) {
    check(options);
    auto model = std::make_unique<Opened>();
    model->options = options;
    model->package = std::move(package);
    const Json& manifest = model->manifest();
    chosen_members(options.folds, manifest);  // a fold that is not there shows now
    model->choice = choose_precision(manifest, options.precision);
    SessionOptions session;
    session.precision = model->choice.precision;
    session.threads = options.threads;
    session.streams = options.streams;
    session.cache_dir = options.cache_dir.empty() ? cache_folder() + "/compiled/openvino" : options.cache_dir;
    if (model->takes_volumes()) session.static_shape = lone_window(manifest);
    model->members = std::make_unique<Members>(*model->package, *find_variant(manifest, model->choice.precision), session);
    model->members->open(options.batch);
    return model;
}

std::unique_ptr<Opened> open_model(const std::string& path, const Options& options) {
    check(options);
    return open_model(Package::open(path), options);
}

const Opened& previous_stage(const Opened& model) {
    const std::lock_guard<std::mutex> lock(model.guard);
    if (model.previous) return *model.previous;
    const Json& link = model.manifest().at("previous_stage");
    const std::string name = field<std::string>(model.manifest(), "name");
    const std::string file = field<std::string>(link, "file");
    std::string path = model.options.previous_stage;
    if (path.empty()) path = (fs::path(model.package->path()).parent_path() / file).string();
    std::error_code failed;
    if (!fs::exists(path, failed)) {
        throw InputError("package '" + name + "' continues another: put " + file +
                         " beside it, name it with --previous-stage, or give its labels with --prev-stage-predictions");
    }
    Options options = model.options;
    options.precision = "fp32";  // its precision, folds and window are its own
    options.folds.clear();
    options.batch = 1;
    options.previous_stage.clear();
    std::unique_ptr<Package> package = Package::open(path);
    const std::string wanted = field_or<std::string>(link, "sha256", "");
    if (package->manifest().at("input").at("kind") != "volume") {
        throw PackageError(path + " takes pictures; it is not the first stage of '" + name + "'");
    }
    if (!wanted.empty() && wanted != package->sha256() && wanted != package->network_sha256()) {
        throw PackageError(path + " is not the package that '" + name + "' was made to continue; export '" + name +
                           "' again with --previous-stage");
    }
    if (!package->manifest().at("previous_stage").is_null()) {
        throw PackageError(path + " continues another package itself; it is not the first stage of '" + name + "'");
    }
    model.previous = open_model(std::move(package), options);
    return *model.previous;
}

}  // namespace segship
