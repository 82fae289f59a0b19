#include "matting2d.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

namespace segship {
namespace {

using Grey = Array<std::uint8_t>;

// One axis of an erosion by a line of `side`, as scipy centres it; beyond the edge lies `border`.
Grey erode_axis(const Grey& mask, std::size_t axis, std::ptrdiff_t side, bool border) {
    const auto length = static_cast<std::ptrdiff_t>(mask.shape[axis]);
    const std::size_t lines = mask.shape[1 - axis], apart = axis == 0 ? mask.shape[1] : 1, next = axis == 0 ? 1 : mask.shape[1];
    Grey out(mask.shape);
    std::vector<std::ptrdiff_t> empty(static_cast<std::size_t>(length) + 1, 0);  // zeros in front of each place
    for (std::size_t line = 0; line < lines; ++line) {
        const std::uint8_t* from = mask.data.data() + line * next;
        std::uint8_t* to = out.data.data() + line * next;
        for (std::size_t i = 0; i < static_cast<std::size_t>(length); ++i) empty[i + 1] = empty[i] + (from[i * apart] == 0);
        for (std::ptrdiff_t i = 0; i < length; ++i) {
            const std::ptrdiff_t low = i - side / 2, high = low + side;
            const bool beyond = low < 0 || high > length;
            const auto first = static_cast<std::size_t>(std::max<std::ptrdiff_t>(low, 0));
            const auto last = static_cast<std::size_t>(std::min(high, length));
            to[static_cast<std::size_t>(i) * apart] = (border || !beyond) && empty[last] == empty[first];
        }
    }
    return out;
}

Grey erode(const Grey& mask, int side, bool border) {
    if (side > 0) return erode_axis(erode_axis(mask, 0, side, border), 1, side, border);
    const Grey down = erode_axis(mask, 0, 3, border), across = erode_axis(mask, 1, 3, border);
    Grey out(mask.shape);
    std::transform(down.data.begin(), down.data.end(), across.data.begin(), out.data.begin(),
                   [](std::uint8_t a, std::uint8_t b) { return static_cast<std::uint8_t>(a & b); });
    return out;
}

template <typename Choose>
Grey chosen(const Grey& mask, Choose choose) {
    Grey out(mask.shape);
    std::transform(mask.data.begin(), mask.data.end(), out.data.begin(),
                   [&](std::uint8_t value) { return static_cast<std::uint8_t>(choose(value)); });
    return out;
}

std::uint8_t as_level(double value) { return static_cast<std::uint8_t>(std::clamp(value * 255, 0.0, 255.0)); }

Array<double> as_shares(const Grey& rgb) {
    Array<double> out(rgb.shape);
    std::transform(rgb.data.begin(), rgb.data.end(), out.data.begin(), [](std::uint8_t value) { return value / 255.0; });
    return out;
}

cv::Mat mat_of(const Grey& array) {
    const int type = array.rank() == 3 ? CV_8UC3 : CV_8U;
    return cv::Mat(static_cast<int>(array.shape[0]), static_cast<int>(array.shape[1]), type,
                   const_cast<std::uint8_t*>(array.data.data()));
}

Grey smaller(const Grey& array, std::size_t height, std::size_t width, int interpolation) {
    Shape shape = array.shape;
    shape[0] = height;
    shape[1] = width;
    Grey out(shape);
    cv::Mat target = mat_of(out);
    cv::resize(mat_of(array), target, target.size(), 0, 0, interpolation);
    return out;
}

// Solved on a reduced picture and enlarged.
Array<double> estimate_reduced(const Grey& rgb, const Grey& known, double scale) {
    const auto side = [&](std::size_t axis) {
        return std::max<std::size_t>(1, static_cast<std::size_t>(static_cast<double>(known.shape[axis]) * scale));
    };
    const std::size_t height = side(0), width = side(1);
    Array<double> solved = solve_alpha(as_shares(smaller(rgb, height, width, cv::INTER_AREA)),
                                       smaller(known, height, width, cv::INTER_NEAREST));
    Array<double> alpha(known.shape);
    const cv::Mat small(static_cast<int>(height), static_cast<int>(width), CV_64F, solved.data.data());
    cv::Mat target(static_cast<int>(known.shape[0]), static_cast<int>(known.shape[1]), CV_64F, alpha.data.data());
    cv::resize(small, target, target.size(), 0, 0, cv::INTER_LINEAR);
    for (std::size_t i = 0; i < known.size(); ++i) {
        if (known.data[i] == 255) alpha.data[i] = 1;
        if (known.data[i] == 0) alpha.data[i] = 0;
    }
    return alpha;
}

// ------------------------------------------------------------------------------------- the object's colours

constexpr float REGULARIZATION = 1e-5F;
constexpr std::size_t SMALL_SIZE = 32, SMALL_STEPS = 10, BIG_STEPS = 2;

// The nearest sample of each of (height, width).
Array<float> nearest(const Array<float>& source, std::size_t height, std::size_t width) {
    Shape shape = source.shape;
    shape[0] = height;
    shape[1] = width;
    Array<float> out(shape);
    const std::size_t depth = out.stride(1);
    for (std::size_t y = 0; y < height; ++y) {
        for (std::size_t x = 0; x < width; ++x) {
            const float* from = source.at(y * source.shape[0] / height) + x * source.shape[1] / width * depth;
            std::copy_n(from, depth, out.at(y) + x * depth);
        }
    }
    return out;
}

// The mean colour where alpha is on one side of a limit.
template <typename Choose>
Array<float> mean_color(const Array<float>& rgb, const Array<float>& alpha, Choose choose) {
    Array<float> mean(Shape{1, 1, 3});
    std::size_t count = 0;
    for (std::size_t i = 0; i < alpha.size(); ++i) {
        if (!choose(alpha.data[i])) continue;
        for (std::size_t c = 0; c < 3; ++c) mean.data[c] += rgb.data[3 * i + c];
        ++count;
    }
    for (float& value : mean.data) value = static_cast<float>(value / (static_cast<double>(count) + 1e-5));
    return mean;
}

struct Level {
    Array<float> rgb, alpha, front, behind;
};

// Both colours of one pixel from its own and its neighbours'.
void relax(Level& level, std::size_t y, std::size_t x) {
    const std::size_t height = level.alpha.shape[0], width = level.alpha.shape[1], here = y * width + x;
    const float a0 = level.alpha.data[here];
    const double a1 = 1.0 - a0;
    float a00 = a0 * a0;
    const double a01 = a0 * a1;
    double a11 = a1 * a1;
    std::array<float, 3> front{}, behind{};
    for (std::size_t c = 0; c < 3; ++c) {
        front[c] = a0 * level.rgb.data[3 * here + c];
        behind[c] = static_cast<float>(a1 * level.rgb.data[3 * here + c]);
    }
    const std::array<std::size_t, 4> around{y * width + (x == 0 ? 0 : x - 1), y * width + std::min(x + 1, width - 1),
                                            (y == 0 ? 0 : y - 1) * width + x, std::min(y + 1, height - 1) * width + x};
    for (std::size_t other : around) {
        const float share = REGULARIZATION + std::abs(a0 - level.alpha.data[other]);
        a00 += share;
        a11 += share;
        for (std::size_t c = 0; c < 3; ++c) {
            front[c] += share * level.front.data[3 * other + c];
            behind[c] += share * level.behind.data[3 * other + c];
        }
    }
    const double inverse = 1.0 / (a00 * a11 - a01 * a01);
    for (std::size_t c = 0; c < 3; ++c) {
        const double f = inverse * a11 * front[c] - inverse * a01 * behind[c];
        const double b = inverse * a00 * behind[c] - inverse * a01 * front[c];
        level.front.data[3 * here + c] = static_cast<float>(std::clamp(f, 0.0, 1.0));
        level.behind.data[3 * here + c] = static_cast<float>(std::clamp(b, 0.0, 1.0));
    }
}

}  // namespace

Grey trimap(const Grey& mask, int foreground, int background, int side) {
    const Grey inside = erode(chosen(mask, [&](int value) { return value > foreground; }), side, false);
    const Grey outside = erode(chosen(mask, [&](int value) { return value < background; }), side, true);
    Grey found(mask.shape, 128);
    for (std::size_t i = 0; i < found.size(); ++i) {
        if (inside.data[i] != 0) found.data[i] = 255;
        if (outside.data[i] != 0) found.data[i] = 0;
    }
    return found;
}

Array<double> estimate_alpha(const Grey& rgb, const Grey& known) {
    const auto has = [&](std::uint8_t level) { return std::find(known.data.begin(), known.data.end(), level) != known.data.end(); };
    if (!has(255) || !has(0)) throw MattingFailed("the mask has no sure object or no sure background");
    const double scale = std::sqrt(static_cast<double>(MATTING_MAX_PIXELS) / static_cast<double>(known.size()));
    return scale >= 1 ? solve_alpha(as_shares(rgb), known) : estimate_reduced(rgb, known, scale);
}

Array<float> estimate_foreground(const Array<float>& rgb, const Array<float>& alpha) {
    const double height = static_cast<double>(alpha.shape[0]), width = static_cast<double>(alpha.shape[1]);
    const int levels = static_cast<int>(std::ceil(std::log2(std::max(height, width))));
    Array<float> front = mean_color(rgb, alpha, [](float value) { return value > 0.9; });
    Array<float> behind = mean_color(rgb, alpha, [](float value) { return value < 0.1; });
    for (int i = 0; i <= levels; ++i) {
        const double share = levels == 0 ? 1.0 : static_cast<double>(i) / levels;
        const auto w = static_cast<std::size_t>(std::nearbyint(std::pow(width, share)));
        const auto h = static_cast<std::size_t>(std::nearbyint(std::pow(height, share)));
        Level level{nearest(rgb, h, w), nearest(alpha, h, w), nearest(front, h, w), nearest(behind, h, w)};
        const std::size_t steps = w <= SMALL_SIZE && h <= SMALL_SIZE ? SMALL_STEPS : BIG_STEPS;
        for (std::size_t step = 0; step < steps; ++step) {
            for (std::size_t y = 0; y < h; ++y) {
                for (std::size_t x = 0; x < w; ++x) relax(level, y, x);
            }
        }
        front = std::move(level.front);
        behind = std::move(level.behind);
    }
    return front;
}

Grey estimate_cutout(const Grey& rgb, const Grey& known) {
    const Array<double> alpha = estimate_alpha(rgb, known);
    const Array<double> shares = as_shares(rgb);
    const Array<float> colors = estimate_foreground({shares.shape, {shares.data.begin(), shares.data.end()}},
                                                    {alpha.shape, {alpha.data.begin(), alpha.data.end()}});
    Grey out(Shape{rgb.shape[0], rgb.shape[1], 4});
    for (std::size_t i = 0; i < alpha.size(); ++i) {
        for (std::size_t c = 0; c < 3; ++c) out.data[4 * i + c] = as_level(static_cast<double>(colors.data[3 * i + c]));
        out.data[4 * i + 3] = as_level(alpha.data[i]);
    }
    return out;
}

}  // namespace segship
