#include "volume_network.hpp"

#include <algorithm>
#include <map>

#include "decode2d.hpp"
#include "errors.hpp"
#include "half.hpp"
#include "volume_text.hpp"
#include "volume_windows.hpp"

namespace segship {
namespace {

constexpr float kSurelyNot = -16.0F;  // a logit whose probability is 1e-7

// What stays the same for all windows of a case.
struct Run {
    Tiling tiling;
    const std::vector<NetworkRun>* members;
    std::size_t batch = 1, classes = 1;
    std::string activation;
    bool exclusive = true;
    std::function<void(std::size_t)> report;

    // A score that decides for background where every class has it: of equal scores the first class wins.
    float background() const { return exclusive || tiling.probabilities ? 0.0F : kSurelyNot; }
};

using Values = std::vector<float>;

// ------------------------------------------------------------------------------------------------------ one window

Shape3 tile_shape(const Shape3& grid, const Tiling& tiling) {
    return {std::min(grid[0], tiling.window[0]), std::min(grid[1], tiling.window[1]), std::min(grid[2], tiling.window[2])};
}

// A window at `start` of (C, z, y, x), mirrored along the axes of `subset`.
void cut(const Array<float>& x, const Shape3& start, const Shape3& tile, unsigned subset, float* into) {
    const Shape3 grid = last_three(x.shape);
    const auto place = [&](std::size_t axis, std::size_t i) {
        return start[axis] + (subset >> axis & 1u ? tile[axis] - 1 - i : i);
    };
    for (std::size_t c = 0; c < x.shape[0]; ++c) {
        for (std::size_t z = 0; z < tile[0]; ++z) {
            for (std::size_t y = 0; y < tile[1]; ++y, into += tile[2]) {
                const float* row = x.at(c) + (place(0, z) * grid[1] + place(1, y)) * grid[2] + start[2];
                std::copy(row, row + tile[2], into);
                if (subset >> 2 & 1u) std::reverse(into, into + tile[2]);
            }
        }
    }
}

// total += result, flipped back.
void add_flipped(const float* result, std::size_t classes, const Shape3& tile, unsigned subset, bool first, Values& total) {
    const auto place = [&](std::size_t axis, std::size_t i) { return subset >> axis & 1u ? tile[axis] - 1 - i : i; };
    const bool turn = subset >> 2 & 1u;
    for (std::size_t k = 0; k < classes; ++k) {
        for (std::size_t z = 0; z < tile[0]; ++z) {
            for (std::size_t y = 0; y < tile[1]; ++y) {
                const float* from = result + ((k * tile[0] + z) * tile[1] + y) * tile[2];
                float* into = total.data() + ((k * tile[0] + place(0, z)) * tile[1] + place(1, y)) * tile[2];
                for (std::size_t i = 0; i < tile[2]; ++i) {
                    const float value = turn ? from[tile[2] - 1 - i] : from[i];
                    into[i] = first ? value : into[i] + value;
                }
            }
        }
    }
}

Array<float> network_output(const NetworkRun& member, const Array<float>& batch, const Run& run) {
    std::vector<Array<float>> outputs = member(batch);
    Shape expected = batch.shape;
    expected[1] = run.classes;
    if (outputs.empty() || outputs.front().shape != expected) {
        throw PackageError("the graph's output has shape " + (outputs.empty() ? "()" : tuple_text(outputs.front().shape)) +
                           " where the manifest says " + tuple_text(expected) + "; export the package again");
    }
    return std::move(outputs.front());
}

struct Job {
    std::size_t number;
    unsigned subset;
};

// The mean over mirrorings and members of each window that waits.
std::vector<Values> means(const Run& run, const Array<float>& x, const std::vector<Shape3>& starts, const Shape3& tile) {
    const std::vector<unsigned> subsets = mirror_subsets(run.tiling.mirror_axes);
    std::vector<Job> jobs;
    for (std::size_t number = 0; number < starts.size(); ++number) {
        for (const unsigned subset : subsets) jobs.push_back({number, subset});
    }
    const std::size_t voxels = count(tile), size = run.classes * voxels;
    std::vector<Values> out(starts.size(), Values(size));
    std::vector<bool> begun(starts.size(), false);
    for (std::size_t begin = 0; begin < jobs.size(); begin += run.batch) {
        const std::size_t part = std::min(run.batch, jobs.size() - begin);
        Shape shape{part, x.shape[0], tile[0], tile[1], tile[2]};
        if (run.tiling.flat) shape.erase(shape.begin() + 2);
        Array<float> batch(shape);
        for (std::size_t i = 0; i < part; ++i) cut(x, starts[jobs[begin + i].number], tile, jobs[begin + i].subset, batch.at(i));
        for (const NetworkRun& member : *run.members) {
            Array<float> result = network_output(member, batch, run);
            for (std::size_t i = 0; i < part; ++i) {
                const Job& job = jobs[begin + i];
                if (run.tiling.probabilities) activate(result.at(i), run.classes, voxels, run.activation);
                add_flipped(result.at(i), run.classes, tile, job.subset, !begun[job.number], out[job.number]);
                begun[job.number] = true;
            }
            run.report(part);
        }
    }
    const auto share = static_cast<float>(subsets.size() * run.members->size());
    for (Values& total : out) {
        if (share == 1.0F) break;
        for (float& value : total) value /= share;
    }
    return out;
}

// The value of each channel where all are constant; empty otherwise.
std::vector<float> constant_value(const Array<float>& x, const Shape3& start, const Shape3& tile) {
    const Shape3 grid = last_three(x.shape);
    std::vector<float> out;
    for (std::size_t c = 0; c < x.shape[0]; ++c) {
        const float* first = x.at(c) + (start[0] * grid[1] + start[1]) * grid[2] + start[2];
        const float value = *first;
        for (std::size_t z = 0; z < tile[0]; ++z) {
            for (std::size_t y = 0; y < tile[1]; ++y) {
                const float* row = first + (z * grid[1] + y) * grid[2];
                if (!std::all_of(row, row + tile[2], [value](float one) { return one == value; })) return {};
            }
        }
        out.push_back(value);
    }
    return out;
}

// --------------------------------------------------------------------------------------------------------- sums

// Weighted sums of window results over the whole grid. float16 rounds each sum after every window, as nnU-Net v2 does.
class Sums {
public:
    Sums(std::size_t classes, const Shape3& grid, bool half) : classes_(classes), grid_(grid), half_(half), seen_(count(grid)) {
        if (half) {
            short_.resize(classes * count(grid));
        } else {
            total_ = Array<float>(as_shape(classes, grid));
        }
    }

    // Windows beyond the grid's end are cut.
    void add(const Values& result, const Shape3& start, const Shape3& tile, const Values& weight, const Shape3& window) {
        for (std::size_t k = 0; k <= classes_; ++k) {  // the last time for what was seen
            for (std::size_t z = 0; z < tile[0] && start[0] + z < grid_[0]; ++z) {
                for (std::size_t y = 0; y < tile[1] && start[1] + y < grid_[1]; ++y) {
                    const std::size_t at = ((start[0] + z) * grid_[1] + start[1] + y) * grid_[2] + start[2];
                    const std::size_t width = std::min(tile[2], grid_[2] - start[2]);
                    const float* w = weight.empty() ? nullptr : weight.data() + (z * window[1] + y) * window[2];
                    if (k == classes_) {
                        add_seen(at, w, width);
                    } else {
                        add_row(k * count(grid_) + at, result.data() + ((k * tile[0] + z) * tile[1] + y) * tile[2], w, width);
                    }
                }
            }
        }
    }

    // (K, grid): the sums divided by the weights.
    Array<float> mean() {
        const std::size_t size = count(grid_);
        if (half_) {
            total_ = Array<float>(as_shape(classes_, grid_));
            for (std::size_t i = 0; i < total_.size(); ++i) total_.data[i] = rounded_to_half(half_to_float(short_[i]) / seen_[i % size]);
            return std::move(total_);
        }
        for (std::size_t k = 0; k < classes_; ++k) {
            float* values = total_.at(k);
            for (std::size_t i = 0; i < size; ++i) values[i] /= seen_[i];
        }
        return std::move(total_);
    }

private:
    void add_seen(std::size_t at, const float* w, std::size_t width) {
        for (std::size_t i = 0; i < width; ++i) {
            const float sum = seen_[at + i] + (w ? w[i] : 1.0F);
            seen_[at + i] = half_ ? rounded_to_half(sum) : sum;
        }
    }

    void add_row(std::size_t at, const float* values, const float* w, std::size_t width) {
        if (half_) {
            for (std::size_t i = 0; i < width; ++i) {
                short_[at + i] = float_to_half(half_to_float(short_[at + i]) + (w ? values[i] * w[i] : values[i]));
            }
            return;
        }
        float* into = total_.data.data() + at;
        if (w == nullptr) {
            for (std::size_t i = 0; i < width; ++i) into[i] += values[i];
        } else {
            for (std::size_t i = 0; i < width; ++i) into[i] += values[i] * w[i];
        }
    }

    std::size_t classes_;
    Shape3 grid_;
    bool half_;
    Array<float> total_;
    std::vector<std::uint16_t> short_;
    std::vector<float> seen_;
};

// ------------------------------------------------------------------------------------------------------ one grid

// Windows in order; a batch of them waits until it is full. The same constant input has the same output, so it is
// computed once.
void over_windows(const Run& run, const Array<float>& x, Sums& sums) {
    const Shape3 grid = last_three(x.shape), tile = tile_shape(grid, run.tiling);
    const std::vector<Shape3> starts = window_starts(grid, run.tiling);
    const Values weight = window_weights(run.tiling, starts.size());
    const std::size_t passes = mirror_subsets(run.tiling.mirror_axes).size() * run.members->size();
    std::map<std::vector<float>, Values> constant;
    std::vector<Shape3> waiting;
    const auto add = [&](const Values& result, const Shape3& start) { sums.add(result, start, tile, weight, run.tiling.window); };
    const auto flush = [&] {
        if (waiting.empty()) return;
        const std::vector<Values> found = means(run, x, waiting, tile);
        for (std::size_t i = 0; i < found.size(); ++i) add(found[i], waiting[i]);
        waiting.clear();
    };
    for (const Shape3& start : starts) {
        const std::vector<float> value = constant_value(x, start, tile);
        if (value.empty()) {
            waiting.push_back(start);
            if (waiting.size() * (passes / run.members->size()) >= run.batch) flush();
            continue;
        }
        flush();
        const auto known = constant.find(value);
        if (known != constant.end()) {
            run.report(passes);
            add(known->second, start);
            continue;
        }
        const Values found = means(run, x, {start}, tile).front();
        add(found, start);
        constant[value] = found;
    }
    flush();
}

bool untouched(const Box3& padded, const Box3& kept, const Shape3& whole) {
    for (std::size_t i = 0; i < 3; ++i) {
        if (kept[i].size != whole[i] || padded[i].size != whole[i]) return false;
    }
    return true;
}

// (K, whole) with `found` (K, padded) cut back and put where it was kept; elsewhere background. In place where it fits.
Array<float> on_whole_grid(Array<float> found, const Box3& padded, const Box3& kept, const Shape3& whole, float background) {
    if (untouched(padded, kept, whole)) return found;
    const std::size_t classes = found.shape[0];
    const auto row_of = [&](std::size_t k, std::size_t z, std::size_t y) {
        return found.data.data() + ((k * padded[0].size + padded[0].first + z) * padded[1].size + padded[1].first + y) * padded[2].size +
               padded[2].first;
    };
    const bool all = kept[0].size == whole[0] && kept[1].size == whole[1] && kept[2].size == whole[2];
    Array<float> out;
    if (!all) out = Array<float>(as_shape(classes, whole), background);
    for (std::size_t k = 0; k < classes; ++k) {
        for (std::size_t z = 0; z < kept[0].size; ++z) {
            for (std::size_t y = 0; y < kept[1].size; ++y) {
                const float* from = row_of(k, z, y);
                const std::size_t at = ((k * whole[0] + kept[0].first + z) * whole[1] + kept[1].first + y) * whole[2] + kept[2].first;
                float* into = (all ? found.data.data() : out.data.data()) + at;
                std::copy(from, from + kept[2].size, into);  // where all is kept, never behind what is still to be read
            }
        }
    }
    if (!all) return out;
    found.shape = as_shape(classes, whole);
    found.data.resize(classes * count(whole));
    return found;
}

Array<float> one_grid(const Run& run, const Array<float>& x) {
    const Shape3 whole = last_three(x.shape);
    const Box3 kept = remainder_crop(whole, run.tiling);
    const Box3 padded = padding({kept[0].size, kept[1].size, kept[2].size}, run.tiling);
    const bool as_it_is = untouched(padded, kept, whole);
    Array<float> held;
    if (!as_it_is) held = cut_and_pad(x, kept, padded, run.tiling);
    const Array<float>& grid = as_it_is ? x : held;
    Sums sums(run.classes, last_three(grid.shape), run.tiling.half);
    over_windows(run, grid, sums);
    held = Array<float>();
    return on_whole_grid(sums.mean(), padded, kept, whole, run.background());
}

Array<float> over_grid(const Run& run, const Array<float>& x) {
    if (!run.tiling.flat) return one_grid(run, x);
    const Shape3 grid = last_three(x.shape);
    const std::size_t plane = grid[1] * grid[2];
    Array<float> out(as_shape(run.classes, grid)), slice({x.shape[0], 1, grid[1], grid[2]});
    for (std::size_t z = 0; z < grid[0]; ++z) {
        for (std::size_t c = 0; c < x.shape[0]; ++c) std::copy_n(x.at(c) + z * plane, plane, slice.at(c));
        const Array<float> found = one_grid(run, slice);
        for (std::size_t k = 0; k < run.classes; ++k) std::copy_n(found.at(k), plane, out.at(k) + z * plane);
    }
    return out;
}

// Each member's mean is rounded to float16 before the next is added.
Array<float> half_mean(const Run& run, const Array<float>& x) {
    Array<float> total;
    for (const NetworkRun& member : *run.members) {
        const std::vector<NetworkRun> alone{member};
        Run one = run;
        one.members = &alone;
        Array<float> part = over_grid(one, x);
        if (total.data.empty()) {
            total = std::move(part);
            continue;
        }
        for (std::size_t i = 0; i < total.size(); ++i) total.data[i] = rounded_to_half(total.data[i] + part.data[i]);
    }
    const auto members = static_cast<float>(run.members->size());
    if (run.members->size() > 1) {
        for (float& value : total.data) value = rounded_to_half(value / members);
    }
    return total;
}

std::size_t count_passes(const Shape3& shape, const Tiling& tiling, std::size_t members) {
    const Shape3 grid = tiling.flat ? Shape3{1, shape[1], shape[2]} : shape;
    const Box3 kept = remainder_crop(grid, tiling);
    const std::size_t windows = count_windows({kept[0].size, kept[1].size, kept[2].size}, tiling);
    return (tiling.flat ? shape[0] : 1) * windows * mirror_subsets(tiling.mirror_axes).size() * members;
}

}  // namespace

std::size_t batch_of(const TileOptions& options, const std::vector<std::size_t>& window) {
    if (options.batch) return options.batch;
    // More gains nothing on a processor and costs memory.
    const std::size_t most = window.size() == 2 ? std::size_t{1} << 20 : std::size_t{1} << 18;
    return std::clamp<std::size_t>(most / elements(window), 1, 16);
}

Scores scores_of(const Array<float>& x, const Json& manifest, const std::vector<NetworkRun>& members, const TileOptions& options,
                 const WindowProgress& progress) {
    Run run;
    run.tiling = tiling_of(manifest, options);
    run.members = &members;
    run.batch = batch_of(options, field<std::vector<std::size_t>>(manifest.at("tiling"), "window"));
    run.classes = field<std::size_t>(manifest.at("network").at("outputs").at(0), "channels");
    run.activation = field<std::string>(manifest.at("decode"), "activation");
    run.exclusive = field<std::string>(manifest.at("decode").at("decision"), "rule") == "argmax";
    const std::size_t total = count_passes(last_three(x.shape), run.tiling, members.size());
    std::size_t done = 0;
    run.report = [&](std::size_t more) {
        done += more;
        if (progress) progress(done, total);
    };
    Scores out;
    out.half = run.tiling.half;
    out.probabilities = run.tiling.probabilities;
    out.values = run.tiling.half ? half_mean(run, x) : over_grid(run, x);
    return out;
}

Shape lone_window(const Json& manifest) {
    if (!manifest.contains("tiling") || manifest.at("tiling").is_null()) return {};
    if (field<std::string>(manifest.at("input"), "kind") != "volume") return {};
    const Json& tiling = manifest.at("tiling");
    const auto window = field<std::vector<std::size_t>>(tiling, "window");
    if (field<std::string>(tiling, "pad_mode") == "none" || batch_of({}, window) > 1) return {};
    Shape out{1, field<std::size_t>(manifest.at("network"), "input_channels")};
    out.insert(out.end(), window.begin(), window.end());
    return out;
}

}  // namespace segship
