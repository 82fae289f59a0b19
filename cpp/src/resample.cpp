#include "resample.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <type_traits>

#include "axis_matrix.hpp"

namespace segship {
namespace {

std::optional<std::size_t> coarsest(const Spacing& spacing) {
    const auto largest = std::max_element(spacing.begin(), spacing.end());
    if (std::count(spacing.begin(), spacing.end(), *largest) != 1) return std::nullopt;
    return static_cast<std::size_t>(largest - spacing.begin());
}

// Where the output samples lie on the source axis.
std::vector<double> sample_positions(std::size_t before, std::size_t after, Rule::Kind kind) {
    std::vector<double> out(after);
    const auto have = static_cast<double>(before), want = static_cast<double>(after);
    for (std::size_t i = 0; i < after; ++i) {
        const auto index = static_cast<double>(i);
        if (kind == Rule::Kind::torch_align_corners) {  // torch computes these positions in float32 too
            const float scale = after > 1 ? static_cast<float>(before - 1) / static_cast<float>(after - 1) : 0.0F;
            out[i] = static_cast<double>(scale * static_cast<float>(i));
        } else if (kind == Rule::Kind::torch) {  // in float32, with one rounding, which large volumes can see
            const float scale = static_cast<float>(before) / static_cast<float>(after);
            out[i] = static_cast<double>(static_cast<float>(static_cast<double>(scale) * (index + 0.5) - 0.5));
        } else {
            out[i] = (index + 0.5) * (have / want) - 0.5;
        }
    }
    return out;
}

std::size_t clipped_floor(double value, std::size_t before) {
    return static_cast<std::size_t>(std::clamp(std::floor(value), 0.0, static_cast<double>(before - 1)));
}

std::vector<std::size_t> order0_index(std::size_t before, std::size_t after) {
    std::vector<std::size_t> out;
    for (const double position : sample_positions(before, after, Rule::Kind::spline)) {
        out.push_back(clipped_floor(position + 0.5, before));
    }
    return out;
}

struct Sides {
    std::size_t outer, inner;
};

Sides sides(const Shape3& shape, std::size_t axis) {
    std::size_t outer = 1, inner = 1;
    for (std::size_t i = 0; i < axis; ++i) outer *= shape[i];
    for (std::size_t i = axis + 1; i < 3; ++i) inner *= shape[i];
    return {outer, inner};
}

// One axis of `x` after the other, each by its rule; axes that shrink first where the order does not matter to a bit.
std::vector<std::size_t> axis_order(const Shape3& have, const Shape3& want, std::optional<std::size_t> skip, const Rule& rule) {
    std::vector<std::size_t> axes;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        if (axis != skip && have[axis] != want[axis]) axes.push_back(axis);
    }
    if (rule.kind != Rule::Kind::spline) {  // torch's own order of operations, last axis first
        std::reverse(axes.begin(), axes.end());
    } else if (rule.order != 0) {
        std::stable_sort(axes.begin(), axes.end(), [&](std::size_t a, std::size_t b) {
            return static_cast<double>(want[a]) / static_cast<double>(have[a]) < static_cast<double>(want[b]) / static_cast<double>(have[b]);
        });
    }
    return axes;
}

// torch's rules are float32's; in double precision there are the splines alone.
template <typename T>
void one_axis(const T* x, const Shape3& shape, std::size_t axis, std::size_t after, const Rule& rule, T* out) {
    const auto [outer, inner] = sides(shape, axis);
    const std::size_t before = shape[axis];
    if constexpr (std::is_same_v<T, float>) {
        if (rule.kind != Rule::Kind::spline) {
            apply_taps(axis_taps(before, after, rule.kind), x, outer, before, inner, out);
            return;
        }
    }
    if (rule.order == 0) {
        apply_index(order0_index(before, after), x, outer, before, inner, out);
    } else {
        const double negligible = std::is_same_v<T, float> ? kNegligible : kNegligibleWide;
        apply_matrix(axis_matrix(before, after, rule.order, negligible), x, outer, before, inner, out);
    }
}

// Every axis but `skip` resized. The last product goes into `into`.
template <typename T>
void along_axes(const T* x, const Shape3& have, const Shape3& want, const Rule& rule, std::optional<std::size_t> skip, T* into) {
    const auto axes = axis_order(have, want, skip, rule);
    Shape3 shape = have;
    std::vector<T> held;
    const T* from = x;
    for (std::size_t i = 0; i < axes.size(); ++i) {
        const std::size_t axis = axes[i];
        Shape3 next = shape;
        next[axis] = want[axis];
        const bool last = i + 1 == axes.size();
        std::vector<T> made(last ? 0 : count(next));
        one_axis(from, shape, axis, want[axis], rule, last ? into : made.data());
        held.swap(made);
        from = held.data();
        shape = next;
    }
    if (axes.empty()) std::copy(x, x + count(have), into);
}

// Clip to the source's range: splines overshoot.
template <typename T>
void clip(T* out, std::size_t size, const T* source, std::size_t source_size) {
    const auto [low, high] = std::minmax_element(source, source + source_size);
    const T least = *low, most = *high;
    for (std::size_t i = 0; i < size; ++i) out[i] = std::min(std::max(out[i], least), most);
}

// The same for each slice along `axis`, where slices were resampled one by one.
template <typename T>
void clip_slices(T* out, const Shape3& shape, const T* source, const Shape3& have, std::size_t axis) {
    const std::size_t slices = have[axis];
    std::vector<T> low(slices, std::numeric_limits<T>::infinity()), high(slices, -std::numeric_limits<T>::infinity());
    const auto walk = [axis](const Shape3& grid, const auto& each) {
        const auto [outer, inner] = sides(grid, axis);
        std::size_t at = 0;
        for (std::size_t o = 0; o < outer; ++o) {
            for (std::size_t slice = 0; slice < grid[axis]; ++slice) {
                for (std::size_t i = 0; i < inner; ++i, ++at) each(at, slice);
            }
        }
    };
    walk(have, [&](std::size_t at, std::size_t slice) {
        low[slice] = std::min(low[slice], source[at]);
        high[slice] = std::max(high[slice], source[at]);
    });
    walk(shape, [&](std::size_t at, std::size_t slice) { out[at] = std::min(std::max(out[at], low[slice]), high[slice]); });
}

}  // namespace

std::optional<std::size_t> separate_axis(const Rule& rule, const Spacing& before, const Spacing& after) {
    if (rule.separate_z == "never") return std::nullopt;
    if (rule.separate_z == "always") return coarsest(before);
    for (const Spacing& spacing : {before, after}) {
        const auto [low, high] = std::minmax_element(spacing.begin(), spacing.end());
        if (*high / *low > rule.anisotropy_threshold) return coarsest(spacing);
    }
    return std::nullopt;
}

AxisTaps axis_taps(std::size_t before, std::size_t after, Rule::Kind kind) {
    AxisTaps out;
    for (double position : sample_positions(before, after, kind)) {
        position = std::clamp(position, 0.0, static_cast<double>(before - 1));
        const std::size_t low = std::min(static_cast<std::size_t>(position), before >= 2 ? before - 2 : 0);
        out.low.push_back(low);
        out.high.push_back(std::min(low + 1, before - 1));
        out.weight.push_back(position - static_cast<double>(low));
    }
    return out;
}

std::vector<std::size_t> nearest_index(std::size_t before, std::size_t after, Rule::Kind kind) {
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < after; ++i) {
        const double middle = static_cast<double>(i) + 0.5;
        if (kind != Rule::Kind::spline) {
            const float position = static_cast<float>(middle) * (static_cast<float>(before) / static_cast<float>(after));
            out.push_back(clipped_floor(static_cast<double>(position), before));
        } else {
            out.push_back(clipped_floor(static_cast<double>(before) / static_cast<double>(after) * middle, before));
        }
    }
    return out;
}

template <typename T>
void resample_channel(const T* x, const Shape3& have, const Shape3& want, const Rule& rule, std::optional<std::size_t> separate, T* into) {
    if (!separate) {
        along_axes(x, have, want, rule, std::nullopt, into);
        if (rule.order > 1) clip(into, count(want), x, count(have));
        return;
    }
    Shape3 in_plane = want;
    in_plane[*separate] = have[*separate];
    std::vector<T> held(count(in_plane));
    along_axes(x, have, in_plane, rule, separate, held.data());
    if (rule.order > 1) clip_slices(held.data(), in_plane, x, have, *separate);
    const auto [outer, inner] = sides(in_plane, *separate);
    apply_index(nearest_index(have[*separate], want[*separate], rule.kind), held.data(), outer, have[*separate], inner, into);
}

template void resample_channel(const float*, const Shape3&, const Shape3&, const Rule&, std::optional<std::size_t>, float*);
template void resample_channel(const double*, const Shape3&, const Shape3&, const Rule&, std::optional<std::size_t>, double*);

Array<float> resample(Array<float> array, const Shape3& shape, const Rule& rule, const Spacing& before, const Spacing& after) {
    const Shape3 have = last_three(array.shape);
    if (have == shape) return array;
    const auto separate = separate_axis(rule, before, after);
    Array<float> out(as_shape(array.shape[0], shape));
    for (std::size_t c = 0; c < array.shape[0]; ++c) resample_channel(array.at(c), have, shape, rule, separate, out.at(c));
    return out;
}

// ------------------------------------------------------------------------------------------------- label maps

namespace {

std::vector<float> indicator_on(const Array<std::int32_t>& labels, std::int32_t label, const Shape3& shape, const Rule& rule,
                                std::optional<std::size_t> separate) {
    std::vector<float> indicator(labels.size()), out(count(shape));
    for (std::size_t i = 0; i < labels.size(); ++i) indicator[i] = labels.data[i] == label ? 1.0F : 0.0F;
    resample_channel(indicator.data(), last_three(labels.shape), shape, rule, separate, out.data());
    return out;
}

Array<std::int32_t> nearest_labels(const Array<std::int32_t>& labels, const Shape3& shape, std::optional<std::size_t> separate) {
    std::array<std::vector<std::size_t>, 3> index;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        index[axis] = axis == separate ? nearest_index(labels.shape[axis], shape[axis], Rule::Kind::spline)
                                       : order0_index(labels.shape[axis], shape[axis]);
    }
    Array<std::int32_t> out(as_shape(shape));
    std::size_t at = 0;
    for (const std::size_t z : index[0]) {
        for (const std::size_t y : index[1]) {
            const std::int32_t* row = labels.data.data() + (z * labels.shape[1] + y) * labels.shape[2];
            for (const std::size_t x : index[2]) out.data[at++] = row[x];
        }
    }
    return out;
}

}  // namespace

Array<std::int32_t> resample_labels(const Array<std::int32_t>& labels, const Shape3& shape, const Rule& rule,
                                    const Spacing& before, const Spacing& after, bool half) {
    if (last_three(labels.shape) == shape) return labels;
    const auto separate = separate_axis(rule, before, after);
    std::set<std::int32_t> found;
    for (std::size_t i = 0; i < labels.size(); ++i) {
        if (i == 0 || labels.data[i] != labels.data[i - 1]) found.insert(labels.data[i]);
    }
    Array<std::int32_t> out(as_shape(shape));
    if (half) {
        for (const std::int32_t label : found) {
            const auto share = indicator_on(labels, label, shape, rule, separate);
            for (std::size_t i = 0; i < out.size(); ++i) {
                if (share[i] >= 0.5F) out.data[i] = label;
            }
        }
        return out;
    }
    // Exact ties go to the nearest neighbour's label where that is among them, else to the smallest.
    const Array<std::int32_t> nearest = nearest_labels(labels, shape, separate);
    std::vector<float> best(out.size(), -1.0F);
    for (const std::int32_t label : found) {
        const auto share = indicator_on(labels, label, shape, rule, separate);
        for (std::size_t i = 0; i < out.size(); ++i) {
            if (share[i] < best[i] || (share[i] == best[i] && nearest.data[i] != label)) continue;
            out.data[i] = label;
            best[i] = share[i];
        }
    }
    return out;
}

}  // namespace segship
