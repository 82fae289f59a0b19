#pragma once
// Resizing by the rules that the manifest names, each equal to the library it is named after:
// src/segship/inference/resize.py in C++.
//
//     opencv:linear, :nearest, :area      cv2.resize
//     pillow:bilinear, :lanczos           Pillow's resampling, horizontal pass first whatever its version
//     skimage:linear-antialias            scikit-image 0.19 and later: transform.resize(mode="constant")
//     skimage:linear                      the same without its Gaussian (scikit-image 0.14)
//     torch:bilinear, -align-corners      torch's interpolate on floats, without anti-aliasing

#include <cstddef>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "array.hpp"

namespace segship {

struct Size {
    std::size_t height = 0;
    std::size_t width = 0;
};
inline bool operator==(Size a, Size b) { return a.height == b.height && a.width == b.width; }
inline bool operator!=(Size a, Size b) { return !(a == b); }

// A picture between two steps: (H, W, C), of the type that the last step gave.
using Values = std::variant<Array<std::uint8_t>, Array<std::uint16_t>, Array<float>, Array<double>>;
struct Picture {
    Values values;
    // The 8-bit values are truth values.
    bool boolean = false;

    const Shape& shape() const {
        return std::visit([](const auto& array) -> const Shape& { return array.shape; }, values);
    }
    Size size() const { return {shape()[0], shape()[1]}; }
    std::size_t channels() const { return shape()[2]; }
};

// Resize (H, W, C). The type is kept, but for skimage:*, which gives doubles (integers divided by their type's maximum),
// and torch:*, which gives floats. PackageError for a method that is not known here.
Picture resize(const Picture& picture, Size size, const std::string& method);

// (K, h, w) planes, each by itself. A finished map of 8 bits stays in grey levels whatever the method.
Array<float> resize_planes(const Array<float>& planes, Size size, const std::string& method);
Array<std::uint8_t> resize_planes(const Array<std::uint8_t>& planes, Size size, const std::string& method);
Array<std::uint16_t> resize_planes(const Array<std::uint16_t>& planes, Size size, const std::string& method);

// Both samples of each output of one linear interpolation by torch's rules, and the weight of the second.
struct LinearTaps {
    std::vector<std::size_t> low;
    std::vector<std::size_t> high;
    std::vector<double> fraction;
};
LinearTaps linear_taps(std::size_t before, std::size_t after, bool align_corners);

// The part of an axis, in source pixels, that a resampling takes: all of it unless a picture is cut as well.
struct Span {
    double low = 0;
    double high = 0;
};
// Pillow's resampling of (H, W, C): across first, then down, rounded to the type in between.
Array<std::uint8_t> resize_pillow(const Array<std::uint8_t>& picture, Size size, bool lanczos, Span across, Span down);
Array<float> resize_pillow(const Array<float>& picture, Size size, bool lanczos, Span across, Span down);

// Names begin with resize_, as the files that hold them.
Array<std::uint16_t> resize_linear(const Array<std::uint16_t>& array, Size size);
Array<float> resize_linear(const Array<float>& array, Size size);
Array<double> resize_linear(const Array<double>& array, Size size);
Array<float> resize_torch(const Picture& picture, Size size);
Picture resize_skimage(const Picture& picture, Size size, bool antialias);
Picture resize_pillow(const Picture& picture, Size size, bool lanczos);

}  // namespace segship
