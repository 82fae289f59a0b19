#include "model_pictures.hpp"

#include <utility>

#include "errors.hpp"
#include "npy.hpp"

namespace segship {

namespace {

// The decision in its own form and type, as Python's npz holds it.
void add_decoded(Npz& npz, const Prediction2d& found) {
    const std::string rule = found.rule();
    if (rule == "saliency") {
        std::visit([&](const auto& map) { npz.add("decoded", map); }, found.saliency());
    } else if (rule == "threshold") {
        npz.add_bools("decoded", found.masks());
    } else {
        npz.add("decoded", found.labels());
    }
}

}  // namespace

Image read_picture(const Opened& model, const std::string& path, Keep keep) {
    if (model.takes_volumes()) {
        throw PackageError("package '" + field<std::string>(model.manifest(), "name") + "' takes volumes, not pictures");
    }
    const ImageLimits limits{model.options.max_pixels, model.options.max_bytes};
    return read_image(path, model.manifest().at("input"), limits, keep);
}

Prediction2d predict_picture(const Opened& model, const Image& picture, const Run2d& run) {
    return predict(picture, model.manifest(), model.networks(), run);
}

std::size_t pixels_at_once(const Json& manifest) {
    if (!manifest.at("network").at("size").is_null() || manifest.at("input").at("kind") != "image") return 0;
    const Json& tiling = manifest.at("tiling");
    if (!tiling.is_null()) return elements(tiling.at("window").get<Shape>());
    for (const Json& step : manifest.at("preprocess")) {
        const std::string name = step.at("step").get<std::string>();
        if (name == "resize_keep_ratio") {
            return elements({field<std::size_t>(step, "long_side"), field<std::size_t>(step, "short_side")});
        }
        if (name == "resize") return elements({field<std::size_t>(step, "height"), field<std::size_t>(step, "width")});
        if (name == "resize_by_factor") return 0;
    }
    return 0;
}

void write_stages(const Prediction2d& found, const std::string& path) {
    Npz npz;
    for (const Stage& stage : found.stages) {
        if (stage.name != "decoded") npz.add(stage.name, stage.values);
    }
    for (std::size_t i = 1; i < found.outputs.size(); ++i) npz.add("network_" + std::to_string(i), found.outputs[i]);
    add_decoded(npz, found);
    npz.save(path);
}

void fill_prediction(Prediction& answer, const Prediction2d& found, const Ask& ask) {
    answer.name = found.name();
    answer.notes = found.notes();
    answer.stages = found.stages;
    if (found.has_labels()) answer.labels = found.labels();
    const std::string rule = found.rule();
    if (rule == "threshold" || rule == "regions") answer.masks = found.masks();
    if (rule == "saliency") {
        const Array<float> map = found.probabilities();  // (1, H, W)
        answer.saliency = {{map.shape.begin() + 1, map.shape.end()}, map.data};
    }
    if (ask.probabilities) answer.probabilities = found.probabilities();
}

}  // namespace segship
