#include "resize.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "errors.hpp"

namespace segship {
namespace {

template <typename T>
constexpr int cv_depth() {
    if constexpr (std::is_same_v<T, std::uint8_t>) return CV_8U;
    if constexpr (std::is_same_v<T, std::uint16_t>) return CV_16U;
    if constexpr (std::is_same_v<T, float>) return CV_32F;
    return CV_64F;
}

template <typename T>
cv::Mat as_mat(const Array<T>& array) {
    // cv::Mat has no constant view; nothing is written through this one.
    return cv::Mat(static_cast<int>(array.shape[0]), static_cast<int>(array.shape[1]),
                   CV_MAKETYPE(cv_depth<T>(), static_cast<int>(array.shape[2])), const_cast<T*>(array.data.data()));
}

template <typename T>
Array<T> resize_opencv(const Array<T>& array, Size size, int interpolation) {
    if constexpr (!std::is_same_v<T, std::uint8_t>) {
        if (interpolation == cv::INTER_LINEAR) return resize_linear(array, size);
    }
    Array<T> out(Shape{size.height, size.width, array.shape[2]});
    cv::Mat target = as_mat(out);
    try {
        cv::resize(as_mat(array), target, target.size(), 0, 0, interpolation);
    } catch (const cv::Exception& error) {
        throw InputError("OpenCV cannot resize an array of " + std::to_string(array.shape[0]) + "x" +
                         std::to_string(array.shape[1]) + "x" + std::to_string(array.shape[2]) + " (" + error.err + ")");
    }
    return out;
}

template <typename T>
Array<float> to_floats(const Array<T>& array) {
    return Array<float>(array.shape, {array.data.begin(), array.data.end()});
}

// One axis of (outer, axis, inner) interpolated between two samples each.
Array<float> mix_axis(const Array<float>& x, std::size_t axis, std::size_t after) {
    const std::size_t before = x.shape[axis], inner = x.stride(axis);
    const std::size_t outer = x.size() / (before * inner);
    const LinearTaps taps = linear_taps(before, after, true);
    Shape shape = x.shape;
    shape[axis] = after;
    Array<float> out(shape);
    for (std::size_t o = 0; o < outer; ++o) {
        const float* source = x.data.data() + o * before * inner;
        float* target = out.data.data() + o * after * inner;
        for (std::size_t i = 0; i < after; ++i) {
            const float* low = source + taps.low[i] * inner;
            const float* high = source + taps.high[i] * inner;
            const float share = static_cast<float>(taps.fraction[i]), rest = 1.0F - share;
            for (std::size_t j = 0; j < inner; ++j) target[i * inner + j] = low[j] * rest + high[j] * share;
        }
    }
    return out;
}

int interpolation_of(const std::string& rule) {
    if (rule == "linear") return cv::INTER_LINEAR;
    if (rule == "nearest") return cv::INTER_NEAREST;
    return rule == "area" ? cv::INTER_AREA : -1;
}

template <typename T>
Array<T> resize_planes_of(const Array<T>& planes, Size size, const std::string& method) {
    const std::size_t count = planes.shape[0], height = planes.shape[1], width = planes.shape[2];
    Array<T> out(Shape{count, size.height, size.width});
    for (std::size_t k = 0; k < count; ++k) {
        // One plane at a time: OpenCV's last bits differ with the number of channels.
        Picture plane{Array<T>(Shape{height, width, 1}, {planes.at(k), planes.at(k) + height * width}), false};
        const Picture found = resize(plane, size, method);
        std::visit(
            [&](const auto& array) {
                using From = std::decay_t<decltype(array.data[0])>;
                std::transform(array.data.begin(), array.data.end(), out.at(k), [](From value) {
                    if constexpr (std::is_floating_point_v<From> && std::is_integral_v<T>) {
                        return static_cast<T>(std::clamp(std::nearbyint(value), From{0}, From{255}));
                    } else {
                        return static_cast<T>(value);
                    }
                });
            },
            found.values);
    }
    return out;
}

}  // namespace

LinearTaps linear_taps(std::size_t before, std::size_t after, bool align_corners) {
    LinearTaps taps;
    taps.low.reserve(after);
    taps.high.reserve(after);
    taps.fraction.reserve(after);
    const double last = static_cast<double>(before - 1);
    const double scale = align_corners ? (after > 1 ? last / static_cast<double>(after - 1) : 0.0)
                                       : static_cast<double>(before) / static_cast<double>(after);
    for (std::size_t i = 0; i < after; ++i) {
        double position = static_cast<double>(i) * scale;
        if (!align_corners) position = std::clamp((static_cast<double>(i) + 0.5) * scale - 0.5, 0.0, last);
        const std::size_t low = std::min(static_cast<std::size_t>(position), before - 1);
        taps.low.push_back(low);
        taps.high.push_back(std::min(low + 1, before - 1));
        taps.fraction.push_back(position - static_cast<double>(low));
    }
    return taps;
}

Picture resize(const Picture& picture, Size size, const std::string& method) {
    const std::size_t colon = method.find(':');
    const std::string library = method.substr(0, colon);
    const std::string rule = colon == std::string::npos ? "" : method.substr(colon + 1);
    if (library == "skimage" && (rule == "linear" || rule == "linear-antialias")) {
        return resize_skimage(picture, size, rule == "linear-antialias");
    }
    if (picture.size() == size) return picture;
    if (library == "opencv" && interpolation_of(rule) >= 0) {
        return std::visit(
            [&](const auto& array) {
                return Picture{resize_opencv(array, size, interpolation_of(rule)), picture.boolean};
            },
            picture.values);
    }
    if (library == "pillow" && (rule == "bilinear" || rule == "lanczos")) {
        return resize_pillow(picture, size, rule == "lanczos");
    }
    if (method == "torch:bilinear") return {resize_torch(picture, size), false};
    if (method == "torch:bilinear-align-corners") {
        const Array<float> x = std::visit([](const auto& array) { return to_floats(array); }, picture.values);
        return {mix_axis(mix_axis(x, 0, size.height), 1, size.width), false};
    }
    throw PackageError("resize method '" + method + "' is not run by this version of segship; update segship-run");
}

Array<float> resize_planes(const Array<float>& planes, Size size, const std::string& method) {
    return resize_planes_of(planes, size, method);
}

Array<std::uint8_t> resize_planes(const Array<std::uint8_t>& planes, Size size, const std::string& method) {
    return resize_planes_of(planes, size, method);
}

Array<std::uint16_t> resize_planes(const Array<std::uint16_t>& planes, Size size, const std::string& method) {
    return resize_planes_of(planes, size, method);
}

}  // namespace segship
