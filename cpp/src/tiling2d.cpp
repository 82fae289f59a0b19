#include "tiling2d.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "axis_starts.hpp"
#include "errors.hpp"
#include "resize.hpp"

namespace segship {
namespace {

struct Start {
    std::size_t y = 0;
    std::size_t x = 0;
};

struct Windows {
    Size window;
    std::vector<Start> starts;
};

Windows windows_of(Size size, const Json& tiling) {
    const auto window = field<std::vector<std::size_t>>(tiling, "window");
    const auto step = field<std::vector<double>>(tiling, "step");
    const auto positions = field<std::string>(tiling, "positions");
    if (window.size() != 2 || step.size() != 2) {
        throw PackageError("the tiling of a package for pictures has two axes; export the network again");
    }
    Windows found{{window[0], window[1]}, {}};
    const auto rows = axis_starts(size.height, window[0], step[0], positions);
    const auto columns = axis_starts(size.width, window[1], step[1], positions);
    for (std::size_t y : rows) {
        for (std::size_t x : columns) found.starts.push_back({y, x});
    }
    return found;
}

void require_known(const Json& tiling, const Json& recipe) {
    const bool known = field<std::string>(tiling, "average") == "logits" &&
                       field_or<std::vector<int>>(tiling, "mirror_axes", {}).empty() &&
                       field<std::string>(tiling, "weighting") == "uniform" &&
                       field<std::string>(tiling, "pad_mode") == "none";
    if (!known) {
        throw PackageError("package '" + field<std::string>(recipe, "name") +
                           "' tiles pictures in a way that this version does not know; update segship");
    }
}

Size filled_size(Size size, const Json& recipe) {
    const auto multiples = field<std::vector<std::size_t>>(field<Json>(recipe, "network"), "size_multiple");
    const auto up = [](std::size_t side, std::size_t multiple) {
        const std::size_t m = std::max<std::size_t>(1, multiple);
        return (side + m - 1) / m * m;
    };
    return {up(size.height, multiples.at(0)), up(size.width, multiples.at(1))};
}

// The chosen windows of (C, h, w), filled up with zeros to what the network takes: (N, C, h', w').
Array<float> cut_windows(const Array<float>& x, const std::vector<Start>& starts, Size size, Size filled) {
    const std::size_t channels = x.shape[0], width = x.shape[2];
    Array<float> parts(Shape{starts.size(), channels, filled.height, filled.width});
    for (std::size_t n = 0; n < starts.size(); ++n) {
        for (std::size_t c = 0; c < channels; ++c) {
            float* target = parts.at(n) + c * filled.height * filled.width;
            for (std::size_t row = 0; row < size.height; ++row) {
                const float* source = x.at(c) + (starts[n].y + row) * width + starts[n].x;
                std::copy_n(source, size.width, target + row * filled.width);
            }
        }
    }
    return parts;
}

Array<float> one_of(const Array<float>& batch, std::size_t index) {
    const std::size_t count = batch.stride(0);
    return {Shape(batch.shape.begin() + 1, batch.shape.end()), {batch.at(index), batch.at(index) + count}};
}

// Sums of window results over the whole grid, and how many windows saw each pixel.
class Sums {
public:
    Sums(std::size_t classes, Size size) : total_(Shape{classes, size.height, size.width}), seen_(Shape{size.height, size.width}) {}

    // `result` (K, h, w), of which `size` counts, at `start`.
    void add(const Array<float>& result, Size size, Start start) {
        const std::size_t width = seen_.shape[1], from = result.shape[2];
        for (std::size_t row = 0; row < size.height; ++row) {
            const std::size_t at = (start.y + row) * width + start.x;
            for (std::size_t k = 0; k < total_.shape[0]; ++k) {
                float* target = total_.at(k) + at;
                const float* source = result.at(k) + row * from;
                for (std::size_t i = 0; i < size.width; ++i) target[i] += source[i];
            }
            for (std::size_t i = 0; i < size.width; ++i) seen_.data[at + i] += 1.0F;
        }
    }

    Array<float> mean() && {
        for (std::size_t k = 0; k < total_.shape[0]; ++k) {
            float* plane = total_.at(k);
            for (std::size_t i = 0; i < seen_.size(); ++i) plane[i] /= seen_.data[i];
        }
        return std::move(total_);
    }

private:
    Array<float> total_;
    Array<float> seen_;
};

std::vector<Array<float>> run_whole(const NetworkRun& run, const Array<float>& x) {
    Shape shape{1};
    shape.insert(shape.end(), x.shape.begin(), x.shape.end());
    std::vector<Array<float>> outputs = run(Array<float>(shape, x.data));
    for (Array<float>& output : outputs) output.shape.erase(output.shape.begin());
    return outputs;
}

}  // namespace

std::vector<Array<float>> run_picture(const NetworkRun& run, const Array<float>& x, const Json& recipe, std::size_t batch) {
    if (!recipe.contains("tiling") || recipe.at("tiling").is_null()) return run_whole(run, x);
    const Json& tiling = recipe.at("tiling");
    require_known(tiling, recipe);
    const Size whole{x.shape[1], x.shape[2]};
    const Windows windows = windows_of(whole, tiling);
    const Size size{std::min(windows.window.height, whole.height), std::min(windows.window.width, whole.width)};
    const Size filled = filled_size(size, recipe);
    const auto method = field<std::string>(field<Json>(recipe, "decode"), "restore_method");
    std::vector<Sums> totals;
    for (std::size_t first = 0; first < windows.starts.size(); first += batch) {
        const std::size_t last = std::min(first + batch, windows.starts.size());
        const std::vector<Start> chosen(windows.starts.begin() + static_cast<std::ptrdiff_t>(first),
                                        windows.starts.begin() + static_cast<std::ptrdiff_t>(last));
        const std::vector<Array<float>> outputs = run(cut_windows(x, chosen, size, filled));
        for (std::size_t index = 0; index < outputs.size(); ++index) {
            if (totals.size() <= index) totals.emplace_back(outputs[index].shape.at(1), whole);
            for (std::size_t n = 0; n < chosen.size(); ++n) {
                Array<float> one = one_of(outputs[index], n);
                if (Size{one.shape[1], one.shape[2]} != filled) one = resize_planes(one, filled, method);
                totals[index].add(one, size, chosen[n]);
            }
        }
    }
    std::vector<Array<float>> means;
    for (Sums& total : totals) means.push_back(std::move(total).mean());
    return means;
}

}  // namespace segship
