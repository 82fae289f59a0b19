#include "model_volumes.hpp"

#include <utility>

#include "errors.hpp"
#include "npy.hpp"
#include "volume_formats.hpp"
#include "volume_view.hpp"

namespace segship {

namespace {

TileOptions tiles_of(const Options& options, bool half_sums) {
    TileOptions tiles;
    if (options.step_size > 0) tiles.step_size = options.step_size;
    tiles.mirror = options.mirror;
    if (options.some_mirror_axes) tiles.mirror_axes = options.mirror_axes;
    if (options.batch > 1) tiles.batch = options.batch;
    tiles.half_sums = half_sums;
    return tiles;
}

// Labels of the first stage on the case's own grid; none where the package continues no other.
std::optional<LabelMap> labels_before(const Opened& model, const Volume& volume, const VolumeAsk& ask) {
    if (model.manifest().at("previous_stage").is_null()) return std::nullopt;
    if (!ask.previous_labels.empty()) return read_labels(ask.previous_labels, model.manifest());
    if (volume.previous) return volume.previous;
    const Opened& first = previous_stage(model);
    VolumeOptions options;
    options.tiles = tiles_of(model.options, ask.half_sums);
    options.tiles.batch = 0;
    return predict_volume(volume, first.manifest(), first.networks(), options).labels;
}

}  // namespace

Volume read_case(const Opened& model, const std::vector<std::string>& files, const std::string& name) {
    if (!model.takes_volumes()) {
        throw PackageError("package '" + field<std::string>(model.manifest(), "name") + "' takes pictures, not volumes");
    }
    VolumeLimits limits;  // volumes may be larger than pictures, unless the user says how large
    const Options& options = model.options;
    if (options.max_pixels != Options{}.max_pixels) limits.max_pixels = options.max_pixels;
    if (options.max_bytes != Options{}.max_bytes) limits.max_bytes = options.max_bytes;
    if (files.size() == 1 && ends_with(lower(files[0]), ".npz")) return read_sample(files[0], limits, name);
    return read_volume(files, model.manifest(), limits, name);
}

VolumePrediction predict_case(const Opened& model, Volume volume, const VolumeAsk& ask) {
    const std::optional<LabelMap> before = labels_before(model, volume, ask);
    VolumeOptions options;
    options.tiles = tiles_of(model.options, ask.half_sums);
    options.probabilities = ask.probabilities;
    options.stages = ask.stages;
    options.postprocess = model.options.postprocess;
    options.progress = ask.progress;
    return predict_volume(std::move(volume), model.manifest(), model.networks(), options, before ? &*before : nullptr);
}

void write_stages(const VolumePrediction& found, const std::string& path) {
    Npz npz;
    for (const Stage& stage : found.stages) {
        if (stage.name != "decoded") npz.add(stage.name, stage.values);
    }
    if (found.masks.size() != 0) npz.add_bools("decoded", found.masks);
    else npz.add_labels("decoded", found.labels, found.label_bits == 8);
    npz.save(path);
}

void fill_prediction(Prediction& answer, VolumePrediction found) {
    answer.name = found.name;
    answer.notes = std::move(found.notes);
    answer.stages = std::move(found.stages);
    answer.masks = std::move(found.masks);
    answer.probabilities = std::move(found.probabilities);
    answer.labels = std::move(found.labels);
}

}  // namespace segship
