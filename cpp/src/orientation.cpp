#include "orientation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include <opencv2/core.hpp>

#include "errors.hpp"

namespace segship {
namespace {

const char* const kLetters[3] = {"LR", "PA", "IS"};

// The rotation closest to the affine's directions: U V' of its singular value decomposition, rank taken into account.
cv::Matx33d closest_rotation(const Affine& affine) {
    cv::Matx33d unit;
    for (int k = 0; k < 3; ++k) {
        double length = 0;
        for (std::size_t i = 0; i < 3; ++i) length += affine[i][static_cast<std::size_t>(k)] * affine[i][static_cast<std::size_t>(k)];
        length = length == 0 ? 1 : std::sqrt(length);
        for (int i = 0; i < 3; ++i) unit(i, k) = affine[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)] / length;
    }
    cv::Matx31d s;
    cv::Matx33d u, vt;
    cv::SVD::compute(unit, s, u, vt);
    const double least = s(0) * 3 * std::numeric_limits<double>::epsilon();
    cv::Matx33d out = cv::Matx33d::zeros();
    for (int n = 0; n < 3; ++n) {
        if (!(s(n) > least)) continue;
        for (int i = 0; i < 3; ++i) {
            for (int k = 0; k < 3; ++k) out(i, k) += u(i, n) * vt(n, k);
        }
    }
    return out;
}

}  // namespace

std::optional<Orientation> io_orientation(const Affine& affine) {
    cv::Matx33d r = closest_rotation(affine);
    std::array<int, 3> order{0, 1, 2};
    std::array<double, 3> strength{};
    for (int k = 0; k < 3; ++k) {
        for (int i = 0; i < 3; ++i) strength[static_cast<std::size_t>(k)] = std::max(strength[static_cast<std::size_t>(k)], r(i, k) * r(i, k));
    }
    // the strongest axis first, so that a direction is named alike whatever the order of the axes
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
        return strength[static_cast<std::size_t>(a)] > strength[static_cast<std::size_t>(b)];
    });
    Orientation out{};
    for (const int k : order) {
        int best = 0;
        for (int i = 1; i < 3; ++i) {
            if (std::abs(r(i, k)) > std::abs(r(best, k))) best = i;
        }
        if (!(std::abs(r(best, k)) > 1e-8)) return std::nullopt;
        out[static_cast<std::size_t>(k)] = {static_cast<std::size_t>(best), r(best, k) < 0 ? -1 : 1};
        for (int other = 0; other < 3; ++other) r(best, other) = 0;
    }
    return out;
}

Orientation orientation_of(const std::string& letters) {
    Orientation out{};
    std::array<bool, 3> seen{};
    for (std::size_t i = 0; i < 3 && letters.size() == 3; ++i) {
        for (std::size_t axis = 0; axis < 3; ++axis) {
            const std::string pair = kLetters[axis];
            const auto place = pair.find(letters[i]);
            if (place == std::string::npos) continue;
            out[i] = {axis, place == 1 ? 1 : -1};
            seen[axis] = true;
        }
    }
    if (!(seen[0] && seen[1] && seen[2])) {
        throw PackageError("the manifest's orientation '" + letters + "' names no three directions; export again");
    }
    return out;
}

Orientation transform_between(const Orientation& start, const Orientation& end) {
    Orientation out{};
    for (std::size_t to = 0; to < 3; ++to) {
        for (std::size_t from = 0; from < 3; ++from) {
            if (start[from].axis == end[to].axis) out[from] = {to, start[from].flip == end[to].flip ? 1 : -1};
        }
    }
    return out;
}

bool is_identity(const Orientation& turn) {
    for (std::size_t i = 0; i < 3; ++i) {
        if (turn[i].axis != i || turn[i].flip != 1) return false;
    }
    return true;
}

Affine multiply(const Affine& a, const Affine& b) {
    Affine out{};
    for (std::size_t i = 0; i < 4; ++i) {
        for (std::size_t k = 0; k < 4; ++k) {
            for (std::size_t n = 0; n < 4; ++n) out[i][k] += a[i][n] * b[n][k];
        }
    }
    return out;
}

Affine undo_turn(const Orientation& turn, const std::vector<std::size_t>& shape) {
    Affine reorder{}, flip{};
    for (std::size_t i = 0; i < 3; ++i) {
        reorder[i][turn[i].axis] = 1;
        flip[i][i] = turn[i].flip;
        const double centre = -(static_cast<double>(shape[i]) - 1) / 2.0;
        flip[i][3] = turn[i].flip * centre - centre;
    }
    reorder[3][3] = flip[3][3] = 1;
    return multiply(flip, reorder);
}

Affine turned_affine(const Affine& affine, const Orientation& turn, const std::vector<std::size_t>& shape) {
    return multiply(affine, undo_turn(turn, shape));
}

Affine inverse(const Affine& affine) {
    cv::Matx44d matrix;
    for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 4; ++k) matrix(i, k) = affine[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)];
    }
    bool found = false;
    const cv::Matx44d back = matrix.inv(cv::DECOMP_LU, &found);
    Affine out{};
    for (int i = 0; i < 4; ++i) {
        for (int k = 0; k < 4; ++k) {
            out[static_cast<std::size_t>(i)][static_cast<std::size_t>(k)] = found ? back(i, k) : std::nan("");
        }
    }
    return out;
}

std::string directions(const Affine& affine) {
    const auto found = io_orientation(affine);
    if (!found) return "???";
    std::string out;
    for (const auto& axis : *found) out += kLetters[axis.axis][axis.flip == 1 ? 1 : 0];
    return out;
}

}  // namespace segship
