#pragma once
// One picture through a package: prepared, run (windows, views, members), decoded, and what may be asked of the answer.
// src/segship/inference/{predictor,prediction}.py in C++.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "decode2d.hpp"
#include "image.hpp"
#include "json.hpp"
#include "options2d.hpp"
#include "preprocess2d.hpp"

namespace segship {

// How one picture is run.
struct Run2d {
    // Windows that go through the network at once.
    std::size_t batch = 1;
    // Average the views of test-time augmentation: "1.x" or "0.x" (whose rule); empty: no augmentation.
    std::string tta;
    // Other sizes than the package's.
    std::vector<double> tta_ratios;
    // "input" or "network".
    std::string grid = "input";
    // Keep "read", "preprocessed", "network" and "decoded".
    bool stages = false;
};

// What the network says about one picture, on the picture's own grid (or the network's). Each answer is computed when it
// is first asked for.
class Prediction2d {
public:
    Frame frame;
    // The manifest without its variants, with this prediction's own decision.
    Json recipe;
    // Raw outputs (K, h, w); the first is the answer.
    std::vector<Array<float>> outputs;
    // The outputs are probabilities already.
    bool activated = false;
    std::string grid = "input";
    std::vector<Stage> stages;
    // uint8 (H, W, 3) RGB as the file shows it and its alpha (H, W), for cutouts and overlays; empty where not kept.
    Array<std::uint8_t> colors;
    Array<std::uint8_t> alpha;

    const std::string& name() const { return frame.name; }
    // "threshold", "argmax", "regions" or "saliency".
    std::string rule() const;
    // (height, width) of labels, masks and probabilities.
    Size size() const;
    // What a user should know: that only a first frame was used, that the output is constant …
    std::vector<std::string> notes() const;
    bool constant_output() const;
    // The label of each channel of masks and probabilities.
    std::vector<Json> classes() const;
    // Which of them are objects: all but the one of id 0 where that is a background.
    std::vector<bool> foreground_classes() const;

    // (K, H, W) of 0..1; a saliency map is one channel.
    Array<float> probabilities() const;
    // UsageError where the network gives classes.
    const SaliencyMap& saliency() const;
    // (K, H, W) of 0 and 1; overlapping where classes are independent.
    const Array<std::uint8_t>& masks() const;
    // (H, W) ids. UsageError for a saliency map without a threshold (see `has_labels`).
    const Array<std::uint16_t>& labels() const;
    bool has_labels() const;
    // The decision in its own form, as floats: masks, labels or the map.
    Array<float> decoded() const;
    // Connected components numbered 1, 2, 3 …: (H, W) for one class, (K, H, W) for more.
    Array<std::uint32_t> instances(const std::string& connectivity = "face") const;

    // The same answer on another grid, or decided as the options say.
    Prediction2d on_grid(const std::string& other) const;
    Prediction2d decided(const OutputOptions& options) const;

private:
    const Frame* restored() const { return grid == "input" ? &frame : nullptr; }
    Array<std::uint8_t> threshold_classes() const;
    Array<std::uint16_t> label_ids() const;
    const SaliencyMap& map() const;

    mutable std::optional<SaliencyMap> map_;
    mutable std::optional<SaliencyMap> saliency_;
    mutable std::optional<Array<std::uint8_t>> masks_;
    mutable std::optional<Array<std::uint16_t>> labels_;
};

// Predict one picture. `members` are the package's networks in the manifest's order (one, or an ensemble's).
Prediction2d predict(const Image& picture, const Json& manifest, const std::vector<NetworkRun>& members,
                     const Run2d& options = {});
Prediction2d predict(const Image& picture, const Json& manifest, const NetworkRun& run, const Run2d& options = {});

// The prediction from the network's outputs, each (K, h, w), for those who run batches themselves: prepare, stack, run,
// decode. PackageError when the first output has other channels than the manifest says, EngineError for NaN.
Prediction2d decode(std::vector<Array<float>> outputs, const Frame& frame, const Json& manifest, bool activated = false,
                    const std::string& grid = "input");

}  // namespace segship
