#include "preprocess2d.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "errors.hpp"
#include "steps2d.hpp"

namespace segship {
namespace {

std::string by(const Shape& sides, std::size_t first = 0) {
    std::string text;
    for (std::size_t i = first; i < sides.size(); ++i) text += (i == first ? "" : "x") + std::to_string(sides[i]);
    return text;
}

std::size_t rounded_half_up(double side) { return static_cast<std::size_t>(std::max(1.0, std::floor(side + 0.5))); }

// Size that fits (long_side, short_side), ratio kept (open-mmlab/mmcv: rescale_size).
Size keep_ratio_size(Size size, double long_side, double short_side) {
    const double height = static_cast<double>(size.height), width = static_cast<double>(size.width);
    const double scale = std::min(long_side / std::max(height, width), short_side / std::min(height, width));
    return {rounded_half_up(height * scale), rounded_half_up(width * scale)};
}

bool replaces_non_finite(const Json& steps) {
    return std::any_of(steps.begin(), steps.end(),
                       [](const Json& step) { return field<std::string>(step, "step") == "replace_non_finite"; });
}

void refuse_non_finite(const Image& picture, const Json& steps) {
    const auto* floats = std::get_if<Array<float>>(&picture.pixels);
    if (floats == nullptr || replaces_non_finite(steps)) return;
    if (!std::all_of(floats->data.begin(), floats->data.end(), [](float value) { return std::isfinite(value); })) {
        throw InputError(picture.name + " holds NaN or infinite values; replace them first");
    }
}

Picture as_picture(const Image& image) {
    return std::visit([&](const auto& array) { return Picture{array, image.boolean}; }, image.pixels);
}

// (H, W, C) of any type to (C, H, W) floats.
Array<float> channels_first(const Picture& picture) {
    const Size size = picture.size();
    const std::size_t channels = picture.channels(), plane = size.height * size.width;
    Array<float> out(Shape{channels, size.height, size.width});
    std::visit(
        [&](const auto& array) {
            for (std::size_t c = 0; c < channels; ++c) {
                float* target = out.at(c);
                for (std::size_t i = 0; i < plane; ++i) target[i] = static_cast<float>(array.data[i * channels + c]);
            }
        },
        picture.values);
    return out;
}

template <typename T>
Array<T> mirrored_back(const Array<T>& planes) {
    Array<T> out = planes;
    const std::size_t width = planes.shape[2];
    for (std::size_t row = 0; row < planes.size(); row += width) {
        const auto begin = out.data.begin() + static_cast<std::ptrdiff_t>(row);
        std::reverse(begin, begin + static_cast<std::ptrdiff_t>(width));
    }
    return out;
}

template <typename T>
Array<T> cut_back(const Array<T>& planes, const GridStep& step) {
    const std::size_t count = planes.shape[0];
    Array<T> out(Shape{count, step.before.height, step.before.width});
    for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t y = 0; y < step.before.height; ++y) {
            const T* row = planes.at(k) + (y + step.offset.height) * planes.shape[2] + step.offset.width;
            std::copy_n(row, step.before.width, out.at(k) + y * step.before.width);
        }
    }
    return out;
}

template <typename T>
Array<T> put_back(const Array<T>& planes, const GridStep& step) {
    const std::size_t count = planes.shape[0];
    Array<T> out(Shape{count, step.before.height, step.before.width});
    for (std::size_t k = 0; k < count; ++k) {
        for (std::size_t y = 0; y < step.after.height; ++y) {
            T* row = out.at(k) + (y + step.offset.height) * step.before.width + step.offset.width;
            std::copy_n(planes.at(k) + y * planes.shape[2], step.after.width, row);
        }
    }
    return out;
}

template <typename T>
Array<T> restore_planes(const Array<T>& planes, const Frame& frame, const std::string& method, const std::string& path) {
    Array<T> out = planes;
    if (by_input_size({out.shape[1], out.shape[2]}, frame, path)) out = resize_planes(out, frame.prepared, method);
    for (auto step = frame.geometry.rbegin(); step != frame.geometry.rend(); ++step) {
        switch (step->kind) {
            case GridMove::resize: out = resize_planes(out, step->before, method); break;
            case GridMove::mirror: out = mirrored_back(out); break;
            case GridMove::pad: out = cut_back(out, *step); break;
            case GridMove::crop: out = put_back(out, *step); break;
        }
    }
    return out;
}

}  // namespace

Prepared prepare(const Image& image, const Json& manifest) {
    if (field<std::string>(field<Json>(manifest, "input"), "kind") != "image") {
        throw PackageError("package '" + field<std::string>(manifest, "name") + "' takes volumes, not pictures");
    }
    const Json steps = field<Json>(manifest, "preprocess");
    refuse_non_finite(image, steps);
    Picture picture = as_picture(image);
    Frame frame{image.name, picture.size(), {}, {}, image.notes};
    for (const Json& step : steps) {
        const std::optional<GridStep> moved = run_step(picture, step);
        if (moved && (moved->before != moved->after || moved->kind == GridMove::mirror)) frame.geometry.push_back(*moved);
    }
    Array<float> x = channels_first(picture);
    check_input_shape(x.shape, manifest, image.name);
    frame.prepared = picture.size();
    return {std::move(x), std::move(frame)};
}

void check_input_shape(const Shape& shape, const Json& manifest, const std::string& name) {
    const Json network = field<Json>(manifest, "network");
    const auto channels = field<std::size_t>(network, "input_channels");
    if (shape.at(0) != channels) {
        throw InputError(name + " gives " + std::to_string(shape[0]) + " channel(s), the network takes " +
                         std::to_string(channels));
    }
    const auto multiples = field<Shape>(network, "size_multiple");
    const Shape sides(shape.begin() + 1, shape.end());
    if (sides.size() != multiples.size()) {
        throw InputError(name + ": the network takes " + field<std::string>(network, "layout") + " arrays, got " +
                         std::to_string(sides.size()) + " spatial axes");
    }
    if (manifest.contains("tiling") && !manifest.at("tiling").is_null()) return;  // windows are cut and filled up one by one
    const auto size = field_or<Shape>(network, "size", {});
    if (!size.empty() && sides != size) {
        throw InputError(name + ": the network takes exactly " + by(size) + ", got " + by(sides));
    }
    Shape nearest;
    bool fits = true;
    for (std::size_t i = 0; i < sides.size(); ++i) {
        const std::size_t multiple = std::max<std::size_t>(1, multiples[i]);
        fits = fits && sides[i] != 0 && sides[i] % multiple == 0;
        nearest.push_back(std::max(multiple, (sides[i] + multiple - 1) / multiple * multiple));
    }
    if (!fits) {
        throw InputError(name + ": the network takes sizes that are multiples of " + by(multiples) + ", got " + by(sides) +
                         "; resize or pad to " + by(nearest));
    }
}

Size resized_size(Size size, const Json& step) {
    const auto name = field<std::string>(step, "step");
    if (name == "resize") return {field<std::size_t>(step, "height"), field<std::size_t>(step, "width")};
    if (name == "resize_keep_ratio") {
        return keep_ratio_size(size, field<double>(step, "long_side"), field<double>(step, "short_side"));
    }
    const auto factor = field<double>(step, "factor");
    const Size scaled{rounded_half_up(static_cast<double>(size.height) * factor),
                      rounded_half_up(static_cast<double>(size.width) * factor)};
    if (!field<bool>(step, "keep_ratio")) return scaled;
    return keep_ratio_size(size, static_cast<double>(std::max(scaled.height, scaled.width)),
                           static_cast<double>(std::min(scaled.height, scaled.width)));
}

bool by_input_size(Size grid, const Frame& frame, const std::string& path) {
    // With nothing but a resize behind it, an output of another stride may go to the picture's grid in one step.
    const bool direct = path == "direct" && !frame.geometry.empty() && frame.geometry.back().kind == GridMove::resize;
    return grid != frame.prepared && !direct;
}

Array<float> restore(const Array<float>& planes, const Frame& frame, const std::string& method, const std::string& path) {
    return restore_planes(planes, frame, method, path);
}

Array<std::uint8_t> restore(const Array<std::uint8_t>& planes, const Frame& frame, const std::string& method,
                            const std::string& path) {
    return restore_planes(planes, frame, method, path);
}

Array<std::uint16_t> restore(const Array<std::uint16_t>& planes, const Frame& frame, const std::string& method,
                             const std::string& path) {
    return restore_planes(planes, frame, method, path);
}

}  // namespace segship
