#include "postprocess2d.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <utility>

#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>

#include "errors.hpp"

namespace segship {
namespace {

using Mask = Array<std::uint8_t>;
using Labels = Array<std::uint16_t>;

// Sets of runs that touch; the smallest number of a set stands for it.
class Sets {
public:
    std::size_t add() {
        parents_.push_back(parents_.size());
        return parents_.size() - 1;
    }
    std::size_t root(std::size_t at) {
        while (parents_[at] != at) at = parents_[at] = parents_[parents_[at]];
        return at;
    }
    void join(std::size_t a, std::size_t b) {
        a = root(a);
        b = root(b);
        parents_[std::max(a, b)] = std::min(a, b);
    }

private:
    std::vector<std::size_t> parents_;
};

// A run of set pixels of one row, [low, high), and its number among the sets.
struct Run {
    std::size_t row, low, high, set;
};

std::vector<Run> runs_of(const Mask& mask, std::size_t reach, Sets& sets) {
    std::vector<Run> runs;
    const std::size_t width = mask.shape[1];
    std::size_t above = 0;  // the first run of the row above
    for (std::size_t y = 0; y < mask.shape[0]; ++y) {
        const std::size_t first = runs.size();
        const std::uint8_t* row = mask.at(y);
        std::size_t touching = above;
        for (std::size_t x = 0; x < width;) {
            if (row[x] == 0) {
                ++x;
                continue;
            }
            std::size_t end = x;
            while (end < width && row[end] != 0) ++end;
            runs.push_back({y, x, end, sets.add()});
            const Run here = runs.back();
            while (touching < first && runs[touching].high + reach <= here.low) ++touching;
            for (std::size_t i = touching; i < first && runs[i].low < here.high + reach; ++i) sets.join(here.set, runs[i].set);
            x = end;
        }
        above = first;
    }
    return runs;
}

std::vector<std::size_t> sizes_of(const Components2d& found) {
    std::vector<std::size_t> sizes(found.count + 1, 0);
    for (std::uint32_t number : found.numbers.data) ++sizes[number];
    sizes[0] = 0;
    return sizes;
}

// The components that keep_largest drops.
Mask small_mask(const Mask& mask, const Json& rule) {
    Mask dropped(mask.shape);
    const Components2d found = components(mask, field<std::string>(rule, "connectivity"));
    if (found.count < 2) return dropped;
    const std::vector<std::size_t> sizes = sizes_of(found);
    const std::size_t largest = *std::max_element(sizes.begin(), sizes.end());
    const double minimum = field_or<double>(rule, "minimum_mm3", -1.0);
    std::transform(found.numbers.data.begin(), found.numbers.data.end(), dropped.data.begin(), [&](std::uint32_t number) {
        const bool small = sizes[number] < largest && (minimum < 0 || static_cast<double>(sizes[number]) < minimum);
        return static_cast<std::uint8_t>(number != 0 && small);
    });
    return dropped;
}

Mask without(Mask mask, const Mask& dropped) {
    for (std::size_t i = 0; i < mask.size(); ++i) mask.data[i] = mask.data[i] != 0 && dropped.data[i] == 0;
    return mask;
}

Mask remove_small(const Mask& mask, const Json& rule) {
    const Components2d found = components(mask, field<std::string>(rule, "connectivity"));
    const std::vector<std::size_t> sizes = sizes_of(found);
    const auto least = field<std::size_t>(rule, "minimum_pixels");
    Mask kept(mask.shape);
    std::transform(found.numbers.data.begin(), found.numbers.data.end(), kept.data.begin(), [&](std::uint32_t number) {
        return static_cast<std::uint8_t>(number != 0 && sizes[number] >= least);
    });
    return kept;
}

// Background that does not reach the border becomes part of the mask.
Mask fill_holes(const Mask& mask) {
    const std::size_t height = mask.shape[0], width = mask.shape[1];
    Mask background(mask.shape);
    std::transform(mask.data.begin(), mask.data.end(), background.data.begin(),
                   [](std::uint8_t value) { return static_cast<std::uint8_t>(value == 0); });
    const Components2d found = components(background, "face");
    std::vector<std::uint8_t> outside(found.count + 1, 0);
    for (std::size_t y = 0; y < height; ++y) {
        for (std::size_t x = 0; x < width; x += y == 0 || y + 1 == height ? 1 : std::max<std::size_t>(1, width - 1)) {
            outside[found.numbers.at(y)[x]] = 1;
        }
    }
    Mask filled(mask.shape);
    for (std::size_t i = 0; i < mask.size(); ++i) {
        filled.data[i] = mask.data[i] != 0 || outside[found.numbers.data[i]] == 0;
    }
    return filled;
}

Labels keep_largest(Labels labels, const Json& rule) {
    const auto named = field<std::vector<int>>(rule, "labels");
    std::vector<std::set<int>> groups;
    if (field<bool>(rule, "joint")) {
        groups.emplace_back(named.begin(), named.end());
    } else {
        for (int label : named) groups.push_back({label});
    }
    const Labels given = labels;
    for (const std::set<int>& group : groups) {
        Mask mask(given.shape);
        std::transform(given.data.begin(), given.data.end(), mask.data.begin(),
                       [&](std::uint16_t label) { return static_cast<std::uint8_t>(group.count(label)); });
        const Mask dropped = small_mask(mask, rule);
        for (std::size_t i = 0; i < labels.size(); ++i) labels.data[i] = dropped.data[i] != 0 ? 0 : labels.data[i];
    }
    return labels;
}

// Clean every label's mask apart. A label grows only into background, never into another label.
Labels each(const Labels& labels, const std::function<Mask(const Mask&)>& clean) {
    Labels out = labels;
    std::vector<std::uint8_t> present(65536, 0);
    for (std::uint16_t label : labels.data) present[label] = 1;
    for (std::size_t label = 1; label < present.size(); ++label) {
        if (present[label] == 0) continue;
        Mask before(labels.shape);
        std::transform(labels.data.begin(), labels.data.end(), before.data.begin(),
                       [&](std::uint16_t value) { return static_cast<std::uint8_t>(value == label); });
        const Mask after = clean(before);
        for (std::size_t i = 0; i < out.size(); ++i) {
            if (before.data[i] != 0 && after.data[i] == 0) out.data[i] = 0;
            if (after.data[i] != 0 && out.data[i] == 0) out.data[i] = static_cast<std::uint16_t>(label);
        }
    }
    return out;
}

Labels numbered(const Labels& labels, const std::string& connectivity) {
    Mask mask(labels.shape);
    std::transform(labels.data.begin(), labels.data.end(), mask.data.begin(),
                   [](std::uint16_t value) { return static_cast<std::uint8_t>(value != 0); });
    const Components2d found = components(mask, connectivity);
    if (found.count > 65535) throw PackageError("the picture has more than 65535 components, which ids of 16 bits cannot hold");
    return {labels.shape, {found.numbers.data.begin(), found.numbers.data.end()}};
}

// ----------------------------------------------------------------------------------------------- smoothing

// As scipy.ndimage.gaussian_filter1d: cut off at four standard deviations.
std::vector<double> gaussian_kernel(double sigma) {
    const auto radius = static_cast<std::ptrdiff_t>(4.0 * sigma + 0.5);
    std::vector<double> kernel;
    double sum = 0.0;
    for (std::ptrdiff_t i = -radius; i <= radius; ++i) {
        kernel.push_back(std::exp(-0.5 / (sigma * sigma) * static_cast<double>(i * i)));
        sum += kernel.back();
    }
    for (double& value : kernel) value /= sum;
    return kernel;
}

// The place of a sample outside: d c b a | a b c d | d c b a
std::size_t reflected(std::ptrdiff_t at, std::size_t side) {
    const auto period = static_cast<std::ptrdiff_t>(2 * side);
    at = ((at % period) + period) % period;
    return static_cast<std::size_t>(at < static_cast<std::ptrdiff_t>(side) ? at : period - 1 - at);
}

void filter_axis(std::vector<double>& values, std::size_t lines, std::size_t side, std::size_t apart, std::size_t next,
                 const std::vector<double>& kernel) {
    const std::size_t radius = kernel.size() / 2;
    std::vector<double> line(side + 2 * radius);
    for (std::size_t i = 0; i < lines; ++i) {
        double* first = values.data() + i * next;
        for (std::size_t x = 0; x < line.size(); ++x) {
            line[x] = first[reflected(static_cast<std::ptrdiff_t>(x) - static_cast<std::ptrdiff_t>(radius), side) * apart];
        }
        for (std::size_t x = 0; x < side; ++x) {
            double sum = line[x + radius] * kernel[radius];
            for (std::size_t k = 0; k < radius; ++k) sum += (line[x + k] + line[x + 2 * radius - k]) * kernel[k];
            first[x * apart] = sum;
        }
    }
}

}  // namespace

Components2d components(const Mask& mask, const std::string& connectivity) {
    Sets sets;
    const std::vector<Run> runs = runs_of(mask, connectivity == "full" ? 1 : 0, sets);
    Components2d found{Array<std::uint32_t>(mask.shape), 0};
    std::vector<std::uint32_t> numbers(runs.size(), 0);
    for (const Run& run : runs) {
        std::uint32_t& number = numbers[sets.root(run.set)];
        if (number == 0) number = static_cast<std::uint32_t>(++found.count);
        std::uint32_t* row = found.numbers.at(run.row);
        std::fill(row + run.low, row + run.high, number);
    }
    return found;
}

Mask clean_mask(Mask mask, const Json& rules, int label) {
    for (const Json& rule : rules) {
        const auto name = field<std::string>(rule, "rule");
        if (name == "keep_largest") {
            const auto named = field<std::vector<int>>(rule, "labels");
            if (std::find(named.begin(), named.end(), label) != named.end()) mask = without(mask, small_mask(mask, rule));
        } else if (name == "remove_small") {
            mask = remove_small(mask, rule);
        } else if (name == "fill_holes") {
            mask = fill_holes(mask);
        } else if (name == "smooth_mask") {
            for (std::uint8_t& value : mask.data) value = value != 0 ? 255 : 0;
            mask = smooth_mask(mask, field<double>(rule, "sigma"));
            for (std::uint8_t& value : mask.data) value = value != 0;
        }
    }
    return mask;
}

Labels clean_labels(Labels labels, const Json& rules) {
    for (const Json& rule : rules) {
        const auto name = field<std::string>(rule, "rule");
        if (name == "keep_largest") {
            labels = keep_largest(std::move(labels), rule);
        } else if (name == "remove_small") {
            labels = each(labels, [&](const Mask& mask) { return remove_small(mask, rule); });
        } else if (name == "fill_holes") {
            labels = each(labels, fill_holes);
        } else if (name == "smooth_mask") {
            throw PackageError("rule 'smooth_mask' cleans a single mask; this package applies it to a label map");
        } else if (name == "instances") {
            labels = numbered(labels, field<std::string>(rule, "connectivity"));
        }
    }
    return labels;
}

Mask smooth_mask(const Mask& mask, double sigma) {
    const std::size_t height = mask.shape[0], width = mask.shape[1];
    Mask opened(mask.shape);
    const cv::Mat source(static_cast<int>(height), static_cast<int>(width), CV_8U, const_cast<std::uint8_t*>(mask.data.data()));
    cv::Mat target(static_cast<int>(height), static_cast<int>(width), CV_8U, opened.data.data());
    cv::morphologyEx(source, target, cv::MORPH_OPEN, cv::getStructuringElement(cv::MORPH_CROSS, cv::Size(3, 3)));
    std::vector<double> blurred(opened.data.begin(), opened.data.end());
    const std::vector<double> kernel = gaussian_kernel(sigma);
    filter_axis(blurred, width, height, width, 1, kernel);
    filter_axis(blurred, height, width, 1, width, kernel);
    std::transform(blurred.begin(), blurred.end(), opened.data.begin(),
                   [](double value) { return static_cast<std::uint8_t>(value < 127 ? 0 : 255); });
    return opened;
}

}  // namespace segship
