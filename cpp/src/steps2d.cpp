#include "steps2d.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "errors.hpp"

namespace segship {
namespace {

template <typename T>
Array<T>& numbers(Picture& picture) {
    if (auto* same = std::get_if<Array<T>>(&picture.values)) return *same;
    picture.values = std::visit(
        [](const auto& array) { return Array<T>(array.shape, {array.data.begin(), array.data.end()}); }, picture.values);
    picture.boolean = false;
    return std::get<Array<T>>(picture.values);
}

// Which channels a step is for: one, or all of them.
std::pair<std::size_t, std::size_t> channels_of(const Json& step, const char* name, std::size_t have) {
    if (!step.contains("channel") || step.at("channel").is_null()) return {0, have};
    const auto channel = field<std::size_t>(step, "channel");
    if (channel >= have) {
        throw PackageError("step '" + std::string(name) + "' names channel " + std::to_string(channel) + ", the input has " +
                           std::to_string(have));
    }
    return {channel, channel + 1};
}

template <typename T, typename Change>
void change_channels(Array<T>& x, std::pair<std::size_t, std::size_t> channels, Change change) {
    const std::size_t count = x.shape[2];
    if (channels.first == 0 && channels.second == count) {
        for (T& value : x.data) value = change(value);
        return;
    }
    for (std::size_t i = channels.first; i < x.size(); i += count) x.data[i] = change(x.data[i]);
}

template <typename T>
void normalize(Array<T>& x, const Json& step) {
    const auto subtract = field<std::vector<double>>(step, "subtract"), multiply = field<std::vector<double>>(step, "multiply");
    const std::size_t planes = x.shape[2], constants = subtract.size();
    if (multiply.size() != constants) {
        throw PackageError("step 'normalize': subtract and multiply must have one entry per channel each; export again");
    }
    if (planes != 1 && planes != constants && planes != constants + 1) {
        throw PackageError("step 'normalize' has " + std::to_string(constants) + " channels, the input has " +
                           std::to_string(planes));
    }
    for (std::size_t c = 0; c < std::min(planes, constants); ++c) {
        const T less = static_cast<T>(subtract[c]), times = static_cast<T>(multiply[c]);
        for (std::size_t i = c; i < x.size(); i += planes) x.data[i] = (x.data[i] - less) * times;
    }
}

template <typename T>
void divide_by_maximum(Array<T>& x, const Json& step) {
    const T floor = static_cast<T>(field<double>(step, "floor"));
    const T top = std::max(*std::max_element(x.data.begin(), x.data.end()), floor);
    for (T& value : x.data) value /= top;
}

void divide(Array<float>& x, const Json& step) {
    const float by = static_cast<float>(field<double>(step, "by"));
    change_channels(x, channels_of(step, "divide", x.shape[2]), [by](float value) { return value / by; });
}

void clip(Array<float>& x, const Json& step) {
    const float low = static_cast<float>(field<double>(step, "low")), high = static_cast<float>(field<double>(step, "high"));
    // as numpy: NaN stays, and `high` wins where the two are the wrong way round
    change_channels(x, channels_of(step, "clip", x.shape[2]),
                    [=](float value) { return std::isnan(value) ? value : std::min(std::max(value, low), high); });
}

void replace_non_finite(Array<float>& x, const Json& step) {
    const float value = static_cast<float>(field<double>(step, "value"));
    for (float& at : x.data) at = std::isfinite(at) ? at : value;
}

std::vector<std::size_t> places_of(const Array<float>& x, std::size_t channel) {
    std::vector<std::size_t> found;
    for (std::size_t i = channel; i < x.size(); i += x.shape[2]) found.push_back(i);
    return found;
}

void rescale_min_max(Array<float>& x, const Json& step) {
    const std::size_t channel = channels_of(step, "rescale_min_max", x.shape[2]).first, planes = x.shape[2];
    float low = x.data.at(channel), high = low;
    for (std::size_t i = channel; i < x.size(); i += planes) {
        low = std::min(low, x.data[i]);
        high = std::max(high, x.data[i]);
    }
    const float scale = std::max(high - low, static_cast<float>(field<double>(step, "epsilon")));
    for (std::size_t i = channel; i < x.size(); i += planes) {
        x.data[i] -= low;
        if (scale > 0) x.data[i] /= scale;  // a constant channel with epsilon 0 becomes zeros
    }
}

struct Statistics {
    float mean;
    float std;
};

Statistics statistics_of(const Array<float>& x, const std::vector<std::size_t>& places) {
    double sum = 0.0, squares = 0.0;
    for (std::size_t i : places) sum += static_cast<double>(x.data[i]);
    const double mean = sum / static_cast<double>(places.size());
    for (std::size_t i : places) squares += (static_cast<double>(x.data[i]) - mean) * (static_cast<double>(x.data[i]) - mean);
    return {static_cast<float>(mean), static_cast<float>(std::sqrt(squares / static_cast<double>(places.size())))};
}

// Those of the places whose values count in the statistics.
std::vector<std::size_t> counted_of(const Array<float>& x, const std::vector<std::size_t>& places, const Json& step) {
    if (!step.contains("between") || step.at("between").is_null()) return places;
    const auto between = field<std::vector<double>>(step, "between");
    if (between.size() != 2) throw PackageError("step 'zscore': 'between' takes two numbers; export the network again");
    std::vector<std::size_t> found;
    std::copy_if(places.begin(), places.end(), std::back_inserter(found), [&](std::size_t i) {
        return x.data[i] > static_cast<float>(between[0]) && x.data[i] < static_cast<float>(between[1]);
    });
    return found.empty() ? places : found;
}

void zscore(Array<float>& x, const Json& step) {
    const std::size_t channel = channels_of(step, "zscore", x.shape[2]).first;
    const std::vector<std::size_t> all = places_of(x, channel);
    std::vector<std::size_t> places = all, outside;
    std::copy_if(all.begin(), all.end(), std::back_inserter(outside), [&](std::size_t i) { return x.data[i] == 0.0F; });
    if (field<std::string>(step, "mask") == "nonzero") {
        places.erase(std::remove_if(places.begin(), places.end(), [&](std::size_t i) { return x.data[i] == 0.0F; }),
                     places.end());
    }
    if (!places.empty()) {
        const Statistics own = statistics_of(x, counted_of(x, places, step));
        const float mean = static_cast<float>(field_or<double>(step, "mean", static_cast<double>(own.mean)));
        const float std = static_cast<float>(field_or<double>(step, "std", static_cast<double>(own.std)));
        const float epsilon = static_cast<float>(field<double>(step, "epsilon"));
        const float scale = field<std::string>(step, "epsilon_rule") == "maximum" ? std::max(std, epsilon) : std + epsilon;
        if (scale == 0.0F) {
            throw InputError("channel " + std::to_string(channel) +
                             " is constant and cannot be normalised; check that it holds a picture");
        }
        for (std::size_t i : places) x.data[i] = (x.data[i] - mean) / scale;
    }
    if (field_or<std::string>(step, "outside_mask", "keep") == "zero") {
        for (std::size_t i : outside) x.data[i] = 0.0F;
    }
}

template <typename T>
Array<T> with_channels(const Array<T>& x, std::size_t count) {
    const std::size_t have = x.shape[2];
    if (have != 1 && have < count) {
        throw PackageError("step 'channels' keeps " + std::to_string(count) + " planes, the input has " + std::to_string(have));
    }
    Array<T> out(Shape{x.shape[0], x.shape[1], count});
    for (std::size_t pixel = 0; pixel < x.shape[0] * x.shape[1]; ++pixel) {
        for (std::size_t c = 0; c < count; ++c) out.data[pixel * count + c] = x.data[pixel * have + (have == 1 ? 0 : c)];
    }
    return out;
}

template <typename T>
Array<T> mirrored(const Array<T>& x) {
    const std::size_t width = x.shape[1], channels = x.shape[2];
    Array<T> out(x.shape);
    for (std::size_t y = 0; y < x.shape[0]; ++y) {
        for (std::size_t i = 0; i < width; ++i) std::copy_n(x.at(y) + i * channels, channels, out.at(y) + (width - 1 - i) * channels);
    }
    return out;
}

// ------------------------------------------------------------------------------------------------ padding

// For each place of a padded axis the place of the source it copies; the side itself stands for the constant.
std::vector<std::size_t> padded_axis(std::size_t side, std::size_t before, std::size_t after, const std::string& mode) {
    std::vector<std::size_t> from;
    const auto last = static_cast<std::ptrdiff_t>(side) - 1;
    for (std::ptrdiff_t i = -static_cast<std::ptrdiff_t>(before); i <= last + static_cast<std::ptrdiff_t>(after); ++i) {
        std::ptrdiff_t at = i;
        if (mode == "reflect" && last > 0) {
            at = std::abs(i) % (2 * last);
            at = at > last ? 2 * last - at : at;
        } else if (mode == "constant" && (i < 0 || i > last)) {
            at = last + 1;
        }
        from.push_back(static_cast<std::size_t>(mode == "constant" ? at : std::clamp<std::ptrdiff_t>(at, 0, last)));
    }
    return from;
}

template <typename T>
T constant_of(double value) {
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(value);
    return static_cast<T>(static_cast<long>(std::clamp(value, -1e9, 1e9)));
}

template <typename T>
Array<T> padded(const Array<T>& x, const std::vector<std::size_t>& rows, const std::vector<std::size_t>& columns, T value) {
    const std::size_t channels = x.shape[2];
    Array<T> out(Shape{rows.size(), columns.size(), channels}, value);
    for (std::size_t y = 0; y < rows.size(); ++y) {
        if (rows[y] == x.shape[0]) continue;
        for (std::size_t i = 0; i < columns.size(); ++i) {
            if (columns[i] == x.shape[1]) continue;
            std::copy_n(x.at(rows[y]) + columns[i] * channels, channels, out.at(y) + i * channels);
        }
    }
    return out;
}

std::size_t missing_of(std::size_t have, std::size_t least, std::size_t multiple) {
    const std::size_t target = std::max(have, least);
    return (target + multiple - 1) / multiple * multiple - have;
}

GridStep pad(Picture& picture, const Json& step) {
    const Size before = picture.size();
    const auto minimum = field_or<std::vector<std::size_t>>(step, "minimum", {1, 1});
    const auto multiple = field_or<std::size_t>(step, "multiple_of", 1);
    const auto mode = field<std::string>(step, "mode");
    if (minimum.size() != 2 || multiple == 0) {
        throw PackageError("step 'pad' takes two sides and a multiple of at least 1 for pictures; export the network again");
    }
    const Size gap{missing_of(before.height, minimum[0], multiple), missing_of(before.width, minimum[1], multiple)};
    const bool both = field<std::string>(step, "where") == "both";
    const Size first{both ? gap.height / 2 : 0, both ? gap.width / 2 : 0};
    if (gap.height != 0 || gap.width != 0) {
        const auto rows = padded_axis(before.height, first.height, gap.height - first.height, mode);
        const auto columns = padded_axis(before.width, first.width, gap.width - first.width, mode);
        const double value = field_or<double>(step, "value", 0.0);
        std::visit(
            [&](auto& array) {
                using T = std::decay_t<decltype(array.data[0])>;
                array = padded(array, rows, columns, constant_of<T>(value));
            },
            picture.values);
    }
    return {GridMove::pad, before, picture.size(), first};
}

// --------------------------------------------------------------------------------------------------- crop

struct Range {
    std::size_t low = 0;
    std::size_t high = 0;
};

template <typename T>
bool bounding_box(const Array<T>& x, Range& rows, Range& columns) {
    const std::size_t channels = x.shape[2];
    bool any = false;
    for (std::size_t y = 0; y < x.shape[0]; ++y) {
        for (std::size_t i = 0; i < x.stride(0); ++i) {
            if (x.at(y)[i] == T{}) continue;
            const std::size_t column = i / channels;
            rows = any ? Range{rows.low, y + 1} : Range{y, y + 1};
            columns = any ? Range{std::min(columns.low, column), std::max(columns.high, column + 1)} : Range{column, column + 1};
            any = true;
        }
    }
    return any;
}

template <typename T>
Array<T> cropped(const Array<T>& x, Range rows, Range columns) {
    const std::size_t channels = x.shape[2], width = columns.high - columns.low;
    Array<T> out(Shape{rows.high - rows.low, width, channels});
    for (std::size_t y = rows.low; y < rows.high; ++y) {
        std::copy_n(x.at(y) + columns.low * channels, width * channels, out.at(y - rows.low));
    }
    return out;
}

GridStep crop_to_nonzero(Picture& picture) {
    const Size before = picture.size();
    return std::visit(
        [&](auto& array) -> GridStep {
            Range rows, columns;
            if (!bounding_box(array, rows, columns)) return {GridMove::crop, before, before, {0, 0}};
            array = cropped(array, rows, columns);
            return {GridMove::crop, before, {array.shape[0], array.shape[1]}, {rows.low, columns.low}};
        },
        picture.values);
}

// ------------------------------------------------------------------------------------------ value steps

template <typename Step>
void in_type_of(Picture& picture, const Json& step, Step run) {
    if (field_or<std::string>(step, "dtype", "float32") == "float64") {
        run(numbers<double>(picture));
    } else {
        run(numbers<float>(picture));
    }
}

void change_values(Picture& picture, const Json& step, const std::string& name) {
    if (name == "normalize") return in_type_of(picture, step, [&](auto& x) { normalize(x, step); });
    if (name == "divide_by_maximum") return in_type_of(picture, step, [&](auto& x) { divide_by_maximum(x, step); });
    if (name == "divide") return divide(numbers<float>(picture), step);
    if (name == "clip") return clip(numbers<float>(picture), step);
    if (name == "zscore") return zscore(numbers<float>(picture), step);
    if (name == "rescale_min_max") return rescale_min_max(numbers<float>(picture), step);
    if (name == "replace_non_finite") return replace_non_finite(numbers<float>(picture), step);
    if (name == "channels") {
        const auto count = field<std::size_t>(step, "count");
        return std::visit([&](auto& array) { array = with_channels(array, count); }, picture.values);
    }
    throw PackageError("preprocessing step '" + name + "' belongs to volumes; this package applies it to a picture");
}

}  // namespace

std::optional<GridStep> run_step(Picture& picture, const Json& step) {
    const auto name = field<std::string>(step, "step");
    const Size before = picture.size();
    if (name == "resize" || name == "resize_keep_ratio" || name == "resize_by_factor") {
        const Size size = resized_size(before, step);
        picture = resize(picture, size, field<std::string>(step, "method"));
        return GridStep{GridMove::resize, before, size, {0, 0}};
    }
    if (name == "pad") return pad(picture, step);
    if (name == "crop_to_nonzero") return crop_to_nonzero(picture);
    if (name == "mirror") {
        std::visit([](auto& array) { array = mirrored(array); }, picture.values);
        return GridStep{GridMove::mirror, before, before, {0, 0}};
    }
    if (name == "transpose") {
        throw PackageError("step 'transpose' reorders the axes of volumes; this package applies it to a picture");
    }
    change_values(picture, step, name);
    return std::nullopt;
}

}  // namespace segship
