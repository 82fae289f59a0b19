#include "predict_volume.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "volume_chain.hpp"
#include "volume_decode.hpp"
#include "volume_network.hpp"

namespace segship {
namespace {

void check_finite(const Array<float>& scores, const std::string& name) {
    if (std::all_of(scores.data.begin(), scores.data.end(), [](float value) { return std::isfinite(value); })) return;
    throw EngineError(name + ": the network's output holds NaN or infinite values; try --precision fp32");
}

void keep_stage(VolumePrediction& found, const char* name, const Array<float>& values) { found.stages.push_back({name, values}); }

// The decision in its own form: labels, or masks for independent classes.
Array<float> decoded(const VolumePrediction& found) {
    if (!found.masks.data.empty()) return Array<float>(found.masks.shape, {found.masks.data.begin(), found.masks.data.end()});
    return Array<float>(found.labels.shape, {found.labels.data.begin(), found.labels.data.end()});
}

}  // namespace

VolumePrediction predict_volume(Volume volume, const Json& manifest, const std::vector<NetworkRun>& members,
                                const VolumeOptions& options, const LabelMap* previous) {
    if (members.empty()) throw UsageError("no member of the package's network was chosen; name one, or leave out --folds");
    VolumePrediction found;
    found.name = volume.name;
    found.notes = volume.notes;
    if (options.stages) keep_stage(found, "read", volume.channels);
    PreparedVolume prepared = prepare_volume(volume, manifest, previous);
    if (options.stages) keep_stage(found, "preprocessed", prepared.x);
    Scores scores = scores_of(prepared.x, manifest, members, options.tiles, options.progress);
    prepared.x = Array<float>();
    check_finite(scores.values, volume.name);
    if (options.stages) keep_stage(found, "network", scores.values);
    const auto [low, high] = std::minmax_element(scores.values.data.begin(), scores.values.data.end());
    found.constant_output = *low == *high;
    if (options.probabilities) found.probabilities = probabilities(scores, prepared.frame, manifest);
    Decided decided = decide(scores, prepared.frame, manifest);
    const bool independent = !decided.masks.data.empty();
    found.labels = std::move(decided.labels);
    found.masks = std::move(decided.masks);
    if (options.postprocess && !independent) clean(found.labels, prepared.frame, manifest);
    found.label_bits = label_bits(manifest);
    found.frame = std::move(prepared.frame);
    volume.channels.data = std::vector<float>();
    found.volume = std::move(volume);
    if (options.stages) keep_stage(found, "decoded", decoded(found));
    return found;
}

}  // namespace segship
