#include "predict2d.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "average2d.hpp"
#include "cutout2d.hpp"
#include "errors.hpp"
#include "postprocess2d.hpp"
#include "tiling2d.hpp"
#include "views2d.hpp"

namespace segship {
namespace {

const char* const CONSTANT = "the network's output is one constant: it sees nothing here";

Json without_variants(const Json& manifest) {
    Json recipe = Json::object();
    for (const auto& [name, value] : manifest.items()) {
        if (name != "variants") recipe[name] = value;
    }
    return recipe;
}

template <typename From>
Array<float> floats_of(const Array<From>& array) {
    return {array.shape, {array.data.begin(), array.data.end()}};
}

std::vector<double> smoothing(const Json& recipe) {
    std::vector<double> sigmas;
    for (const Json& rule : field<Json>(recipe, "postprocess")) {
        if (field<std::string>(rule, "rule") == "smooth_mask") sigmas.push_back(field<double>(rule, "sigma"));
    }
    return sigmas;
}

Array<std::uint8_t> smoothed(Array<std::uint8_t> mask, const Json& recipe) {
    for (double sigma : smoothing(recipe)) mask = smooth_mask(mask, sigma);
    return mask;
}

std::vector<int> ids_of(const std::vector<Json>& labels) {
    std::vector<int> ids;
    for (const Json& label : labels) ids.push_back(field<int>(label, "id"));
    return ids;
}

NetworkRun together(const std::vector<NetworkRun>& members, const Json& manifest) {
    return [&members, &manifest](const Array<float>& x) { return run_members(members, x, manifest); };
}

struct Answer {
    std::vector<Array<float>> outputs;
    Frame frame;
};

// The mean of the views' probabilities (K, H, W) on the picture's own grid; one view is held at a time.
Answer run_views(const Image& picture, const Json& manifest, const NetworkRun& run, const Run2d& options) {
    const Size size{picture.height(), picture.width()};
    const Json decode = field<Json>(manifest, "decode");
    const auto method = field<std::string>(decode, "restore_method"), path = field<std::string>(decode, "restore_path");
    const std::string activation = averages_probabilities(manifest) ? "none" : field<std::string>(decode, "activation");
    const std::vector<Json> views = augmented(manifest, options.tta, options.tta_ratios);
    Array<float> total;
    for (const Json& recipe : views) {
        const Prepared prepared = prepare(picture, recipe);
        const Array<float> raw = run_picture(run, prepared.x, recipe, options.batch).at(0);
        if (total.size() == 0) total = Array<float>(Shape{raw.shape[0], size.height, size.width});
        restored_bands(raw, prepared.frame, method, path, [&](std::size_t top, Array<float>& scores) {
            const std::size_t count = scores.stride(0);
            activate(scores.data.data(), scores.shape[0], count, activation);
            for (std::size_t k = 0; k < scores.shape[0]; ++k) {
                float* target = total.at(k) + top * size.width;
                for (std::size_t i = 0; i < count; ++i) target[i] += scores.at(k)[i];
            }
        });
    }
    for (float& value : total.data) value /= static_cast<float>(views.size());
    return {{std::move(total)}, Frame{picture.name, size, size, {}, picture.notes}};
}

}  // namespace

std::string Prediction2d::rule() const {
    return field<std::string>(field<Json>(field<Json>(recipe, "decode"), "decision"), "rule");
}

Size Prediction2d::size() const {
    return grid == "input" ? frame.original : Size{outputs.at(0).shape[1], outputs[0].shape[2]};
}

bool Prediction2d::constant_output() const {
    const Array<float>& raw = outputs.at(0);
    for (std::size_t k = 0; k < raw.shape[0]; ++k) {
        const float* plane = raw.at(k);
        if (std::any_of(plane, plane + raw.stride(0), [&](float value) { return value != plane[0]; })) return false;
    }
    return true;
}

std::vector<std::string> Prediction2d::notes() const {
    std::vector<std::string> said = frame.notes;
    if (constant_output()) said.emplace_back(CONSTANT);
    return said;
}

std::vector<Json> Prediction2d::classes() const { return class_labels(recipe); }

std::vector<bool> Prediction2d::foreground_classes() const {
    const bool everything = !has_background(recipe);
    std::vector<bool> chosen;
    for (int id : ids_of(classes())) chosen.push_back(everything || id != 0);
    const bool any = std::find(chosen.begin(), chosen.end(), true) != chosen.end();
    return any ? chosen : std::vector<bool>(chosen.size(), true);
}

Array<float> Prediction2d::probabilities() const {
    if (rule() != "saliency") return scores_on_grid(outputs.at(0), field<Json>(recipe, "decode"), restored(), activated);
    const SaliencyMap& map = saliency();
    Array<float> values = std::visit([](const auto& array) { return floats_of(array); }, map);
    if (std::holds_alternative<Array<std::uint8_t>>(map)) {
        for (float& value : values.data) value /= 255.0F;
    }
    values.shape.insert(values.shape.begin(), 1);
    return values;
}

const SaliencyMap& Prediction2d::map() const {
    if (!map_) map_ = saliency_map(outputs.at(0), field<Json>(recipe, "decode"), restored(), activated);
    return *map_;
}

const SaliencyMap& Prediction2d::saliency() const {
    if (rule() != "saliency") {
        throw UsageError("this network gives classes, not a saliency map; take its masks, labels or probabilities");
    }
    if (smoothing(recipe).empty()) return map();
    if (!saliency_) {
        Array<std::uint8_t> cleaned = smoothed(levels_of(map()), recipe);
        if (std::holds_alternative<Array<std::uint8_t>>(map())) {
            saliency_ = std::move(cleaned);
        } else {
            Array<float> values = floats_of(cleaned);
            for (float& value : values.data) value /= 255.0F;
            saliency_ = std::move(values);
        }
    }
    return *saliency_;
}

Array<std::uint8_t> Prediction2d::threshold_classes() const {
    Array<std::uint8_t> found = threshold_masks(outputs.at(0), field<Json>(recipe, "decode"), restored(), activated);
    const Json rules = field<Json>(recipe, "postprocess");
    if (rule() != "threshold" || rules.empty()) return found;
    const std::vector<int> ids = ids_of(classes());
    for (std::size_t k = 0; k < found.shape[0]; ++k) {
        const Shape plane(found.shape.begin() + 1, found.shape.end());
        const Array<std::uint8_t> clean = clean_mask({plane, {found.at(k), found.at(k) + found.stride(0)}}, rules, ids.at(k));
        std::copy(clean.data.begin(), clean.data.end(), found.at(k));
    }
    return found;
}

const Array<std::uint8_t>& Prediction2d::masks() const {
    if (masks_) return *masks_;
    const std::string decision = rule();
    if (decision == "threshold" || decision == "regions") {
        masks_ = threshold_classes();
        return *masks_;
    }
    const Array<std::uint16_t>& map = labels();
    const std::vector<int> ids = decision == "argmax" ? ids_of(classes()) : std::vector<int>{-1};
    Array<std::uint8_t> found(Shape{ids.size(), map.shape[0], map.shape[1]});
    for (std::size_t k = 0; k < ids.size(); ++k) {
        std::transform(map.data.begin(), map.data.end(), found.at(k), [&](std::uint16_t label) {
            return static_cast<std::uint8_t>(ids[k] < 0 ? label != 0 : label == ids[k]);
        });
    }
    masks_ = std::move(found);
    return *masks_;
}

bool Prediction2d::has_labels() const {
    const Json decision = field<Json>(field<Json>(recipe, "decode"), "decision");
    return rule() != "saliency" || (decision.contains("threshold") && !decision.at("threshold").is_null());
}

Array<std::uint16_t> Prediction2d::label_ids() const {
    const Json decode = field<Json>(recipe, "decode"), decision = field<Json>(decode, "decision");
    const Json rules = field<Json>(recipe, "postprocess");
    const std::string kind = rule();
    if (kind == "saliency") {
        if (!has_labels()) {
            throw UsageError("a saliency map is no decision and this package sets no threshold; take its probabilities");
        }
        // a clean-up belongs behind the decision
        const float limit = static_cast<float>(field<double>(decision, "threshold"));
        const Array<std::uint8_t> chosen = std::visit(
            [&](const auto& levels) {
                Array<std::uint8_t> out(levels.shape);
                const float scale = std::is_same_v<std::decay_t<decltype(levels.data[0])>, float> ? 1.0F : 255.0F;
                std::transform(levels.data.begin(), levels.data.end(), out.data.begin(), [&](auto value) {
                    return static_cast<std::uint8_t>(static_cast<float>(value) / scale > limit ? 255 : 0);
                });
                return smoothed(std::move(out), recipe);
            },
            map());
        Array<std::uint16_t> out(chosen.shape);
        std::transform(chosen.data.begin(), chosen.data.end(), out.data.begin(),
                       [](std::uint8_t value) { return static_cast<std::uint16_t>(value != 0); });
        return out;
    }
    if (kind == "regions") return clean_labels(region_labels(masks(), field<std::vector<int>>(decision, "order")), rules);
    const std::vector<int> ids = ids_of(classes());
    if (kind == "threshold") return region_labels(masks(), ids);
    Array<std::uint16_t> index = argmax_index(outputs.at(0), decode, restored(), activated);
    for (std::uint16_t& value : index.data) value = static_cast<std::uint16_t>(ids[value]);
    return clean_labels(std::move(index), rules);
}

const Array<std::uint16_t>& Prediction2d::labels() const {
    if (!labels_) labels_ = label_ids();
    return *labels_;
}

Array<float> Prediction2d::decoded() const {
    if (rule() == "saliency") return std::visit([](const auto& array) { return floats_of(array); }, saliency());
    return rule() == "threshold" ? floats_of(masks()) : floats_of(labels());
}

Array<std::uint32_t> Prediction2d::instances(const std::string& connectivity) const {
    const Array<std::uint8_t>& found = masks();
    const std::vector<bool> shown = rule() == "argmax" ? foreground_classes() : std::vector<bool>(found.shape[0], true);
    Array<std::uint32_t> out(Shape{0, found.shape[1], found.shape[2]});
    for (std::size_t k = 0; k < found.shape[0]; ++k) {
        if (!shown[k]) continue;
        const Array<std::uint8_t> mask(Shape{found.shape[1], found.shape[2]}, {found.at(k), found.at(k) + found.stride(0)});
        const Components2d numbered = components(mask, connectivity);
        out.data.insert(out.data.end(), numbered.numbers.data.begin(), numbered.numbers.data.end());
        ++out.shape[0];
    }
    if (out.shape[0] == 1) out.shape.erase(out.shape.begin());
    return out;
}

Prediction2d Prediction2d::on_grid(const std::string& other) const {
    if (other != "input" && other != "network") throw UsageError("grid is one of input, network, not '" + other + "'");
    Prediction2d found = *this;
    if (other == grid) return found;
    found.grid = other;
    found.map_.reset();
    found.saliency_.reset();
    found.masks_.reset();
    found.labels_.reset();
    return found;
}

Prediction2d Prediction2d::decided(const OutputOptions& options) const {
    Prediction2d found = *this;
    const bool cleaned = options.clean_mask && (rule() == "saliency" || rule() == "threshold");
    if (!options.has_threshold() && !cleaned) return found;
    if (options.has_threshold()) found.recipe["decode"]["decision"]["threshold"] = options.threshold;
    if (cleaned) found.recipe["postprocess"].push_back(Json{{"rule", "smooth_mask"}, {"sigma", CLEANING_SIGMA}});
    found.saliency_.reset();
    found.masks_.reset();
    found.labels_.reset();
    return found;
}

Prediction2d decode(std::vector<Array<float>> outputs, const Frame& frame, const Json& manifest, bool activated,
                    const std::string& grid) {
    const Array<float>& raw = outputs.at(0);
    const auto expected = field<std::size_t>(field<Json>(field<Json>(manifest, "network"), "outputs").at(0), "channels");
    if (raw.rank() != 3 || raw.shape[0] != expected) {
        throw PackageError("the graph gives " + std::to_string(raw.rank()) + " axes for one picture and the manifest says " +
                           std::to_string(expected) + " channel(s) of two; export the package again");
    }
    if (!std::all_of(raw.data.begin(), raw.data.end(), [](float value) { return std::isfinite(value); })) {
        throw EngineError(frame.name + ": the network's output holds NaN or infinite values; try --precision fp32");
    }
    if (grid != "input" && grid != "network") throw UsageError("grid is one of input, network, not '" + grid + "'");
    Prediction2d found;
    found.frame = frame;
    found.recipe = without_variants(manifest);
    found.outputs = std::move(outputs);
    found.activated = activated;
    found.grid = grid;
    return found;
}

Prediction2d predict(const Image& picture, const Json& manifest, const std::vector<NetworkRun>& members, const Run2d& options) {
    if (members.empty()) throw PackageError("the package has no network; export it again");
    if (options.batch < 1) throw UsageError("batch is at least 1, got 0");
    const NetworkRun run = together(members, manifest);
    const bool views = !options.tta.empty();
    Answer answer;
    Array<float> x;
    if (views) {
        answer = run_views(picture, manifest, run, options);
    } else {
        Prepared prepared = prepare(picture, manifest);
        answer = {run_picture(run, prepared.x, manifest, options.batch), std::move(prepared.frame)};
        if (options.stages) x = std::move(prepared.x);
    }
    const bool activated = views || averages_probabilities(manifest);
    Prediction2d found = decode(std::move(answer.outputs), answer.frame, manifest, activated, options.grid);
    found.colors = picture.colors;
    found.alpha = picture.alpha;
    if (options.stages) {
        found.stages.push_back({"read", as_floats(picture.pixels)});
        if (!views) found.stages.push_back({"preprocessed", std::move(x)});
        found.stages.push_back({"network", found.outputs[0]});
        found.stages.push_back({"decoded", found.decoded()});
    }
    return found;
}

Prediction2d predict(const Image& picture, const Json& manifest, const NetworkRun& run, const Run2d& options) {
    return predict(picture, manifest, std::vector<NetworkRun>{run}, options);
}

}  // namespace segship
