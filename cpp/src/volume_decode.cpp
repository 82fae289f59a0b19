#include "volume_decode.hpp"

#include <algorithm>
#include <cmath>

#include "components.hpp"
#include "decode2d.hpp"
#include "enlarge.hpp"
#include "errors.hpp"
#include "half.hpp"
#include "volume_chain.hpp"
#include "volume_grid.hpp"

namespace segship {
namespace {

// How scores are resampled on their way back.
Rule restore_rule(const Json& decode) {
    Rule out;
    out.kind = resample_kind(field<std::string>(decode, "restore_method"), "restore method");
    out.order = field_or<int>(decode, "restore_order", 1);
    out.separate_z = field_or<std::string>(decode, "restore_separate_z", "auto");
    out.anisotropy_threshold = field_or<double>(decode, "anisotropy_threshold", 3.0);
    return out;
}

// Cut off what was padded after the last resampling, and the moves that are left to undo.
std::vector<Moved> before_resampling(Array<float>& scores, const VolumeFrame& frame) {
    std::vector<Moved> moved = frame.moved;
    while (!moved.empty() && moved.back().kind == Moved::Kind::pad) {
        scores = boxed(scores, moved.back().start, moved.back().before);
        moved.pop_back();
    }
    return moved;
}

// The last resampling, taken off the moves; a step between equal grids where there is none.
Moved last_resampling(std::vector<Moved>& moved, const Shape3& shape, const VolumeFrame& frame) {
    if (!moved.empty() && moved.back().kind == Moved::Kind::resample) {
        const Moved out = moved.back();
        moved.pop_back();
        return out;
    }
    Moved out;
    out.kind = Moved::Kind::resample;
    out.before = out.after = shape;
    out.before_spacing = out.after_spacing = frame.spacing;
    return out;
}

template <typename T>
Array<T> uncropped(const Array<T>& array, const Moved& step, T fill) {
    if (step.before == step.after) return array;
    Array<T> out(as_shape(step.before), fill);
    const T* from = array.data.data();
    for (std::size_t z = 0; z < step.after[0]; ++z) {
        for (std::size_t y = 0; y < step.after[1]; ++y, from += step.after[2]) {
            T* into = out.data.data() + ((step.start[0] + z) * step.before[1] + step.start[1] + y) * step.before[2] + step.start[2];
            std::copy(from, from + step.after[2], into);
        }
    }
    return out;
}

// Undo crops, pads and transposes; what was cropped away gets `fill`.
template <typename T>
Array<T> back(Array<T> array, const std::vector<Moved>& moved, T fill) {
    for (auto step = moved.rbegin(); step != moved.rend(); ++step) {
        if (step->kind == Moved::Kind::transpose) {
            std::array<std::size_t, 3> axes{};
            for (std::size_t i = 0; i < 3; ++i) axes[step->axes[i]] = i;
            if (axes != std::array<std::size_t, 3>{0, 1, 2}) array = transposed(array, axes);
        } else if (step->kind == Moved::Kind::crop) {
            if (step->before != step->after) array = uncropped(array, *step, fill);
        } else if (step->kind == Moved::Kind::pad) {
            array = boxed(array, step->start, step->before);
        } else {
            throw PackageError("the package resamples twice; labels can be put back over one resampling only");
        }
    }
    return array;
}

// One class of scores that were summed in float16, as nnU-Net v2 has it: resampled in double precision and rounded to
// float16 again, torch's functions excepted.
Array<float> half_resampled(const Array<float>& scores, std::size_t k, const Moved& step, const Rule& rule) {
    const Shape3 have = last_three(scores.shape);
    if (rule.kind != Rule::Kind::spline || step.before == have) {
        Array<float> part = resample_one(scores, k, step.before, rule, step.after_spacing, step.before_spacing);
        if (rule.kind != Rule::Kind::torch && step.before != step.after) {
            for (float& value : part.data) value = rounded_to_half(value);
        }
        return part;
    }
    const std::vector<double> wide(scores.at(k), scores.at(k) + count(have));
    std::vector<double> made(count(step.before));
    resample_channel(wide.data(), have, step.before, rule, separate_axis(rule, step.after_spacing, step.before_spacing), made.data());
    Array<float> part(as_shape(step.before));
    for (std::size_t i = 0; i < part.size(); ++i) part.data[i] = half_to_float(double_to_half(made[i]));
    return part;
}

// The first of equal ones wins.
LabelMap half_argmax(const Array<float>& scores, const Moved& step, const Rule& rule) {
    LabelMap index(as_shape(step.before));
    Array<float> best;
    for (std::size_t k = 0; k < scores.shape[0]; ++k) {
        Array<float> part = half_resampled(scores, k, step, rule);
        if (k == 0) {
            best = std::move(part);
            continue;
        }
        for (std::size_t i = 0; i < index.size(); ++i) {
            if (!(part.data[i] > best.data[i])) continue;
            index.data[i] = static_cast<std::uint16_t>(k);
            best.data[i] = part.data[i];
        }
    }
    return index;
}

void activate_all(Array<float>& scores, const Json& decode) {
    activate(scores.data.data(), scores.shape[0], scores.stride(0), field<std::string>(decode, "activation"));
}

// Each class by itself, whatever the others say.
void activate_each(Array<float>& scores, const Json& decode) {
    const auto activation = field<std::string>(decode, "activation");
    activate(scores.data.data(), 1, scores.size(), activation);
}

std::vector<std::uint16_t> class_ids(const Json& manifest) {
    std::vector<std::uint16_t> out;
    for (const auto& label : manifest.at("labels")) out.push_back(field<std::uint16_t>(label, "id"));
    return out;
}

LabelMap exclusive(Scores& scores, const Moved& step, const Rule& rule, const std::vector<Moved>& rest, bool resampled, const Json& manifest) {
    LabelMap index = scores.half && resampled
                         ? half_argmax(scores.values, step, rule)
                         : argmax_on_grid(scores.values, step.before, rule, step.after_spacing, step.before_spacing);
    scores.values = Array<float>();
    const auto ids = class_ids(manifest);
    bool plain = true;
    for (std::size_t i = 0; i < ids.size(); ++i) plain = plain && ids[i] == i;
    if (!plain) {
        for (std::uint16_t& value : index.data) {
            if (value >= ids.size()) throw PackageError("the network has more classes than the manifest has labels; export again");
            value = ids[value];
        }
    }
    return back(std::move(index), rest, std::uint16_t{0});
}

}  // namespace

Decided decide(Scores& scores, const VolumeFrame& frame, const Json& manifest) {
    const Json &decode = manifest.at("decode"), &decision = decode.at("decision");
    const auto rule_name = field<std::string>(decision, "rule");
    const Rule rule = restore_rule(decode);
    std::vector<Moved> moved = before_resampling(scores.values, frame);
    const std::size_t steps = moved.size();
    const Moved step = last_resampling(moved, last_three(scores.values.shape), frame);
    Decided out;
    if (rule_name == "argmax") {
        out.labels = exclusive(scores, step, rule, moved, moved.size() < steps, manifest);
        return out;
    }
    if (rule_name != "regions" && rule_name != "threshold") {
        throw PackageError("decision '" + rule_name + "' is for pictures; this package takes volumes");
    }
    double limit = field<double>(decision, "threshold");
    if (!scores.probabilities && field<std::string>(decode, "restore_what") == "probabilities") {
        activate_each(scores.values, decode);
    } else if (!scores.probabilities) {
        limit = std::log(limit / (1 - limit));
    }
    const std::size_t classes = scores.values.shape[0];
    const auto above = [&](std::size_t k) {
        return above_on_grid(scores.values, k, static_cast<float>(limit), step.before, rule, step.after_spacing, step.before_spacing);
    };
    if (rule_name == "regions") {
        const auto order = field<std::vector<std::uint16_t>>(decision, "order");
        if (order.size() != classes) throw PackageError("the manifest's regions are not as many as the network's outputs; export again");
        LabelMap labels(as_shape(step.before));
        for (std::size_t k = 0; k < classes; ++k) {  // one region at a time, a later one over the earlier
            const Array<std::uint8_t> mask = above(k);
            for (std::size_t i = 0; i < labels.size(); ++i) labels.data[i] = mask.data[i] ? order[k] : labels.data[i];
        }
        out.labels = back(std::move(labels), moved, std::uint16_t{0});
        return out;
    }
    const std::vector<Json> labels = class_labels(manifest);
    out.masks = Array<std::uint8_t>(as_shape(classes, frame.shape));
    out.labels = LabelMap(as_shape(frame.shape));
    for (std::size_t k = 0; k < classes; ++k) {
        const Array<std::uint8_t> mask = back(above(k), moved, std::uint8_t{0});
        const auto id = field<std::uint16_t>(labels.at(k), "id");
        std::copy(mask.data.begin(), mask.data.end(), out.masks.at(k));
        for (std::size_t i = 0; i < mask.size(); ++i) out.labels.data[i] = mask.data[i] ? id : out.labels.data[i];
    }
    return out;
}

Array<float> probabilities(const Scores& given, const VolumeFrame& frame, const Json& manifest) {
    const Json& decode = manifest.at("decode");
    const Rule rule = restore_rule(decode);
    Array<float> scores = given.values;
    std::vector<Moved> moved = before_resampling(scores, frame);
    const Moved step = last_resampling(moved, last_three(scores.shape), frame);
    const bool early = !given.probabilities && field<std::string>(decode, "restore_what") == "probabilities";
    if (early) activate_all(scores, decode);
    if (step.before != last_three(scores.shape)) {
        scores = resample(std::move(scores), step.before, rule, step.after_spacing, step.before_spacing);
    }
    if (!given.probabilities && !early) activate_all(scores, decode);
    bool same = true;
    for (const Moved& one : moved) same = same && one.before == one.after && one.axes == std::array<std::size_t, 3>{0, 1, 2};
    if (same) return scores;
    const bool exclusive = field<std::string>(decode.at("decision"), "rule") == "argmax";
    const std::size_t size = count(step.before);
    Array<float> out(as_shape(scores.shape[0], frame.shape));
    for (std::size_t k = 0; k < scores.shape[0]; ++k) {
        Array<float> one(as_shape(step.before), std::vector<float>(scores.at(k), scores.at(k) + size));
        one = back(std::move(one), moved, exclusive && k == 0 ? 1.0F : 0.0F);
        std::copy(one.data.begin(), one.data.end(), out.at(k));
    }
    return out;
}

void clean(LabelMap& labels, const VolumeFrame& frame, const Json& manifest) {
    const double voxel = frame.spacing[0] * frame.spacing[1] * frame.spacing[2];
    for (const auto& rule : manifest.at("postprocess")) {
        const auto name = field<std::string>(rule, "rule");
        if (name != "keep_largest") {
            throw PackageError("postprocessing rule '" + name + "' is for pictures; this package takes volumes");
        }
        keep_largest(labels, rule, voxel);
    }
}

int label_bits(const Json& manifest) {
    const Json& decision = manifest.at("decode").at("decision");
    std::vector<std::size_t> numbers;
    if (field<std::string>(decision, "rule") == "regions") {
        numbers = field<std::vector<std::size_t>>(decision, "order");
    } else {
        for (const auto& label : manifest.at("labels")) numbers.push_back(field<std::size_t>(label, "id"));
    }
    return !numbers.empty() && *std::max_element(numbers.begin(), numbers.end()) > 255 ? 16 : 8;
}

}  // namespace segship
