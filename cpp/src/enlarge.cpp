#include "enlarge.hpp"

#include <algorithm>
#include <cstring>
#include <limits>

#include "clones.hpp"
#include "parallel.hpp"

namespace segship {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 15;

// ------------------------------------------------------------------------------------------------------- grid

// The lower source sample of each output sample of one axis, and the share of the sample after it.
struct Taps {
    std::vector<std::size_t> low;
    std::vector<float> weight;
    bool mixes = false;  // false: every output sample is one source sample
};

Taps taps(std::size_t source, std::size_t target, const Rule& rule, bool separate) {
    Taps out;
    if (separate || source == target || source == 1) {
        out.low = source == 1 ? std::vector<std::size_t>(target, 0) : nearest_index(source, target, rule.kind);
        out.weight.assign(target, 0.0F);
        return out;
    }
    const AxisTaps found = axis_taps(source, target, rule.kind);
    out.low = found.low;
    out.weight.assign(found.weight.begin(), found.weight.end());
    out.mixes = true;
    return out;
}

// Output samples first .. end - 1 share the lower source sample `corner`.
struct Run {
    std::size_t corner, first, end;
};

std::vector<Run> runs(const Taps& axis) {
    std::vector<Run> out;
    for (std::size_t i = 0; i < axis.low.size(); ++i) {
        if (i == 0 || axis.low[i] != axis.low[i - 1]) out.push_back({axis.low[i], i, i});
        out.back().end = i + 1;
    }
    return out;
}

struct Grid {
    Taps z, y, x;
    std::vector<Run> layers, rows, columns;
    Shape3 have, want;

    Grid(const Shape3& source, const Shape3& target, const Rule& rule, const Spacing& before, const Spacing& after)
        : have(source), want(target) {
        const auto separate = separate_axis(rule, before, after);
        z = taps(source[0], target[0], rule, separate == std::size_t{0});
        y = taps(source[1], target[1], rule, separate == std::size_t{1});
        x = taps(source[2], target[2], rule, separate == std::size_t{2});
        layers = runs(z);
        rows = runs(y);
        columns = runs(x);
    }
};

// a(1 - w) + bw: monotone in a and b also in floating point, which the short cuts here rely on.
inline float mix(float a, float b, float weight) { return a * (1.0F - weight) + b * weight; }

// The corners of a cell for one channel, lower first along x, y, z; an axis that does not mix has one.
struct Corners {
    float value[8];
};

struct Cell {
    std::size_t corner;                  // flat place of its lower corner
    std::size_t step_z, step_y, step_x;  // to the upper neighbours; 0 along an axis that does not mix
};

inline Corners corners(const float* channel, const Cell& cell) {
    const float* p = channel + cell.corner;
    return {{p[0], p[cell.step_x], p[cell.step_y], p[cell.step_y + cell.step_x], p[cell.step_z], p[cell.step_z + cell.step_x],
             p[cell.step_z + cell.step_y], p[cell.step_z + cell.step_y + cell.step_x]}};
}

// The interpolated value, in the order of operations that the Python runner has.
inline float between(const Corners& c, const Cell& cell, float wz, float wy, float wx) {
    const auto row = [&](int i) { return cell.step_x ? mix(c.value[i], c.value[i + 1], wx) : c.value[i]; };
    const auto plane = [&](int i) { return cell.step_y ? mix(row(i), row(i + 2), wy) : row(i); };
    return cell.step_z ? mix(plane(0), plane(4), wz) : plane(0);
}

// One cell's output voxels.
struct Box {
    const Run &z, &y, &x;
};

template <typename Decide>
void over_box(const Box& box, const Grid& grid, const Decide& decide) {
    for (std::size_t z = box.z.first; z < box.z.end; ++z) {
        for (std::size_t y = box.y.first; y < box.y.end; ++y) {
            const std::size_t row = (z * grid.want[1] + y) * grid.want[2];
            for (std::size_t x = box.x.first; x < box.x.end; ++x) {
                decide(row + x, grid.z.weight[z], grid.y.weight[y], grid.x.weight[x]);
            }
        }
    }
}

Cell cell_at(const Grid& grid, std::size_t z, std::size_t y, std::size_t x) {
    const auto& have = grid.have;
    return {(z * have[1] + y) * have[2] + x, grid.z.mixes ? have[1] * have[2] : 0, grid.y.mixes ? have[2] : 0,
            grid.x.mixes ? std::size_t{1} : 0};
}

// Does a cell hold more than one label at its corners?
template <typename T>
bool mixed(const T* labels, const Cell& cell) {
    const T* p = labels + cell.corner;
    const T first = p[0];
    return p[cell.step_x] != first || p[cell.step_y] != first || p[cell.step_y + cell.step_x] != first || p[cell.step_z] != first ||
           p[cell.step_z + cell.step_x] != first || p[cell.step_z + cell.step_y] != first ||
           p[cell.step_z + cell.step_y + cell.step_x] != first;
}

template <typename T>
void spread(const Box& box, const Grid& grid, T value, T* out) {
    for (std::size_t z = box.z.first; z < box.z.end; ++z) {
        for (std::size_t y = box.y.first; y < box.y.end; ++y) {
            T* row = out + (z * grid.want[1] + y) * grid.want[2];
            std::fill(row + box.x.first, row + box.x.end, value);
        }
    }
}

// Every cell of the grid: `same` of one label, `decide` of several.
template <typename T, typename Decide>
void over_cells(const Grid& grid, const std::vector<T>& labels, T* out, const Decide& decide) {
    on_threads(grid.layers.size(), [&](std::size_t i) {
        const Run& layer = grid.layers[i];
        for (const Run& row : grid.rows) {
            for (const Run& column : grid.columns) {
                const Cell cell = cell_at(grid, layer.corner, row.corner, column.corner);
                const Box box{layer, row, column};
                if (mixed(labels.data(), cell)) {
                    decide(cell, box);
                } else {
                    spread(box, grid, labels[cell.corner], out);
                }
            }
        }
    });
}

// ---------------------------------------------------------------------------------------------------- winners

// Two classes: the sign of the interpolated difference.
void winner_of_two(const Array<float>& scores, const Cell& cell, const Box& box, const Grid& grid, std::uint16_t* out) {
    const Corners first = corners(scores.at(0), cell), second = corners(scores.at(1), cell);
    Corners ahead{};
    for (int i = 0; i < 8; ++i) ahead.value[i] = second.value[i] - first.value[i];
    over_box(box, grid, [&](std::size_t at, float wz, float wy, float wx) {
        out[at] = between(ahead, cell, wz, wy, wx) > 0 ? 1 : 0;
    });
}

// Classes that can win somewhere in a cell: those whose largest corner is not below the smallest of another.
struct Contender {
    std::uint16_t label;
    Corners corners;
    float high;
};

void winner_of_many(const Array<float>& scores, const Cell& cell, const Box& box, const Grid& grid, std::uint16_t* out) {
    thread_local std::vector<Contender> all;
    all.clear();
    float bar = -std::numeric_limits<float>::infinity();
    for (std::size_t k = 0; k < scores.shape[0]; ++k) {
        const Corners c = corners(scores.at(k), cell);
        const auto [low, high] = std::minmax_element(c.value, c.value + 8);
        if (*high < bar) continue;
        bar = std::max(bar, *low);
        all.push_back({static_cast<std::uint16_t>(k), c, *high});
    }
    all.erase(std::remove_if(all.begin(), all.end(), [bar](const Contender& one) { return one.high < bar; }), all.end());
    over_box(box, grid, [&](std::size_t at, float wz, float wy, float wx) {
        float best = -std::numeric_limits<float>::infinity();
        std::uint16_t winner = all.front().label;
        for (const Contender& one : all) {
            const float value = between(one.corners, cell, wz, wy, wx);
            if (value > best) {
                best = value;
                winner = one.label;
            }
        }
        out[at] = winner;
    });
}

SEGSHIP_CLONES
void keep_larger(float* best, std::uint16_t* index, const float* one, std::size_t count, std::uint16_t k) {
    for (std::size_t i = 0; i < count; ++i) {
        const bool better = one[i] > best[i];
        index[i] = better ? k : index[i];
        best[i] = better ? one[i] : best[i];
    }
}

LabelMap first_maximum(const Array<float>& scores, const Shape3& shape, const Rule& rule, const Spacing& before, const Spacing& after) {
    Array<float> best = resample_one(scores, 0, shape, rule, before, after);
    LabelMap out(as_shape(shape));
    for (std::size_t k = 1; k < scores.shape[0]; ++k) {
        const Array<float> one = resample_one(scores, k, shape, rule, before, after);
        keep_larger(best.data.data(), out.data.data(), one.data.data(), out.size(), static_cast<std::uint16_t>(k));
    }
    return out;
}

}  // namespace

LabelMap largest(const Array<float>& scores) {
    LabelMap out(as_shape(last_three(scores.shape)));
    const std::size_t size = out.size();
    on_threads((size + kChunk - 1) / kChunk, [&](std::size_t job) {
        const std::size_t start = job * kChunk, part = std::min(kChunk, size - start);
        std::vector<float> best(scores.data.begin() + static_cast<std::ptrdiff_t>(start),
                                scores.data.begin() + static_cast<std::ptrdiff_t>(start + part));
        for (std::size_t k = 1; k < scores.shape[0]; ++k) {
            keep_larger(best.data(), out.data.data() + start, scores.at(k) + start, part, static_cast<std::uint16_t>(k));
        }
    });
    return out;
}

Array<float> resample_one(const Array<float>& scores, std::size_t k, const Shape3& shape, const Rule& rule, const Spacing& before,
                          const Spacing& after) {
    const Shape3 have = last_three(scores.shape);
    Array<float> out(as_shape(shape));
    if (have == shape) {
        std::copy(scores.at(k), scores.at(k) + out.size(), out.data.begin());
    } else {
        resample_channel(scores.at(k), have, shape, rule, separate_axis(rule, before, after), out.data.data());
    }
    return out;
}

LabelMap argmax_on_grid(const Array<float>& scores, const Shape3& shape, const Rule& rule, const Spacing& before, const Spacing& after) {
    const Shape3 have = last_three(scores.shape);
    if (have == shape) return largest(scores);
    if (rule.order != 1) return first_maximum(scores, shape, rule, before, after);
    const LabelMap best = largest(scores);
    const Grid grid(have, shape, rule, before, after);
    LabelMap out(as_shape(shape));
    const bool two = scores.shape[0] == 2;
    over_cells(grid, best.data, out.data.data(), [&](const Cell& cell, const Box& box) {
        two ? winner_of_two(scores, cell, box, grid, out.data.data()) : winner_of_many(scores, cell, box, grid, out.data.data());
    });
    return out;
}

Array<std::uint8_t> above_on_grid(const Array<float>& scores, std::size_t k, float limit, const Shape3& shape, const Rule& rule,
                                  const Spacing& before, const Spacing& after) {
    const Shape3 have = last_three(scores.shape);
    Array<std::uint8_t> out(as_shape(shape));
    if (have == shape || rule.order != 1) {
        const Array<float> values = resample_one(scores, k, shape, rule, before, after);
        for (std::size_t i = 0; i < out.size(); ++i) out.data[i] = values.data[i] > limit;
        return out;
    }
    const float* channel = scores.at(k);
    std::vector<std::uint8_t> above(count(have));
    for (std::size_t i = 0; i < above.size(); ++i) above[i] = channel[i] > limit;
    const Grid grid(have, shape, rule, before, after);
    over_cells(grid, above, out.data.data(), [&](const Cell& cell, const Box& box) {
        const Corners c = corners(channel, cell);
        over_box(box, grid, [&](std::size_t at, float wz, float wy, float wx) {
            out.data[at] = between(c, cell, wz, wy, wx) > limit;
        });
    });
    return out;
}

}  // namespace segship
