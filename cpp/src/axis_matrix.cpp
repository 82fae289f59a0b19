#include "axis_matrix.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "clones.hpp"
#include "errors.hpp"
#include "parallel.hpp"

namespace segship {
namespace {

constexpr std::size_t kPad = 12;  // scikit-image's and scipy's padding before the cubic prefilter with mode 'nearest'
constexpr std::size_t kLanes = 64;     // samples side by side that are mixed at once
const double kPole = std::sqrt(3.0) - 2.0;

// The cubic B-spline prefilter of one line, mirrored at its ends (scipy.ndimage.spline_filter1d, order 3).
void prefilter(std::vector<double>& c) {
    const std::size_t n = c.size();
    const double z = kPole, gain = (1 - z) * (1 - 1 / z);
    for (double& value : c) value *= gain;
    const double last = std::pow(z, static_cast<double>(n - 1));
    double power = z;
    c[0] += last * c[n - 1];
    for (std::size_t i = 1; i + 1 < n; ++i) {
        c[0] += power * (c[i] + last * c[n - 1 - i]);
        power *= z;
    }
    c[0] /= 1 - last * last;
    for (std::size_t i = 1; i < n; ++i) c[i] += z * c[i - 1];
    c[n - 1] = (z * c[n - 2] + c[n - 1]) * z / (z * z - 1);
    for (std::size_t i = n - 1; i-- > 0;) c[i] = z * (c[i + 1] - c[i]);
}

// [padded sample][source sample]: what each source sample adds to each spline coefficient.
std::vector<std::vector<double>> coefficients(std::size_t before) {
    const std::size_t padded = before + 2 * kPad;
    std::vector<std::vector<double>> out(padded, std::vector<double>(before));
    std::vector<double> line(padded);
    for (std::size_t source = 0; source < before; ++source) {
        std::fill(line.begin(), line.end(), 0.0);
        line[source + kPad] = 1;
        if (source == 0) std::fill(line.begin(), line.begin() + kPad, 1.0);  // edge padding
        if (source + 1 == before) std::fill(line.end() - static_cast<std::ptrdiff_t>(kPad), line.end(), 1.0);
        prefilter(line);
        for (std::size_t i = 0; i < padded; ++i) out[i][source] = line[i];
    }
    return out;
}

void append_row(AxisMatrix& matrix, const std::vector<double>& row, double negligible) {
    std::size_t first = 0, end = row.size();
    while (first + 1 < end && std::abs(row[first]) < negligible) ++first;
    while (end > first + 1 && std::abs(row[end - 1]) < negligible) --end;
    matrix.first.push_back(first);
    matrix.count.push_back(end - first);
    matrix.start.push_back(matrix.weights.size());
    for (std::size_t i = first; i < end; ++i) matrix.weights.push_back(row[i]);
}

AxisMatrix cubic_matrix(std::size_t before, std::size_t after, double negligible) {
    const auto spline = coefficients(before);
    const double scale = static_cast<double>(before) / static_cast<double>(after);
    const auto last = static_cast<std::ptrdiff_t>(spline.size()) - 1;
    AxisMatrix out;
    std::vector<double> row(before);
    for (std::size_t o = 0; o < after; ++o) {
        const double position = (static_cast<double>(o) + 0.5) * scale - 0.5 + static_cast<double>(kPad);
        const double whole = std::floor(position), t = position - whole, s = 1 - t;
        const double taps[4] = {s * s * s / 6, (3 * t * t * t - 6 * (t * t) + 4) / 6, (-3 * t * t * t + 3 * (t * t) + 3 * t + 1) / 6,
                                t * t * t / 6};
        std::fill(row.begin(), row.end(), 0.0);
        for (std::ptrdiff_t k = 0; k < 4; ++k) {
            const auto at = std::clamp<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(whole) - 1 + k, 0, last);
            const auto& part = spline[static_cast<std::size_t>(at)];
            for (std::size_t i = 0; i < before; ++i) row[i] += taps[k] * part[i];
        }
        append_row(out, row, negligible);
    }
    return out;
}

AxisMatrix linear_matrix(std::size_t before, std::size_t after) {
    const AxisTaps taps = axis_taps(before, after, Rule::Kind::spline);
    AxisMatrix out;
    for (std::size_t o = 0; o < after; ++o) {
        const bool one = taps.low[o] == taps.high[o];
        out.first.push_back(taps.low[o]);
        out.count.push_back(one ? 1 : 2);
        out.start.push_back(out.weights.size());
        out.weights.push_back(one ? 1.0 : 1 - taps.weight[o]);
        if (!one) out.weights.push_back(taps.weight[o]);
    }
    return out;
}

// Rows of `width` <= kLanes samples side by side, `in_step` and `out_step` apart.
template <typename T>
inline __attribute__((always_inline)) void mix(const AxisMatrix& matrix, const T* x, std::size_t in_step, T* out, std::size_t out_step,
                                               std::size_t width) {
    for (std::size_t o = 0; o < matrix.first.size(); ++o) {
        const T* from = x + matrix.first[o] * in_step;
        const double* weights = matrix.weights.data() + matrix.start[o];
        T sum[kLanes] = {};
        for (std::size_t k = 0; k < matrix.count[o]; ++k, from += in_step) {
            const T weight = static_cast<T>(weights[k]);
            if (width == kLanes) {
                for (std::size_t i = 0; i < kLanes; ++i) sum[i] += weight * from[i];
            } else {
                for (std::size_t i = 0; i < width; ++i) sum[i] += weight * from[i];
            }
        }
        std::memcpy(out + o * out_step, sum, width * sizeof(T));
    }
}

SEGSHIP_CLONES
void mix_lanes(const AxisMatrix& matrix, const float* x, std::size_t in_step, float* out, std::size_t out_step, std::size_t width) {
    mix(matrix, x, in_step, out, out_step, width);
}

void mix_lanes(const AxisMatrix& matrix, const double* x, std::size_t in_step, double* out, std::size_t out_step, std::size_t width) {
    mix(matrix, x, in_step, out, out_step, width);
}

// Lines of the last axis: turned so that they lie side by side, mixed, turned back.
template <typename T>
void mix_lines(const AxisMatrix& matrix, const T* x, std::size_t before, T* out, std::size_t lines) {
    const std::size_t after = matrix.rows();
    std::vector<T> turned(before * kLanes), mixed(after * kLanes);
    for (std::size_t line = 0; line < lines; ++line) {
        for (std::size_t i = 0; i < before; ++i) turned[i * kLanes + line] = x[line * before + i];
    }
    mix_lanes(matrix, turned.data(), kLanes, mixed.data(), kLanes, lines);
    for (std::size_t line = 0; line < lines; ++line) {
        for (std::size_t o = 0; o < after; ++o) out[line * after + o] = mixed[o * kLanes + line];
    }
}

std::size_t pieces(std::size_t whole, std::size_t part) { return (whole + part - 1) / part; }

}  // namespace

AxisMatrix axis_matrix(std::size_t before, std::size_t after, int order, double negligible) {
    if (order == 1) return linear_matrix(before, after);
    if (order == 3) return cubic_matrix(before, after, negligible);
    throw PackageError("interpolation order " + std::to_string(order) + " is not offered; orders are 0, 1 and 3");
}

template <typename T>
void apply_matrix(const AxisMatrix& matrix, const T* x, std::size_t outer, std::size_t before, std::size_t inner, T* out) {
    const std::size_t after = matrix.rows();
    if (inner == 1) {
        on_threads(pieces(outer, kLanes), [&](std::size_t job) {
            const std::size_t line = job * kLanes;
            mix_lines(matrix, x + line * before, before, out + line * after, std::min(kLanes, outer - line));
        });
        return;
    }
    const std::size_t columns = pieces(inner, kLanes);
    on_threads(outer * columns, [&](std::size_t job) {
        const std::size_t block = job / columns, column = job % columns * kLanes;
        mix_lanes(matrix, x + block * before * inner + column, inner, out + block * after * inner + column, inner,
                  std::min(kLanes, inner - column));
    });
}

SEGSHIP_CLONES
static void mix_two(const float* low, const float* high, float weight, std::size_t count, float* out) {
    const float rest = 1.0F - weight;
    for (std::size_t i = 0; i < count; ++i) out[i] = low[i] * rest + high[i] * weight;
}

void apply_taps(const AxisTaps& taps, const float* x, std::size_t outer, std::size_t before, std::size_t inner, float* out) {
    const std::size_t after = taps.low.size();
    std::vector<float> weight(taps.weight.begin(), taps.weight.end());
    on_threads(outer, [&](std::size_t block) {
        const float* from = x + block * before * inner;
        float* into = out + block * after * inner;
        if (inner == 1) {
            for (std::size_t o = 0; o < after; ++o) {
                into[o] = from[taps.low[o]] * (1.0F - weight[o]) + from[taps.high[o]] * weight[o];
            }
            return;
        }
        for (std::size_t o = 0; o < after; ++o) {
            mix_two(from + taps.low[o] * inner, from + taps.high[o] * inner, weight[o], inner, into + o * inner);
        }
    });
}

template <typename T>
void apply_index(const std::vector<std::size_t>& index, const T* x, std::size_t outer, std::size_t before, std::size_t inner, T* out) {
    const std::size_t after = index.size();
    for (std::size_t block = 0; block < outer; ++block) {
        const T* from = x + block * before * inner;
        T* into = out + block * after * inner;
        if (inner == 1) {
            for (std::size_t o = 0; o < after; ++o) into[o] = from[index[o]];
            continue;
        }
        for (std::size_t o = 0; o < after; ++o) std::memcpy(into + o * inner, from + index[o] * inner, inner * sizeof(T));
    }
}

template void apply_matrix(const AxisMatrix&, const float*, std::size_t, std::size_t, std::size_t, float*);
template void apply_matrix(const AxisMatrix&, const double*, std::size_t, std::size_t, std::size_t, double*);
template void apply_index(const std::vector<std::size_t>&, const float*, std::size_t, std::size_t, std::size_t, float*);
template void apply_index(const std::vector<std::size_t>&, const double*, std::size_t, std::size_t, std::size_t, double*);

}  // namespace segship
