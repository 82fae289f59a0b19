// Bilinear interpolation between pixel centres, positions in doubles, as OpenCV's builds with Intel's IPP compute it for all
// but 8 bits (and torch's interpolate). OpenCV's own loops keep positions in floats, which moves values by up to 1e-4.

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "clones.hpp"
#include "parallel.hpp"
#include "resize.hpp"

namespace segship {
namespace {

constexpr std::size_t ROWS = 32;  // of the result, that one thread makes at once
constexpr std::size_t SMALL = 1 << 16;  // values that are not worth a second thread

// Both samples of every value of a row (width x channels).
template <typename Number>
struct RowTaps {
    std::vector<std::uint32_t> low, high;
    std::vector<Number> share;
};

template <typename Number>
RowTaps<Number> row_taps(std::size_t before, std::size_t after, std::size_t channels) {
    const LinearTaps taps = linear_taps(before, after, false);
    RowTaps<Number> found;
    for (std::size_t x = 0; x < after; ++x) {
        for (std::size_t c = 0; c < channels; ++c) {
            found.low.push_back(static_cast<std::uint32_t>(taps.low[x] * channels + c));
            found.high.push_back(static_cast<std::uint32_t>(taps.high[x] * channels + c));
            found.share.push_back(static_cast<Number>(taps.fraction[x]));
        }
    }
    return found;
}

#define SEGSHIP_ACROSS(TYPE, NUMBER)                                                                                    \
    SEGSHIP_CLONES void across(const TYPE* row, const std::uint32_t* low, const std::uint32_t* high, const NUMBER* share, \
                               NUMBER* out, std::size_t count) {                                                        \
        for (std::size_t i = 0; i < count; ++i) {                                                                       \
            const NUMBER first = static_cast<NUMBER>(row[low[i]]);                                                      \
            out[i] = first + (static_cast<NUMBER>(row[high[i]]) - first) * share[i];                                    \
        }                                                                                                               \
    }
SEGSHIP_ACROSS(std::uint8_t, float)
SEGSHIP_ACROSS(std::uint16_t, float)
SEGSHIP_ACROSS(float, float)
SEGSHIP_ACROSS(double, float)
SEGSHIP_ACROSS(double, double)
#undef SEGSHIP_ACROSS

SEGSHIP_CLONES void between(const float* above, const float* below, float share, float* out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) out[i] = above[i] + (below[i] - above[i]) * share;
}

SEGSHIP_CLONES void between(const double* above, const double* below, double share, double* out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) out[i] = above[i] + (below[i] - above[i]) * share;
}

void between(const float* above, const float* below, float share, std::uint16_t* out, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        out[i] = static_cast<std::uint16_t>(std::nearbyint(above[i] + (below[i] - above[i]) * share));
    }
}

template <typename Out, typename T>
Array<Out> linear(const Array<T>& array, Size size) {
    using Number = std::conditional_t<std::is_same_v<Out, double>, double, float>;
    const std::size_t count = size.width * array.shape[2];
    const RowTaps<Number> columns = row_taps<Number>(array.shape[1], size.width, array.shape[2]);
    const LinearTaps rows = linear_taps(array.shape[0], size.height, false);
    Array<Out> out(Shape{size.height, size.width, array.shape[2]});
    const std::size_t height = out.size() < SMALL ? size.height : ROWS;
    on_threads((size.height + height - 1) / height, [&](std::size_t group) {
        constexpr std::size_t NONE = static_cast<std::size_t>(-1);
        std::vector<Number> above(count), below(count);
        std::size_t have_above = NONE, have_below = NONE;
        const auto make = [&](std::size_t row, std::vector<Number>& into) {
            across(array.at(row), columns.low.data(), columns.high.data(), columns.share.data(), into.data(), count);
        };
        for (std::size_t y = group * height; y < std::min(size.height, (group + 1) * height); ++y) {
            if (rows.low[y] == have_below) {
                std::swap(above, below);
                std::swap(have_above, have_below);
            }
            if (rows.low[y] != have_above) make(rows.low[y], above);
            have_above = rows.low[y];
            if (rows.high[y] != have_below) make(rows.high[y], below);
            have_below = rows.high[y];
            between(above.data(), below.data(), static_cast<Number>(rows.fraction[y]), out.at(y), count);
        }
    });
    return out;
}

}  // namespace

Array<std::uint16_t> resize_linear(const Array<std::uint16_t>& array, Size size) {
    return linear<std::uint16_t>(array, size);
}

Array<float> resize_linear(const Array<float>& array, Size size) { return linear<float>(array, size); }

Array<double> resize_linear(const Array<double>& array, Size size) { return linear<double>(array, size); }

Array<float> resize_torch(const Picture& picture, Size size) {
    return std::visit([&](const auto& array) { return linear<float>(array, size); }, picture.values);
}

}  // namespace segship
