#include "volume_values.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "pairwise.hpp"

namespace segship {
namespace {

struct Plane {
    float* values;
    std::size_t size;
};

Plane plane_of(Array<float>& x, std::size_t channel, const std::string& name) {
    if (channel >= x.shape[0]) {
        throw PackageError("step '" + name + "' names channel " + std::to_string(channel) + ", the input has " + std::to_string(x.shape[0]));
    }
    return {x.at(channel), x.stride(0)};
}

// One channel, or all where the step names none.
Plane chosen(Array<float>& x, const Json& step, const std::string& name) {
    if (!step.contains("channel") || step.at("channel").is_null()) return {x.data.data(), x.size()};
    return plane_of(x, field<std::size_t>(step, "channel"), name);
}

void normalize(Array<float>& x, const Json& step) {
    const auto subtract = field<std::vector<double>>(step, "subtract"), multiply = field<std::vector<double>>(step, "multiply");
    const std::size_t planes = x.shape[0], constants = subtract.size();
    if ((planes != 1 && planes != constants && planes != constants + 1) || constants != multiply.size() || constants == 0) {
        throw PackageError("step 'normalize' has " + std::to_string(constants) + " channels, the input has " + std::to_string(planes));
    }
    const bool wide = field_or<std::string>(step, "dtype", "float32") == "float64";
    for (std::size_t c = 0; c < std::min(planes, constants); ++c) {
        const Plane plane = plane_of(x, c, "normalize");
        const auto less = static_cast<float>(subtract[c]), by = static_cast<float>(multiply[c]);
        for (std::size_t i = 0; i < plane.size; ++i) {
            float& value = plane.values[i];
            value = wide ? static_cast<float>((static_cast<double>(value) - subtract[c]) * multiply[c]) : (value - less) * by;
        }
    }
}

void divide(Array<float>& x, const Json& step) {
    const Plane plane = chosen(x, step, "divide");
    const auto by = static_cast<float>(field<double>(step, "by"));
    for (std::size_t i = 0; i < plane.size; ++i) plane.values[i] /= by;
}

void divide_by_maximum(Array<float>& x, const Json& step) {
    const float largest = *std::max_element(x.data.begin(), x.data.end());
    if (field<std::string>(step, "dtype") == "float64") {
        const double by = std::max(static_cast<double>(largest), field<double>(step, "floor"));
        for (float& value : x.data) value = static_cast<float>(static_cast<double>(value) / by);
        return;
    }
    const float by = std::max(largest, static_cast<float>(field<double>(step, "floor")));
    for (float& value : x.data) value /= by;
}

void clip(Array<float>& x, const Json& step) {
    const Plane plane = chosen(x, step, "clip");
    const auto low = static_cast<float>(field<double>(step, "low")), high = static_cast<float>(field<double>(step, "high"));
    for (std::size_t i = 0; i < plane.size; ++i) plane.values[i] = std::min(std::max(plane.values[i], low), high);
}

void channels(Array<float>& x, const Json& step) {
    const auto wanted = field<std::size_t>(step, "count");
    const std::size_t have = x.shape[0], size = x.stride(0);
    if (have == 1) {
        x.data.resize(wanted * size);
        for (std::size_t c = 1; c < wanted; ++c) std::copy_n(x.data.begin(), size, x.data.begin() + static_cast<std::ptrdiff_t>(c * size));
    } else if (have < wanted) {
        throw PackageError("step 'channels' keeps " + std::to_string(wanted) + " planes, the input has " + std::to_string(have));
    } else {
        x.data.resize(wanted * size);
    }
    x.shape[0] = wanted;
}

void rescale_min_max(Array<float>& x, const Json& step) {
    const Plane plane = plane_of(x, field<std::size_t>(step, "channel"), "rescale_min_max");
    const auto [least, most] = std::minmax_element(plane.values, plane.values + plane.size);
    const float low = *least, scale = std::max(*most - *least, static_cast<float>(field<double>(step, "epsilon")));
    for (std::size_t i = 0; i < plane.size; ++i) plane.values[i] -= low;
    if (!(scale > 0)) return;  // a constant channel with epsilon 0 becomes zeros
    for (std::size_t i = 0; i < plane.size; ++i) plane.values[i] /= scale;
}

void replace_non_finite(Array<float>& x, const Json& step) {
    const auto with = static_cast<float>(field<double>(step, "value"));
    for (float& value : x.data) {
        if (!std::isfinite(value)) value = with;
    }
}

// Mean and standard deviation in float32 as numpy computes them.
struct Statistics {
    float mean, deviation;
};

Statistics statistics(const float* values, std::size_t size) {
    const auto n = static_cast<float>(size);
    const float mean = pairwise_sum<float>(0, size, [values](std::size_t i) { return values[i]; }) / n;
    const float square = pairwise_sum<float>(0, size, [values, mean](std::size_t i) {
        const float difference = values[i] - mean;
        return difference * difference;
    });
    return {mean, std::sqrt(square / n)};
}

void zscore(Array<float>& x, const Json& step, const VolumeMask* mask) {
    const auto channel = field<std::size_t>(step, "channel");
    const Plane plane = plane_of(x, channel, "zscore");
    const VolumeMask* where = field<std::string>(step, "mask") == "nonzero" ? mask : nullptr;
    std::vector<float> inside;  // values that count, where they are not all
    const bool given = step.contains("mean") && !step.at("mean").is_null() && step.contains("std") && !step.at("std").is_null();
    const bool between = step.contains("between") && !step.at("between").is_null();
    std::size_t values = plane.size;
    if (where) values = static_cast<std::size_t>(std::count_if(where->begin(), where->end(), [](std::uint8_t one) { return one != 0; }));
    if (values) {
        Statistics found{0, 0};
        if (!given) {
            const auto limits = between ? field<std::vector<double>>(step, "between") : std::vector<double>{0, 0};
            const auto low = static_cast<float>(limits.at(0)), high = static_cast<float>(limits.at(1));
            const auto collect = [&](bool all) {
                for (std::size_t i = 0; i < plane.size; ++i) {
                    const float value = plane.values[i];
                    if ((!where || (*where)[i]) && (all || (value > low && value < high))) inside.push_back(value);
                }
            };
            if (where || between) {
                collect(!between);
                if (inside.empty()) collect(true);
                found = statistics(inside.data(), inside.size());
            } else {
                found = statistics(plane.values, plane.size);
            }
        }
        const float mean = static_cast<float>(field_or<double>(step, "mean", static_cast<double>(found.mean)));
        const float deviation = static_cast<float>(field_or<double>(step, "std", static_cast<double>(found.deviation)));
        const auto epsilon = static_cast<float>(field<double>(step, "epsilon"));
        const float scale = field<std::string>(step, "epsilon_rule") == "maximum" ? std::max(deviation, epsilon) : deviation + epsilon;
        if (scale == 0) {
            throw InputError("channel " + std::to_string(channel) + " is constant and cannot be normalised; check that it holds a picture");
        }
        for (std::size_t i = 0; i < plane.size; ++i) {
            if (!where || (*where)[i]) plane.values[i] = (plane.values[i] - mean) / scale;
        }
    }
    if (mask && field_or<std::string>(step, "outside_mask", "keep") == "zero") {
        for (std::size_t i = 0; i < plane.size; ++i) {
            if (!(*mask)[i]) plane.values[i] = 0;
        }
    }
}

}  // namespace

void apply_value_step(Array<float>& x, const Json& step, const VolumeMask* mask) {
    const auto name = field<std::string>(step, "step");
    if (name == "zscore") return zscore(x, step, mask);
    if (name == "normalize") return normalize(x, step);
    if (name == "divide") return divide(x, step);
    if (name == "divide_by_maximum") return divide_by_maximum(x, step);
    if (name == "clip") return clip(x, step);
    if (name == "channels") return channels(x, step);
    if (name == "rescale_min_max") return rescale_min_max(x, step);
    if (name == "replace_non_finite") return replace_non_finite(x, step);
    throw PackageError("preprocessing step '" + name + "' is not run on volumes here; update segship");
}

}  // namespace segship
