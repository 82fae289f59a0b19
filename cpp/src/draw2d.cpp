#include "draw2d.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "resize.hpp"

namespace segship {
namespace {

using Bytes8 = Array<std::uint8_t>;

// value / 255, rounded, for values up to 255 * 255
std::uint32_t divided_by_255(std::uint32_t value) {
    value += 128;
    return ((value >> 8) + value) >> 8;
}

void outline(Bytes8& rgb, const Bytes8& mask, Color color) {
    const int height = static_cast<int>(rgb.shape[0]), width = static_cast<int>(rgb.shape[1]);
    cv::Mat shown(height, width, CV_8UC3, rgb.data.data());
    const cv::Mat source(height, width, CV_8U, const_cast<std::uint8_t*>(mask.data.data()));
    std::vector<std::vector<cv::Point>> contours;
    cv::findContours(source, contours, cv::RETR_LIST, cv::CHAIN_APPROX_NONE);
    const int thickness = std::max(1, static_cast<int>(std::nearbyint(std::min(height, width) / 400.0)));
    cv::drawContours(shown, contours, -1, cv::Scalar(color[0], color[1], color[2]), thickness);
}

// The background picture enlarged until it covers, the middle shown (Pillow's ImageOps.fit).
Bytes8 covering(const Bytes8& picture, Size size) {
    const double height = static_cast<double>(picture.shape[0]), width = static_cast<double>(picture.shape[1]);
    const double wanted = static_cast<double>(size.width) / static_cast<double>(size.height);
    double crop_width = width, crop_height = height;
    if (width / height > wanted) crop_width = wanted * height;
    if (width / height < wanted) crop_height = width / wanted;
    const auto span = [](double side, double crop) {
        const double low = (side - crop) * 0.5;  // Pillow keeps a box in single precision
        return Span{static_cast<double>(static_cast<float>(low)), static_cast<double>(static_cast<float>(low + crop))};
    };
    return resize_pillow(picture, size, true, span(width, crop_width), span(height, crop_height));
}

// Straight RGBA over one pixel of RGBA (python-pillow/Pillow: src/libImaging/AlphaComposite.c).
void composite(const std::uint8_t* above, const std::uint8_t* below, std::uint8_t* out) {
    constexpr std::uint32_t BITS = 7;
    if (above[3] == 0) {
        std::copy_n(below, 4, out);
        return;
    }
    const std::uint32_t alpha = above[3], all = alpha * 255 + below[3] * (255 - alpha);
    const std::uint32_t share = alpha * 255 * 255 * (1U << BITS) / all, rest = 255 * (1U << BITS) - share;
    for (std::size_t c = 0; c < 3; ++c) {
        const std::uint32_t sum = above[c] * share + below[c] * rest + (0x80U << BITS);
        out[c] = static_cast<std::uint8_t>((((sum >> 8) + sum) >> 8) >> BITS);
    }
    out[3] = static_cast<std::uint8_t>(divided_by_255(all));
}

}  // namespace

Bytes8 put_alpha(const Bytes8& rgb, const Bytes8& alpha) {
    Bytes8 out(Shape{rgb.shape[0], rgb.shape[1], 4});
    for (std::size_t i = 0; i < alpha.size(); ++i) {
        std::copy_n(rgb.data.data() + 3 * i, 3, out.data.data() + 4 * i);
        out.data[4 * i + 3] = alpha.data[i];
    }
    return out;
}

Bytes8 without_alpha(const Bytes8& rgba) {
    Bytes8 out(Shape{rgba.shape[0], rgba.shape[1], 3});
    for (std::size_t i = 0; i < rgba.size() / 4; ++i) std::copy_n(rgba.data.data() + 4 * i, 3, out.data.data() + 3 * i);
    return out;
}

Bytes8 premultiplied(const Bytes8& rgba, const Bytes8& mask) {
    Bytes8 out(rgba.shape);
    for (std::size_t i = 0; i < rgba.size(); ++i) {
        out.data[i] = static_cast<std::uint8_t>(divided_by_255(static_cast<std::uint32_t>(rgba.data[i]) * mask.data[i / 4]));
    }
    return out;
}

Bytes8 over(const Bytes8& rgba, const OutputOptions& options) {
    const Size size{rgba.shape[0], rgba.shape[1]};
    const bool picture = options.background_picture.size() != 0;
    const Bytes8 cover = picture ? covering(options.background_picture, size) : Bytes8{};
    Bytes8 out(rgba.shape);
    std::array<std::uint8_t, 4> below = options.background;
    for (std::size_t i = 0; i < rgba.size() / 4; ++i) {
        if (picture) below = {cover.data[3 * i], cover.data[3 * i + 1], cover.data[3 * i + 2], 255};
        composite(rgba.data.data() + 4 * i, below.data(), out.data.data() + 4 * i);
    }
    return out;
}

Bytes8 colored(const Array<std::uint16_t>& labels, const std::map<int, Color>& colors) {
    std::vector<Color> table(65536, Color{0, 0, 0});
    for (const auto& [number, color] : colors) table.at(static_cast<std::size_t>(number)) = color;
    Bytes8 out(Shape{labels.shape[0], labels.shape[1], 3});
    for (std::size_t i = 0; i < labels.size(); ++i) std::copy_n(table[labels.data[i]].data(), 3, out.data.data() + 3 * i);
    return out;
}

Array<std::uint16_t> renumbered(const Array<std::uint16_t>& labels, const std::map<int, int>& numbers) {
    std::vector<std::uint16_t> table(65536);
    for (std::size_t i = 0; i < table.size(); ++i) table[i] = static_cast<std::uint16_t>(i);
    for (const auto& [label, number] : numbers) table.at(static_cast<std::size_t>(label)) = static_cast<std::uint16_t>(number);
    Array<std::uint16_t> out(labels.shape);
    std::transform(labels.data.begin(), labels.data.end(), out.data.begin(), [&](std::uint16_t label) { return table[label]; });
    return out;
}

Bytes8 draw_overlay(const Bytes8& rgb, const Bytes8& masks, const std::vector<Color>& colors) {
    constexpr double TINT = 0.35;
    Bytes8 out = rgb;
    for (std::size_t k = 0; k < masks.shape[0]; ++k) {
        const Bytes8 mask(Shape{masks.shape[1], masks.shape[2]}, {masks.at(k), masks.at(k) + masks.stride(0)});
        for (std::size_t i = 0; i < out.size(); ++i) {
            if (mask.data[i / 3] == 0) continue;
            out.data[i] = static_cast<std::uint8_t>(out.data[i] * (1 - TINT) + colors.at(k)[i % 3] * TINT);
        }
        outline(out, mask, colors.at(k));
    }
    return out;
}

Bytes8 blend_labels(const Bytes8& rgb, const Array<std::uint16_t>& labels, const std::map<int, Color>& colors) {
    Bytes8 out = colored(labels, colors);
    for (std::size_t i = 0; i < out.size(); ++i) out.data[i] = static_cast<std::uint8_t>((rgb.data[i] + out.data[i]) >> 1);
    return out;
}

Bytes8 draw_heat(const Bytes8& rgb, const Bytes8& levels, Color color) {
    constexpr double TINT = 0.55;
    std::array<std::uint32_t, 256> strength{};  // in 256ths
    for (std::size_t i = 0; i < 256; ++i) {
        strength[i] = static_cast<std::uint32_t>(std::nearbyint(static_cast<double>(i) * (TINT * 256 / 255)));
    }
    Bytes8 out(rgb.shape), half(levels.shape);
    for (std::size_t i = 0; i < out.size(); ++i) {
        const std::uint32_t share = strength[levels.data[i / 3]];
        out.data[i] = static_cast<std::uint8_t>((rgb.data[i] * (256 - share) + share * color[i % 3] + 128) >> 8);
    }
    std::transform(levels.data.begin(), levels.data.end(), half.data.begin(),
                   [](std::uint8_t level) { return static_cast<std::uint8_t>(level > 127); });
    outline(out, half, color);
    return out;
}

}  // namespace segship
