#include "decode2d.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "clones.hpp"
#include "errors.hpp"

namespace segship {
namespace {

std::string rule_of(const Json& decode) { return field<std::string>(field<Json>(decode, "decision"), "rule"); }

// exp(x) for x <= 0 as the Cephes library computes it, to two units in the last place: arithmetic alone, so that a loop over
// it becomes one over vectors.
inline float exp_of(float x) {
    constexpr float ROUNDING = 12582912.0F;  // 1.5 * 2^23: adding it leaves no room for a fraction
    const float bounded = x > -87.0F ? x : -87.0F;
    const float n = (bounded * 1.44269504F + ROUNDING) - ROUNDING;
    const float r = (bounded - n * 0.693359375F) + n * 2.12194440e-4F;
    float p = 1.9875691500e-4F;
    p = p * r + 1.3981999507e-3F;
    p = p * r + 8.3334519073e-3F;
    p = p * r + 4.1665795894e-2F;
    p = p * r + 1.6666665459e-1F;
    p = p * r + 5.0000001201e-1F;
    p = (p * (r * r) + r) + 1.0F;
    const std::uint32_t exponent = static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, sizeof scale);
    const float found = p * scale;
    return x != x ? x : found;
}

// 1 / (1 + exp(-x)) without overflow at either end.
SEGSHIP_CLONES void sigmoid(float* values, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const float small = exp_of(-std::fabs(values[i]));  // in (0, 1], whatever the sign
        const float positive = 1.0F / (1.0F + small);
        const float negative = small * positive;
        values[i] = values[i] >= 0 ? positive : negative;
    }
}

SEGSHIP_CLONES void add_exp(float* plane, const float* most, float* sum, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        plane[i] = exp_of(plane[i] - most[i]);
        sum[i] += plane[i];
    }
}

// Shifted by the maximum; a run of pixels at a time, so that all planes' parts stay in the cache.
void softmax(float* planes, std::size_t classes, std::size_t count) {
    constexpr std::size_t RUN = 512;
    float most[RUN], sum[RUN];
    for (std::size_t first = 0; first < count; first += RUN) {
        const std::size_t length = std::min(RUN, count - first);
        std::copy_n(planes + first, length, most);
        for (std::size_t k = 1; k < classes; ++k) {
            const float* plane = planes + k * count + first;
            for (std::size_t i = 0; i < length; ++i) most[i] = std::max(most[i], plane[i]);
        }
        std::fill_n(sum, length, 0.0F);
        for (std::size_t k = 0; k < classes; ++k) {
            add_exp(planes + k * count + first, most, sum, length);
        }
        for (std::size_t k = 0; k < classes; ++k) {
            float* plane = planes + k * count + first;
            for (std::size_t i = 0; i < length; ++i) plane[i] /= sum[i];
        }
    }
}

Array<float> activated_copy(const Array<float>& raw, const std::string& activation) {
    Array<float> out = raw;
    activate(out.data.data(), out.shape[0], out.stride(0), activation);
    return out;
}

SEGSHIP_CLONES void keep_best(float* best, std::uint16_t* index, const float* plane, std::uint16_t k, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const bool better = plane[i] > best[i];
        index[i] = better ? k : index[i];
        best[i] = better ? plane[i] : best[i];
    }
}

// `index` (count) of the largest of (classes, count).
void argmax_into(const float* planes, std::size_t classes, std::size_t count, std::uint16_t* index) {
    constexpr std::size_t RUN = 4096;
    std::vector<float> best(std::min(RUN, count));
    std::fill_n(index, count, std::uint16_t{0});
    for (std::size_t first = 0; first < count; first += RUN) {
        const std::size_t length = std::min(RUN, count - first);
        std::copy_n(planes + first, length, best.begin());
        for (std::size_t k = 1; k < classes; ++k) {
            keep_best(best.data(), index + first, planes + k * count + first, static_cast<std::uint16_t>(k), length);
        }
    }
}

Array<std::uint8_t> above(const Array<float>& values, float limit) {
    Array<std::uint8_t> out(values.shape);
    std::transform(values.data.begin(), values.data.end(), out.data.begin(),
                   [limit](float value) { return static_cast<std::uint8_t>(value > limit); });
    return out;
}

Array<float> as_numbers(const Array<std::uint8_t>& array) { return {array.shape, {array.data.begin(), array.data.end()}}; }

// Class index of the restored logits, a few rows at a time.
Array<std::uint16_t> labels_on_grid(const Array<float>& raw, const Frame& frame, const Json& decode) {
    const std::size_t width = frame.original.width;
    Array<std::uint16_t> out(Shape{frame.original.height, width});
    restored_bands(raw, frame, field<std::string>(decode, "restore_method"), field<std::string>(decode, "restore_path"),
                   [&](std::size_t top, Array<float>& scores) {
                       argmax_into(scores.data.data(), scores.shape[0], scores.stride(0), out.at(top));
                   });
    return out;
}

void min_max(Array<float>& p) {
    const auto [low, high] = std::minmax_element(p.data.begin(), p.data.end());
    const float least = *low, range = *high - *low;
    const bool varies = *high > *low;
    for (float& value : p.data) value = varies ? (value - least) / range : 0.0F;
}

SaliencyMap decided_map(Array<float> p, const Json& rule) {
    if (field<std::string>(rule, "polarity") == "inverted") {
        for (float& value : p.data) value = 1.0F - value;
    }
    if (field<bool>(rule, "min_max")) min_max(p);
    const auto kind = field<std::string>(rule, "to_uint8");
    if (kind == "none") return p;
    Array<std::uint8_t> levels(p.shape);
    std::transform(p.data.begin(), p.data.end(), levels.data.begin(), [&](float value) {
        const float scaled = std::min(std::max(value, 0.0F), 1.0F) * 255.0F;
        return static_cast<std::uint8_t>(kind == "round" ? std::nearbyint(scaled) : scaled);
    });
    return levels;
}

template <typename T>
Array<T> first_plane(Array<T> planes) {
    planes.data.resize(planes.stride(0));
    planes.shape.erase(planes.shape.begin());
    return planes;
}

template <typename T>
Array<T> as_planes(Array<T> plane) {
    plane.shape.insert(plane.shape.begin(), 1);
    return plane;
}

}  // namespace

void activate(float* planes, std::size_t classes, std::size_t count, const std::string& activation) {
    if (activation == "sigmoid") sigmoid(planes, classes * count);
    if (activation == "softmax") softmax(planes, classes, count);
}

Array<std::uint16_t> argmax(const Array<float>& scores) {
    Array<std::uint16_t> out(Shape(scores.shape.begin() + 1, scores.shape.end()));
    argmax_into(scores.data.data(), scores.shape[0], scores.stride(0), out.data.data());
    return out;
}

Array<float> scores_on_grid(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated) {
    const std::string activation = activated ? "none" : field<std::string>(decode, "activation");
    if (frame == nullptr) return activated_copy(raw, activation);
    const auto what = field<std::string>(decode, "restore_what"), method = field<std::string>(decode, "restore_method");
    const auto path = field<std::string>(decode, "restore_path");
    if (what == "logits") {
        Array<float> out = restore(raw, *frame, method, path);
        activate(out.data.data(), out.shape[0], out.stride(0), activation);
        return out;
    }
    Array<float> values = activated_copy(raw, activation);
    if (what == "decision" && rule_of(decode) == "saliency") return values;
    return restore(values, *frame, method, path);
}

Array<std::uint8_t> threshold_masks(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated) {
    const float limit = static_cast<float>(field<double>(field<Json>(decode, "decision"), "threshold"));
    if (frame == nullptr || field<std::string>(decode, "restore_what") != "decision") {
        return above(scores_on_grid(raw, decode, frame, activated), limit);
    }
    const Array<float> decided = as_numbers(above(scores_on_grid(raw, decode, nullptr, activated), limit));
    return above(restore(decided, *frame, field<std::string>(decode, "restore_method")), 0.5F);
}

Array<std::uint16_t> argmax_index(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated) {
    if (frame == nullptr) return argmax(raw);
    const auto what = field<std::string>(decode, "restore_what"), method = field<std::string>(decode, "restore_method");
    if (what == "decision") {
        const std::string nearest = ":nearest";
        if (method.size() < nearest.size() || method.compare(method.size() - nearest.size(), nearest.size(), nearest) != 0) {
            throw PackageError("class numbers cannot be enlarged with '" + method + "'; only nearest keeps them");
        }
        return first_plane(restore(as_planes(argmax(raw)), *frame, method));
    }
    if (what == "logits") return labels_on_grid(raw, *frame, decode);
    return argmax(scores_on_grid(raw, decode, frame, activated));
}

Array<std::uint16_t> region_labels(const Array<std::uint8_t>& masks, const std::vector<int>& order) {
    Array<std::uint16_t> labels(Shape(masks.shape.begin() + 1, masks.shape.end()));
    if (masks.shape[0] != order.size()) {
        throw PackageError("the manifest orders " + std::to_string(order.size()) + " regions, the network gives " +
                           std::to_string(masks.shape[0]) + "; export the package again");
    }
    for (std::size_t k = 0; k < order.size(); ++k) {
        const std::uint8_t* mask = masks.at(k);
        for (std::size_t i = 0; i < labels.size(); ++i) {
            if (mask[i] != 0) labels.data[i] = static_cast<std::uint16_t>(order[k]);
        }
    }
    return labels;
}

SaliencyMap saliency_map(const Array<float>& raw, const Json& decode, const Frame* frame, bool activated) {
    const bool last = frame != nullptr && field<std::string>(decode, "restore_what") == "decision";
    Array<float> p = first_plane(scores_on_grid(raw, decode, last ? nullptr : frame, activated));
    SaliencyMap decided = decided_map(std::move(p), field<Json>(decode, "decision"));
    if (!last) return decided;
    const auto method = field<std::string>(decode, "restore_method");
    return std::visit(
        [&](auto& map) -> SaliencyMap { return first_plane(restore(as_planes(std::move(map)), *frame, method)); }, decided);
}

Array<std::uint8_t> levels_of(const SaliencyMap& map) {
    if (const auto* levels = std::get_if<Array<std::uint8_t>>(&map)) return *levels;
    const auto& values = std::get<Array<float>>(map);
    Array<std::uint8_t> out(values.shape);
    std::transform(values.data.begin(), values.data.end(), out.data.begin(), [](float value) {
        return static_cast<std::uint8_t>(std::nearbyint(std::min(std::max(value, 0.0F), 1.0F) * 255.0F));
    });
    return out;
}

std::vector<Json> class_labels(const Json& recipe) {
    const auto count = field<std::size_t>(field<Json>(field<Json>(recipe, "network"), "outputs").at(0), "channels");
    const auto labels = field<std::vector<Json>>(recipe, "labels");
    std::vector<Json> chosen = labels;
    if (rule_of(field<Json>(recipe, "decode")) != "argmax" && labels.size() != count) {
        // a background label stands for no channel
        chosen.erase(std::remove_if(chosen.begin(), chosen.end(), [](const Json& label) { return field<int>(label, "id") == 0; }),
                     chosen.end());
    }
    if (chosen.size() != count) {
        throw PackageError("package '" + field<std::string>(recipe, "name") + "' names " + std::to_string(labels.size()) +
                           " labels for " + std::to_string(count) + " output channels");
    }
    return chosen;
}

}  // namespace segship
