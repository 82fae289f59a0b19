// Pillow's resampling (python-pillow/Pillow: src/libImaging/Resample.c): a window of the filter, widened when a picture
// becomes smaller, weighs the source pixels; 8-bit pictures in fixed point, rounded to 8 bits between the two passes.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "clones.hpp"
#include "resize.hpp"

namespace segship {
namespace {

constexpr double PI = 3.14159265358979323846;
// 8 bits of the value and 2 of head room (weights of Lanczos overshoot) leave these for the weights.
constexpr int WEIGHT_BITS = 32 - 8 - 2;

struct Weights {
    std::vector<std::size_t> first;
    std::vector<std::size_t> count;
    std::size_t taps = 0;
    // (outputs, taps)
    std::vector<double> values;
};

double triangle(double x) {
    x = std::abs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= PI;
    return std::sin(x) / x;
}

double lanczos3(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

Weights weights_of(std::size_t before, std::size_t after, bool lanczos, Span span) {
    const double scale = (span.high - span.low) / static_cast<double>(after);
    const double widened = std::max(scale, 1.0);
    const double support = (lanczos ? 3.0 : 1.0) * widened;
    Weights found;
    found.taps = static_cast<std::size_t>(std::ceil(support)) * 2 + 1;
    found.values.assign(after * found.taps, 0.0);
    for (std::size_t i = 0; i < after; ++i) {
        const double centre = span.low + (static_cast<double>(i) + 0.5) * scale;
        const int low = std::max(0, static_cast<int>(centre - support + 0.5));
        const int high = std::min(static_cast<int>(before), static_cast<int>(centre + support + 0.5));
        double* row = found.values.data() + i * found.taps;
        double sum = 0.0;
        for (int x = low; x < high; ++x) {
            const double at = (x - centre + 0.5) * (1.0 / widened);
            row[x - low] = lanczos ? lanczos3(at) : triangle(at);
            sum += row[x - low];
        }
        for (int x = low; x < high && sum != 0.0; ++x) row[x - low] /= sum;
        found.first.push_back(static_cast<std::size_t>(low));
        found.count.push_back(static_cast<std::size_t>(std::max(0, high - low)));
    }
    return found;
}

std::vector<int> fixed_point(const std::vector<double>& values) {
    std::vector<int> out(values.size());
    std::transform(values.begin(), values.end(), out.begin(), [](double value) {
        return static_cast<int>((value < 0 ? -0.5 : 0.5) + value * (1 << WEIGHT_BITS));
    });
    return out;
}

std::uint8_t to_level(int sum) { return static_cast<std::uint8_t>(std::clamp(sum >> WEIGHT_BITS, 0, 255)); }

SEGSHIP_CLONES void add_weighted(int* sums, const std::uint8_t* row, int weight, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] += row[i] * weight;
}

SEGSHIP_CLONES void add_weighted(double* sums, const float* row, double weight, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) sums[i] += row[i] * weight;
}

// The sums of a type: whole numbers for 8 bits, doubles for floats.
template <typename T>
struct Sum {
    using Type = double;
    static constexpr Type START = 0.0;
    static std::vector<Type> weights(const Weights& w) { return w.values; }
    static T finish(Type sum) { return static_cast<T>(sum); }
};
template <>
struct Sum<std::uint8_t> {
    using Type = int;
    static constexpr Type START = 1 << (WEIGHT_BITS - 1);
    static std::vector<Type> weights(const Weights& w) { return fixed_point(w.values); }
    static std::uint8_t finish(Type sum) { return to_level(sum); }
};

template <typename T>
Array<T> down_pass(const Array<T>& picture, std::size_t height, const Weights& where) {
    const std::size_t row = picture.stride(0);
    const auto weights = Sum<T>::weights(where);
    Array<T> out(Shape{height, picture.shape[1], picture.shape[2]});
    std::vector<typename Sum<T>::Type> sums(row);
    for (std::size_t y = 0; y < height; ++y) {
        std::fill(sums.begin(), sums.end(), Sum<T>::START);
        for (std::size_t k = 0; k < where.count[y]; ++k) {
            add_weighted(sums.data(), picture.at(where.first[y] + k), weights[y * where.taps + k], row);
        }
        std::transform(sums.begin(), sums.end(), out.at(y), [](auto sum) { return Sum<T>::finish(sum); });
    }
    return out;
}

template <typename T>
Array<T> across_pass(const Array<T>& picture, std::size_t width, const Weights& where) {
    const std::size_t height = picture.shape[0], channels = picture.shape[2];
    const auto weights = Sum<T>::weights(where);
    Array<T> out(Shape{height, width, channels});
    for (std::size_t y = 0; y < height; ++y) {
        T* target = out.at(y);
        for (std::size_t x = 0; x < width; ++x) {
            const T* source = picture.at(y) + where.first[x] * channels;
            const auto* weight = weights.data() + x * where.taps;
            for (std::size_t c = 0; c < channels; ++c) {
                auto sum = Sum<T>::START;
                for (std::size_t k = 0; k < where.count[x]; ++k) sum += source[k * channels + c] * weight[k];
                target[x * channels + c] = Sum<T>::finish(sum);
            }
        }
    }
    return out;
}

bool covers(Span span, std::size_t side) { return span.low == 0.0 && span.high == static_cast<double>(side); }

template <typename T>
Array<T> both_passes(const Array<T>& picture, Size size, bool lanczos, Span across, Span down) {
    const std::size_t height = picture.shape[0], width = picture.shape[1];
    Array<T> out = picture;
    if (size.width != width || !covers(across, width)) {
        out = across_pass(out, size.width, weights_of(width, size.width, lanczos, across));
    }
    if (size.height != height || !covers(down, height)) {
        out = down_pass(out, size.height, weights_of(height, size.height, lanczos, down));
    }
    return out;
}

template <typename T>
T from_float(float value) {
    if constexpr (std::is_floating_point_v<T>) return static_cast<T>(value);
    return static_cast<T>(static_cast<int>(value));
}

}  // namespace

Array<std::uint8_t> resize_pillow(const Array<std::uint8_t>& picture, Size size, bool lanczos, Span across, Span down) {
    return both_passes(picture, size, lanczos, across, down);
}

Array<float> resize_pillow(const Array<float>& picture, Size size, bool lanczos, Span across, Span down) {
    return both_passes(picture, size, lanczos, across, down);
}

Picture resize_pillow(const Picture& picture, Size size, bool lanczos) {
    const Span across{0, static_cast<double>(picture.size().width)};
    const Span down{0, static_cast<double>(picture.size().height)};
    const auto* levels = std::get_if<Array<std::uint8_t>>(&picture.values);
    if (levels != nullptr && !picture.boolean) return {resize_pillow(*levels, size, lanczos, across, down), false};
    // Pillow knows no other whole numbers: everything else goes through floats and back.
    return std::visit(
        [&](const auto& array) {
            using T = std::decay_t<decltype(array.data[0])>;
            const Array<float> given(array.shape, {array.data.begin(), array.data.end()});
            const Array<float> found = resize_pillow(given, size, lanczos, across, down);
            Array<T> out(found.shape);
            std::transform(found.data.begin(), found.data.end(), out.data.begin(), [&](float value) {
                return picture.boolean ? static_cast<T>(value != 0.0F) : from_float<T>(value);
            });
            return Picture{std::move(out), picture.boolean};
        },
        picture.values);
}

}  // namespace segship
