// Scores from the network's grid to the picture's own grid, a few rows at a time (src/segship/inference/bands.py).
//
// What travels back is a chain of linear interpolations, cuts and mirrorings. Along one axis such a chain is a sparse
// matrix: each row of the picture is a weighted sum of two rows of the network's grid for each interpolation.

#include <algorithm>
#include <optional>
#include <utility>

#include "clones.hpp"
#include "decode2d.hpp"
#include "parallel.hpp"

namespace segship {
namespace {

// Of the picture, made at once: with 19 classes 2.5 MB, which stay in the processor's cache.
constexpr std::size_t BAND_PIXELS = std::size_t{1} << 15;

// One step back towards the picture, for both axes.
struct Back {
    GridMove kind;
    Size before;
    Size after;
    Size offset;
};

struct Across {
    Back back;
    std::vector<std::size_t> low, high;
    std::vector<float> share;
};

// Rows of the network's grid that each row of the picture is made of, and their weights: (height, taps).
struct Rows {
    std::size_t taps = 1;
    std::vector<std::size_t> index;
    std::vector<float> weight;
};

// The way from `grid` to the picture; none where part of it is neither interpolation, cut nor mirroring.
std::optional<std::vector<Back>> moves_of(Size grid, const Frame& frame, const std::string& path) {
    std::vector<Back> moves;
    if (by_input_size(grid, frame, path)) {
        moves.push_back({GridMove::resize, grid, frame.prepared, {}});
        grid = frame.prepared;
    }
    for (auto step = frame.geometry.rbegin(); step != frame.geometry.rend(); ++step) {
        if (step->kind == GridMove::crop) return std::nullopt;
        moves.push_back({step->kind, grid, step->before, step->offset});
        grid = step->before;
    }
    moves.erase(std::remove_if(moves.begin(), moves.end(),
                               [](const Back& move) { return move.kind == GridMove::resize && move.before == move.after; }),
                moves.end());
    return moves;
}

Rows rows_of(const std::vector<Back>& moves, std::size_t height, bool aligned) {
    std::vector<std::vector<std::pair<std::size_t, double>>> rows(height);
    for (std::size_t y = 0; y < height; ++y) rows[y] = {{y, 1.0}};
    Rows found;
    for (auto move = moves.rbegin(); move != moves.rend(); ++move) {
        if (move->kind == GridMove::pad) {
            for (auto& row : rows) {
                for (auto& tap : row) tap.first += move->offset.height;
            }
        } else if (move->kind == GridMove::resize) {
            const LinearTaps taps = linear_taps(move->before.height, move->after.height, aligned);
            for (auto& row : rows) {
                const std::size_t count = row.size();
                for (std::size_t t = 0; t < count; ++t) {
                    const auto [at, weight] = row[t];
                    row[t] = {taps.low[at], weight * (1 - taps.fraction[at])};
                    row.emplace_back(taps.high[at], weight * taps.fraction[at]);
                }
            }
            found.taps *= 2;
        }
    }
    for (const auto& row : rows) {
        for (const auto& [at, weight] : row) {
            found.index.push_back(at);
            found.weight.push_back(static_cast<float>(weight));
        }
    }
    return found;
}

std::vector<Across> across_of(const std::vector<Back>& moves, bool aligned) {
    std::vector<Across> found;
    for (const Back& move : moves) {
        Across one{move, {}, {}, {}};
        if (move.kind == GridMove::resize) {
            if (move.before.width == move.after.width) continue;
            LinearTaps taps = linear_taps(move.before.width, move.after.width, aligned);
            one.low = std::move(taps.low);
            one.high = std::move(taps.high);
            one.share.assign(taps.fraction.begin(), taps.fraction.end());
        }
        found.push_back(std::move(one));
    }
    return found;
}

SEGSHIP_CLONES void add_row(float* target, const float* source, float weight, std::size_t count, bool first) {
    if (first) {
        for (std::size_t i = 0; i < count; ++i) target[i] = source[i] * weight;
    } else {
        for (std::size_t i = 0; i < count; ++i) target[i] += source[i] * weight;
    }
}

SEGSHIP_CLONES void widen(const float* row, const Across& how, float* out) {
    const std::size_t count = how.share.size();
    const std::size_t* low = how.low.data();
    const std::size_t* high = how.high.data();
    const float* share = how.share.data();
    for (std::size_t i = 0; i < count; ++i) out[i] = row[low[i]] * (1.0F - share[i]) + row[high[i]] * share[i];
}

// One row of the network's grid to one of the picture; `row` and `spare` are as wide as the widest on the way.
float* run_across(float* row, float* spare, const std::vector<Across>& steps) {
    for (const Across& step : steps) {
        if (step.back.kind == GridMove::pad) {
            row += step.back.offset.width;
        } else if (step.back.kind == GridMove::mirror) {
            std::reverse(row, row + step.back.after.width);
        } else {
            widen(row, step, spare);
            std::swap(row, spare);
        }
    }
    return row;
}

class Bands {
public:
    Bands(const Array<float>& planes, const std::vector<Back>& moves, Size size, bool aligned)
        : planes_(planes), size_(size), rows_(rows_of(moves, size.height, aligned)), across_(across_of(moves, aligned)) {
        widest_ = std::max(planes.shape[2], size.width);
        for (const Back& move : moves) widest_ = std::max({widest_, move.before.width, move.after.width});
    }

    Array<float> make(std::size_t top, std::size_t height) const {
        Array<float> out(Shape{planes_.shape[0], height, size_.width});
        std::vector<float> first(2 * widest_), second(2 * widest_);
        for (std::size_t k = 0; k < planes_.shape[0]; ++k) {
            for (std::size_t y = 0; y < height; ++y) {
                mix(k, top + y, first.data());
                const float* row = run_across(first.data(), second.data(), across_);
                std::copy_n(row, size_.width, out.at(k) + y * size_.width);
            }
        }
        return out;
    }

private:
    void mix(std::size_t k, std::size_t y, float* row) const {
        const std::size_t width = planes_.shape[2];
        bool first = true;
        for (std::size_t t = y * rows_.taps; t < (y + 1) * rows_.taps; ++t) {
            if (rows_.weight[t] == 0.0F && t != y * rows_.taps) continue;
            add_row(row, planes_.at(k) + rows_.index[t] * width, rows_.weight[t], width, first);
            first = false;
        }
    }

    const Array<float>& planes_;
    Size size_;
    Rows rows_;
    std::vector<Across> across_;
    std::size_t widest_ = 0;
};

}  // namespace

void restored_bands(const Array<float>& planes, const Frame& frame, const std::string& method, const std::string& path,
                    const Band& take) {
    const auto moves = moves_of({planes.shape[1], planes.shape[2]}, frame, path);
    const bool aligned = method == "torch:bilinear-align-corners";
    if (!moves || (!aligned && method != "torch:bilinear")) {
        Array<float> whole = restore(planes, frame, method, path);
        take(0, whole);
        return;
    }
    const Size size = frame.original;
    const Bands bands(planes, *moves, size, aligned);
    const std::size_t step = std::max<std::size_t>(1, BAND_PIXELS / size.width);
    on_threads((size.height + step - 1) / step, [&](std::size_t number) {
        const std::size_t top = number * step;
        Array<float> scores = bands.make(top, std::min(step, size.height - top));
        take(top, scores);
    });
}

}  // namespace segship
