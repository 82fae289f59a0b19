#include "volume_windows.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "axis_starts.hpp"
#include "errors.hpp"
#include "half.hpp"
#include "pairwise.hpp"
#include "volume_text.hpp"

namespace segship {
namespace {

std::size_t up_to_multiple(std::size_t size, std::size_t of) { return (size + of - 1) / of * of; }

// MLPerf's rule: a remainder below half a stride is cut away, a longer one padded to a whole stride.
void compat_crop(Tiling& tiling) {
    std::size_t below = ~std::size_t{0};
    for (std::size_t axis = tiling.flat ? 1 : 0; axis < 3; ++axis) below = std::min(below, stride_of(tiling.step[axis]) / 2);
    tiling.crop_remainder_below = below;
    tiling.positions = "stride-multiple";
}

void apply_options(Tiling& tiling, const TileOptions& options) {
    if (options.step_size) {
        const double size = *options.step_size;
        if (!(size > 0 && size <= 1)) {
            throw UsageError("step size is a part of the window, above 0 and up to 1, not " + number_text(size));
        }
        for (std::size_t axis = tiling.flat ? 1 : 0; axis < 3; ++axis) tiling.step[axis] = static_cast<double>(tiling.window[axis]) * size;
    }
    if (!options.mirror) {
        tiling.mirror_axes.clear();
    } else if (options.mirror_axes) {
        const auto& wanted = *options.mirror_axes;
        const auto dropped = [&](std::size_t axis) {
            const int own = static_cast<int>(axis) - (tiling.flat ? 1 : 0);
            return std::find(wanted.begin(), wanted.end(), own) == wanted.end();
        };
        auto& axes = tiling.mirror_axes;
        axes.erase(std::remove_if(axes.begin(), axes.end(), dropped), axes.end());
    }
    if (options.half_sums) tiling.half = true;
    if (options.crop_remainder) compat_crop(tiling);
}

}  // namespace

Tiling tiling_of(const Json& manifest, const TileOptions& options) {
    if (!manifest.contains("tiling") || manifest.at("tiling").is_null()) {
        throw UsageError("package '" + field<std::string>(manifest, "name") + "' has no tiling; the network takes a whole case at once");
    }
    const Json& given = manifest.at("tiling");
    const auto window = field<std::vector<std::size_t>>(given, "window");
    const auto step = field<std::vector<double>>(given, "step");
    if (window.size() < 2 || window.size() > 3 || step.size() != window.size()) {
        throw PackageError("the manifest's tiling has " + std::to_string(window.size()) + " axes; windows have two or three");
    }
    Tiling out;
    out.flat = window.size() == 2;
    const std::size_t first = out.flat ? 1 : 0;
    out.window[0] = 1;
    out.step[0] = 1;
    std::copy(window.begin(), window.end(), out.window.begin() + static_cast<std::ptrdiff_t>(first));
    std::copy(step.begin(), step.end(), out.step.begin() + static_cast<std::ptrdiff_t>(first));
    out.positions = field<std::string>(given, "positions");
    out.weighting = field<std::string>(given, "weighting");
    out.pad_mode = field<std::string>(given, "pad_mode");
    out.sigma_scale = field_or<double>(given, "gaussian_sigma_scale", 0);
    out.single_tile = field_or<bool>(given, "gaussian_single_tile", true);
    out.pad_value = static_cast<float>(field_or<double>(given, "pad_value", 0));
    out.crop_remainder_below = static_cast<std::size_t>(std::max<std::int64_t>(0, field_or<std::int64_t>(given, "crop_remainder_below", 0)));
    for (const std::size_t axis : field_or<std::vector<std::size_t>>(given, "mirror_axes", {})) out.mirror_axes.push_back(axis + first);
    std::sort(out.mirror_axes.begin(), out.mirror_axes.end());
    out.probabilities = field<std::string>(given, "average") == "probabilities";
    out.half = field_or<std::string>(given, "accumulator", "float32") == "float16";
    if (elements({out.window[0], out.window[1], out.window[2]}) == 0 || *std::min_element(out.step.begin(), out.step.end()) <= 0 ||
        std::any_of(out.mirror_axes.begin(), out.mirror_axes.end(), [](std::size_t axis) { return axis > 2; })) {
        throw PackageError("the manifest's tiling has a window, step or mirror axis that means nothing; export the package again");
    }
    apply_options(out, options);
    return out;
}

std::vector<Shape3> window_starts(const Shape3& shape, const Tiling& tiling) {
    std::array<std::vector<std::size_t>, 3> axes;
    for (std::size_t i = 0; i < 3; ++i) axes[i] = axis_starts(shape[i], tiling.window[i], tiling.step[i], tiling.positions);
    std::vector<Shape3> out;
    out.reserve(axes[0].size() * axes[1].size() * axes[2].size());
    for (const std::size_t z : axes[0]) {
        for (const std::size_t y : axes[1]) {
            for (const std::size_t x : axes[2]) out.push_back({z, y, x});
        }
    }
    return out;
}

Box3 padding(const Shape3& shape, const Tiling& tiling) {
    Box3 out{};
    for (std::size_t i = 0; i < 3; ++i) {
        std::size_t target = shape[i];
        if (tiling.pad_mode != "none") {
            target = std::max(shape[i], tiling.window[i]);
            if (tiling.positions == "stride-multiple") {
                const std::size_t stride = stride_of(tiling.step[i]);
                target = up_to_multiple(shape[i], stride);
                while (target < tiling.window[i]) target += stride;
            }
        }
        out[i] = {(target - shape[i]) / 2, target};
    }
    return out;
}

Box3 remainder_crop(const Shape3& shape, const Tiling& tiling) {
    Box3 out{};
    for (std::size_t i = 0; i < 3; ++i) {
        std::size_t less = shape[i] % stride_of(tiling.step[i]);
        if (less >= tiling.crop_remainder_below || shape[i] - less < tiling.window[i]) less = 0;
        out[i] = {less / 2, shape[i] - less};
    }
    return out;
}

Array<float> cut_and_pad(const Array<float>& x, const Box3& kept, const Box3& padded, const Tiling& tiling) {
    const Shape3 have = last_three(x.shape);
    Array<float> out(as_shape(x.shape[0], {padded[0].size, padded[1].size, padded[2].size}), tiling.pad_value);
    const bool edge = tiling.pad_mode == "edge";
    // The source index of a padded one; none (-1) where the pad value stays.
    const auto source = [&](std::size_t axis, std::size_t at) -> std::ptrdiff_t {
        const auto inside = static_cast<std::ptrdiff_t>(at) - static_cast<std::ptrdiff_t>(padded[axis].first);
        const auto last = static_cast<std::ptrdiff_t>(kept[axis].size) - 1;
        if (!edge && (inside < 0 || inside > last)) return -1;
        return static_cast<std::ptrdiff_t>(kept[axis].first) + std::clamp<std::ptrdiff_t>(inside, 0, last);
    };
    for (std::size_t c = 0; c < x.shape[0]; ++c) {
        float* into = out.at(c);
        for (std::size_t z = 0; z < padded[0].size; ++z) {
            for (std::size_t y = 0; y < padded[1].size; ++y, into += padded[2].size) {
                const std::ptrdiff_t sz = source(0, z), sy = source(1, y);
                if (sz < 0 || sy < 0) continue;
                const float* row = x.at(c) + (static_cast<std::size_t>(sz) * have[1] + static_cast<std::size_t>(sy)) * have[2];
                const float* first = row + kept[2].first;
                std::copy(first, first + kept[2].size, into + padded[2].first);
                if (!edge) continue;
                std::fill(into, into + padded[2].first, first[0]);
                std::fill(into + padded[2].first + kept[2].size, into + padded[2].size, first[kept[2].size - 1]);
            }
        }
    }
    return out;
}

std::vector<unsigned> mirror_subsets(const std::vector<std::size_t>& axes) {
    std::vector<unsigned> out{0};
    // combinations in lexical order, as itertools.combinations gives them
    for (std::size_t size = 1; size <= axes.size(); ++size) {
        std::vector<std::size_t> pick(size);
        for (std::size_t i = 0; i < size; ++i) pick[i] = i;
        for (bool more = true; more;) {
            unsigned subset = 0;
            for (const std::size_t i : pick) subset |= 1u << axes[i];
            out.push_back(subset);
            std::size_t i = size;
            while (i > 0 && pick[i - 1] == axes.size() - size + i - 1) --i;
            more = i > 0;
            if (!more) break;
            ++pick[i - 1];
            for (std::size_t k = i; k < size; ++k) pick[k] = pick[k - 1] + 1;
        }
    }
    return out;
}

namespace {

// scipy.ndimage.gaussian_filter of a single 1 at side // 2, cut off at four standard deviations.
std::vector<double> nnunet_line(std::size_t side, double sigma) {
    const auto radius = static_cast<std::ptrdiff_t>(4.0 * sigma + 0.5), middle = static_cast<std::ptrdiff_t>(side / 2);
    const auto bell = [&](std::ptrdiff_t x) { return std::exp(-0.5 / (sigma * sigma) * static_cast<double>(x * x)); };
    const double sum = pairwise_sum<double>(0, static_cast<std::size_t>(2 * radius + 1),
                                            [&](std::size_t i) { return bell(static_cast<std::ptrdiff_t>(i) - radius); });
    std::vector<double> out(side);
    for (std::size_t i = 0; i < side; ++i) {
        const std::ptrdiff_t distance = static_cast<std::ptrdiff_t>(i) - middle;
        out[i] = std::abs(distance) <= radius ? bell(distance) / sum : 0.0;
    }
    return out;
}

// MLPerf's: the formula itself around the middle.
std::vector<double> centred_line(std::size_t side, double scale) {
    const double sigma = scale * static_cast<double>(side);
    std::vector<double> out(side);
    for (std::size_t i = 0; i < side; ++i) {
        const double distance = static_cast<double>(i) - (static_cast<double>(side) - 1) / 2;
        out[i] = std::exp(-(distance * distance) / (2 * (sigma * sigma)));
    }
    return out;
}

}  // namespace

std::vector<float> window_weights(const Tiling& tiling, std::size_t windows) {
    if (tiling.weighting == "uniform" || (windows == 1 && !tiling.single_tile)) return {};
    const bool centred = tiling.weighting == "gaussian-centred";
    std::array<std::vector<double>, 3> line;
    for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t side = tiling.window[i];
        if (i == 0 && tiling.flat) {
            line[i] = {1.0};
        } else {
            line[i] = centred ? centred_line(side, tiling.sigma_scale) : nnunet_line(side, static_cast<double>(side) * tiling.sigma_scale);
        }
    }
    std::vector<double> exact;
    exact.reserve(count(tiling.window));
    double most = 0;
    for (const double a : line[0]) {
        for (const double b : line[1]) {
            for (const double c : line[2]) {
                exact.push_back(a * b * c);
                most = std::max(most, exact.back());
            }
        }
    }
    const double scale = centred ? most : most / 10;
    std::vector<float> out(exact.size());
    float least = INFINITY;
    for (std::size_t i = 0; i < out.size(); ++i) {
        const double value = exact[i] / scale;
        out[i] = tiling.half ? half_to_float(double_to_half(value)) : static_cast<float>(value);
        if (out[i] != 0) least = std::min(least, out[i]);
    }
    for (float& value : out) value = value == 0 ? least : value;
    return out;
}

std::size_t count_windows(const Shape3& shape, const Tiling& tiling) {
    const Box3 padded = padding(shape, tiling);
    std::size_t out = 1;
    for (std::size_t i = 0; i < 3; ++i) out *= axis_starts(padded[i].size, tiling.window[i], tiling.step[i], tiling.positions).size();
    return out;
}

}  // namespace segship
