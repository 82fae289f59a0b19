// scikit-image's transform.resize of order 1 with zeros outside. Gaussian and bilinear interpolation are both linear and
// separable, so each axis is one banded matrix: only the values that reach the result are ever filtered.

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "clones.hpp"
#include "parallel.hpp"
#include "resize.hpp"

namespace segship {
namespace {

constexpr std::size_t ROWS = 16;  // of the result, that one thread makes at once
constexpr std::size_t SMALL = 1 << 16;  // values that are not worth a second thread

struct Taps {
    // First source index of each output; may lie outside the source, where weights are zero.
    std::vector<std::ptrdiff_t> start;
    std::size_t count = 0;
    // (outputs, count)
    std::vector<double> weights;
};

std::vector<double> gaussian_kernel(double sigma, std::ptrdiff_t radius) {
    std::vector<double> kernel;
    double sum = 0.0;
    for (std::ptrdiff_t i = -radius; i <= radius; ++i) {
        const double at = radius == 0 ? 0.0 : static_cast<double>(i) / sigma;
        kernel.push_back(std::exp(-0.5 * at * at));
        sum += kernel.back();
    }
    for (double& value : kernel) value /= sum;
    return kernel;
}

Taps taps_of(std::size_t before, std::size_t after, bool antialias) {
    const double factor = static_cast<double>(before) / static_cast<double>(after);
    const double sigma = antialias ? std::max(0.0, (factor - 1) / 2) : 0.0;
    const auto radius = static_cast<std::ptrdiff_t>(4 * sigma + 0.5);
    const std::vector<double> kernel = gaussian_kernel(sigma, radius);
    const auto side = static_cast<std::ptrdiff_t>(before);
    Taps taps;
    taps.count = kernel.size() + 1;
    taps.weights.assign(after * taps.count, 0.0);
    for (std::size_t i = 0; i < after; ++i) {
        const double centre = (static_cast<double>(i) + 0.5) * factor - 0.5;
        const double floor = std::floor(centre), fraction = centre - floor;
        const auto first = static_cast<std::ptrdiff_t>(floor);
        double* row = taps.weights.data() + i * taps.count;
        for (std::size_t shift = 0; shift < 2; ++shift) {
            const std::ptrdiff_t at = first + static_cast<std::ptrdiff_t>(shift);
            if (at < 0 || at >= side) continue;  // outside, the filtered picture is zero
            const double share = shift == 0 ? 1 - fraction : fraction;
            for (std::size_t k = 0; k < kernel.size(); ++k) row[shift + k] += share * kernel[k];
        }
        const std::ptrdiff_t start = first - radius;
        for (std::size_t k = 0; k < taps.count; ++k) {
            const std::ptrdiff_t at = start + static_cast<std::ptrdiff_t>(k);
            if (at < 0 || at >= side) row[k] = 0.0;
        }
        taps.start.push_back(start);
    }
    return taps;
}

#define SEGSHIP_ADD_ROW(TYPE)                                                                              \
    SEGSHIP_CLONES void add_row(double* sums, const TYPE* row, double weight, std::size_t count) {          \
        for (std::size_t i = 0; i < count; ++i) sums[i] += static_cast<double>(row[i]) * weight;            \
    }
SEGSHIP_ADD_ROW(std::uint8_t)
SEGSHIP_ADD_ROW(std::uint16_t)
SEGSHIP_ADD_ROW(float)
SEGSHIP_ADD_ROW(double)
#undef SEGSHIP_ADD_ROW

// One row (W, C) of doubles resampled to (w, C).
template <std::size_t C>
void across_row(const double* row, std::size_t before, const Taps& taps, double* out, std::size_t channels) {
    const std::size_t planes = C == 0 ? channels : C;
    for (std::size_t x = 0; x < taps.start.size(); ++x) {
        const double* weight = taps.weights.data() + x * taps.count;
        const std::ptrdiff_t low = std::max<std::ptrdiff_t>(0, taps.start[x]);
        const std::ptrdiff_t high =
            std::min(static_cast<std::ptrdiff_t>(before), taps.start[x] + static_cast<std::ptrdiff_t>(taps.count));
        for (std::size_t c = 0; c < planes; ++c) out[x * planes + c] = 0.0;
        for (std::ptrdiff_t at = low; at < high; ++at) {
            const double share = weight[at - taps.start[x]];
            const double* source = row + static_cast<std::size_t>(at) * planes;
            for (std::size_t c = 0; c < planes; ++c) out[x * planes + c] += source[c] * share;
        }
    }
}

// Two taps an axis: only four values of the source a value of the result are looked at.
template <typename T>
void mix_row(const Array<T>& array, const Taps& down, const Taps& across, std::size_t y, double* out) {
    const std::size_t channels = array.shape[2], width = across.start.size();
    const auto row_at = [&](std::size_t k) {
        return array.at(static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(
            down.start[y] + static_cast<std::ptrdiff_t>(k), 0, static_cast<std::ptrdiff_t>(array.shape[0]) - 1)));
    };
    const T* rows[2] = {row_at(0), row_at(1)};
    const double* share = down.weights.data() + 2 * y;
    const auto last = static_cast<std::ptrdiff_t>(array.shape[1]) - 1;
    for (std::size_t x = 0; x < width; ++x) {
        const auto left = static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(across.start[x], 0, last)) * channels;
        const auto right = static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(across.start[x] + 1, 0, last)) * channels;
        const double* weight = across.weights.data() + 2 * x;
        for (std::size_t c = 0; c < channels; ++c) {
            const double above = static_cast<double>(rows[0][left + c]) * weight[0] + static_cast<double>(rows[0][right + c]) * weight[1];
            const double below = static_cast<double>(rows[1][left + c]) * weight[0] + static_cast<double>(rows[1][right + c]) * weight[1];
            out[x * channels + c] = above * share[0] + below * share[1];
        }
    }
}

template <typename T>
Array<double> resize_values(const Array<T>& array, Size size, bool antialias) {
    const std::size_t before = array.shape[1], channels = array.shape[2], row = array.stride(0);
    const Taps down = taps_of(array.shape[0], size.height, antialias), across = taps_of(before, size.width, antialias);
    Array<double> out(Shape{size.height, size.width, channels});
    const bool plain = down.count == 2 && across.count == 2;
    const std::size_t height = out.size() < SMALL ? size.height : ROWS;
    on_threads((size.height + height - 1) / height, [&](std::size_t group) {
        std::vector<double> strip(plain ? 0 : row);
        for (std::size_t y = group * height; y < std::min(size.height, (group + 1) * height); ++y) {
            if (plain) {
                mix_row(array, down, across, y, out.at(y));
                continue;
            }
            std::fill(strip.begin(), strip.end(), 0.0);
            for (std::size_t k = 0; k < down.count; ++k) {
                const double weight = down.weights[y * down.count + k];
                if (weight == 0.0) continue;  // also what lies outside
                const auto at = static_cast<std::size_t>(down.start[y] + static_cast<std::ptrdiff_t>(k));
                add_row(strip.data(), array.at(at), weight, row);
            }
            if (channels == 3) {
                across_row<3>(strip.data(), before, across, out.at(y), channels);
            } else {
                across_row<0>(strip.data(), before, across, out.at(y), channels);
            }
        }
    });
    return out;
}

template <typename T>
void into_range(Array<double>& out, const Array<T>& given) {
    const auto [low, high] = std::minmax_element(given.data.begin(), given.data.end());
    const double least = static_cast<double>(*low), most = static_cast<double>(*high);
    const double top = std::is_integral_v<T> ? static_cast<double>(std::numeric_limits<T>::max()) : 1.0;
    for (double& value : out.data) value = std::clamp(value, least, most) / top;
}

// Truth values take their nearest neighbour.
std::vector<std::size_t> nearest(std::size_t before, std::size_t after) {
    std::vector<std::size_t> found;
    const double factor = static_cast<double>(before) / static_cast<double>(after);
    for (std::size_t i = 0; i < after; ++i) {
        const double centre = std::floor((static_cast<double>(i) + 0.5) * factor - 0.5 + 0.5);
        found.push_back(static_cast<std::size_t>(std::clamp(centre, 0.0, static_cast<double>(before - 1))));
    }
    return found;
}

Array<double> resize_truth(const Array<std::uint8_t>& array, Size size) {
    const std::size_t channels = array.shape[2];
    const auto rows = nearest(array.shape[0], size.height), columns = nearest(array.shape[1], size.width);
    Array<double> out(Shape{size.height, size.width, channels});
    for (std::size_t y = 0; y < size.height; ++y) {
        for (std::size_t x = 0; x < size.width; ++x) {
            const std::uint8_t* pixel = array.at(rows[y]) + columns[x] * channels;
            for (std::size_t c = 0; c < channels; ++c) out.at(y)[x * channels + c] = pixel[c] != 0 ? 1.0 : 0.0;
        }
    }
    return out;
}

}  // namespace

Picture resize_skimage(const Picture& picture, Size size, bool antialias) {
    if (picture.boolean) return {resize_truth(std::get<Array<std::uint8_t>>(picture.values), size), false};
    return std::visit(
        [&](const auto& array) {
            Array<double> out = resize_values(array, size, antialias);
            into_range(out, array);
            return Picture{std::move(out), false};
        },
        picture.values);
}

}  // namespace segship
