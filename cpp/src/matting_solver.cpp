// Closed-form matting: the matting Laplacian of the unknown pixels, solved by conjugate gradients behind an incomplete
// Cholesky decomposition that keeps what is large enough.

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "matting2d.hpp"

namespace segship {
namespace {

constexpr double EPSILON = 1e-7;        // of the covariances, against colours that are all the same
constexpr double TOLERANCE = 1e-7;      // of the residual, of its size at the start
constexpr double DISCARD = 1e-4;        // values of the decomposition below are left out
constexpr std::size_t MOST_STEPS = 10000;
constexpr std::size_t REACH = 5;        // pixels that share a window with another lie within 5 x 5
constexpr std::size_t NOTHING = static_cast<std::size_t>(-1);

using Vector = std::vector<double>;

// Rows of the Laplacian for unknown pixels alone: 5 x 5 neighbours each.
struct Equations {
    std::size_t height = 0;
    std::size_t width = 0;
    std::vector<std::size_t> pixels;   // of each row
    std::vector<std::size_t> numbers;  // row of each pixel; NOTHING where it is known
    Vector values;                     // (rows, 25)

    // The pixel that the k-th value of a row belongs to; NOTHING outside the picture.
    std::size_t neighbour(std::size_t row, std::size_t k) const {
        const std::size_t y = pixels[row] / width + k / REACH, x = pixels[row] % width + k % REACH;
        if (y < 2 || x < 2 || y >= height + 2 || x >= width + 2) return NOTHING;
        return (y - 2) * width + x - 2;
    }
};

struct Window {
    std::array<std::array<double, 3>, 9> centred{};
    // Upper triangle of the inverse covariance: 00 01 02 11 12 22
    std::array<double, 6> inverse{};
};

Window window_at(const Array<double>& rgb, std::size_t y, std::size_t x) {
    Window found;
    const std::size_t width = rgb.shape[1];
    for (std::size_t c = 0; c < 3; ++c) {
        double sum = 0.0;
        for (std::size_t k = 0; k < 9; ++k) sum += rgb.data[((y + k / 3 - 1) * width + x + k % 3 - 1) * 3 + c];
        for (std::size_t k = 0; k < 9; ++k) {
            found.centred[k][c] = rgb.data[((y + k / 3 - 1) * width + x + k % 3 - 1) * 3 + c] - sum / 9;
        }
    }
    std::array<double, 6> a{EPSILON, 0, 0, EPSILON, 0, EPSILON};
    for (const auto& p : found.centred) {
        a[0] += p[0] * p[0];
        a[1] += p[0] * p[1];
        a[2] += p[0] * p[2];
        a[3] += p[1] * p[1];
        a[4] += p[1] * p[2];
        a[5] += p[2] * p[2];
    }
    for (double& value : a) value /= 9;
    const std::array<double, 6> cofactors{a[3] * a[5] - a[4] * a[4], a[2] * a[4] - a[1] * a[5], a[1] * a[4] - a[2] * a[3],
                                          a[0] * a[5] - a[2] * a[2], a[1] * a[2] - a[0] * a[4], a[0] * a[3] - a[1] * a[1]};
    const double determinant = a[0] * cofactors[0] + a[1] * cofactors[1] + a[2] * cofactors[2];
    for (std::size_t i = 0; i < 6; ++i) found.inverse[i] = cofactors[i] / determinant;
    return found;
}

void add_window(Equations& equations, const Window& window, std::size_t y, std::size_t x) {
    const auto& m = window.inverse;
    for (std::size_t i = 0; i < 9; ++i) {
        const std::size_t row = equations.numbers[(y + i / 3 - 1) * equations.width + x + i % 3 - 1];
        if (row == NOTHING) continue;
        const auto& p = window.centred[i];
        const std::array<double, 3> weighed{m[0] * p[0] + m[1] * p[1] + m[2] * p[2], m[1] * p[0] + m[3] * p[1] + m[4] * p[2],
                                            m[2] * p[0] + m[4] * p[1] + m[5] * p[2]};
        for (std::size_t j = 0; j < 9; ++j) {
            const auto& q = window.centred[j];
            const double alike = weighed[0] * q[0] + weighed[1] * q[1] + weighed[2] * q[2];
            const std::size_t down = j / 3 + 2 - i / 3, right = j % 3 + 2 - i % 3;
            equations.values[row * REACH * REACH + down * REACH + right] += (i == j ? 1.0 : 0.0) - (1 + alike) / 9;
        }
    }
}

Equations equations_of(const Array<double>& rgb, const Array<std::uint8_t>& known) {
    Equations equations;
    equations.height = known.shape[0];
    equations.width = known.shape[1];
    equations.numbers.assign(known.size(), NOTHING);
    for (std::size_t i = 0; i < known.size(); ++i) {
        if (known.data[i] == 0 || known.data[i] == 255) continue;
        equations.numbers[i] = equations.pixels.size();
        equations.pixels.push_back(i);
    }
    equations.values.assign(equations.pixels.size() * REACH * REACH, 0.0);
    for (std::size_t y = 1; y + 1 < equations.height; ++y) {
        for (std::size_t x = 1; x + 1 < equations.width; ++x) {
            bool wanted = false;
            for (std::size_t k = 0; k < 9; ++k) {
                wanted = wanted || equations.numbers[(y + k / 3 - 1) * equations.width + x + k % 3 - 1] != NOTHING;
            }
            if (wanted) add_window(equations, window_at(rgb, y, x), y, x);
        }
    }
    return equations;
}

// The rows over unknown pixels as lists, and what the known ones put on the right-hand side.
struct System {
    std::vector<std::size_t> start{0};
    std::vector<std::size_t> columns;
    Vector values;
    Vector right;

    std::size_t size() const { return right.size(); }
    Vector times(const Vector& x) const {
        Vector out(size(), 0.0);
        for (std::size_t row = 0; row < size(); ++row) {
            double sum = 0.0;
            for (std::size_t k = start[row]; k < start[row + 1]; ++k) sum += values[k] * x[columns[k]];
            out[row] = sum;
        }
        return out;
    }
};

System system_of(const Equations& equations, const Array<std::uint8_t>& known) {
    System system;
    for (std::size_t row = 0; row < equations.pixels.size(); ++row) {
        double right = 0.0;
        for (std::size_t k = 0; k < REACH * REACH; ++k) {
            const std::size_t pixel = equations.neighbour(row, k);
            if (pixel == NOTHING) continue;
            const double value = equations.values[row * REACH * REACH + k];
            if (equations.numbers[pixel] != NOTHING) {
                system.columns.push_back(equations.numbers[pixel]);
                system.values.push_back(value);
            } else if (known.data[pixel] == 255) {
                right -= value;
            }
        }
        system.start.push_back(system.columns.size());
        system.right.push_back(right);
    }
    return system;
}

// L of a symmetric matrix that is nearly L L^T; columns one after the other, the diagonal apart.
struct Decomposition {
    std::vector<std::size_t> start{0};
    std::vector<std::size_t> rows;
    Vector values;
    Vector diagonal;

    Vector solve(Vector x) const {
        const std::size_t count = diagonal.size();
        for (std::size_t j = 0; j < count; ++j) {
            x[j] /= diagonal[j];
            for (std::size_t k = start[j]; k < start[j + 1]; ++k) x[rows[k]] -= values[k] * x[j];
        }
        for (std::size_t j = count; j-- > 0;) {
            double sum = x[j];
            for (std::size_t k = start[j]; k < start[j + 1]; ++k) sum -= values[k] * x[rows[k]];
            x[j] = sum / diagonal[j];
        }
        return x;
    }
};

// False where the matrix, with `shift` on its diagonal, is not positive definite enough for what is left out. Column after
// column; each waits in the list of the next row that it has a value in.
bool decompose(const System& system, double shift, Decomposition& found) {
    const std::size_t count = system.size();
    found = Decomposition{};
    found.diagonal.assign(count, shift);
    Vector column(count, 0.0);
    std::vector<std::uint8_t> present(count, 0);
    std::vector<std::size_t> filled, next(count, 0), first(count, NOTHING), chain(count, NOTHING);
    const auto put = [&](std::size_t i, double value) {
        column[i] += value;
        if (present[i] == 0) filled.push_back(i);
        present[i] = 1;
    };
    const auto wait = [&](std::size_t k) {
        if (next[k] == found.start[k + 1]) return;
        chain[k] = first[found.rows[next[k]]];
        first[found.rows[next[k]]] = k;
    };
    for (std::size_t j = 0; j < count; ++j) {
        for (std::size_t k = system.start[j]; k < system.start[j + 1]; ++k) {
            if (system.columns[k] == j) found.diagonal[j] += system.values[k];
            if (system.columns[k] > j && system.values[k] != 0.0) put(system.columns[k], system.values[k]);
        }
        for (std::size_t k = first[j]; k != NOTHING;) {
            const std::size_t after = chain[k];
            const double share = found.values[next[k]++];
            for (std::size_t at = next[k]; at < found.start[k + 1]; ++at) put(found.rows[at], -found.values[at] * share);
            wait(k);
            k = after;
        }
        if (found.diagonal[j] <= 0.0) return false;
        found.diagonal[j] = std::sqrt(found.diagonal[j]);
        std::sort(filled.begin(), filled.end());
        next[j] = found.rows.size();
        for (std::size_t i : filled) {
            const double value = column[i] / found.diagonal[j];
            found.diagonal[i] -= value * value;  // also where the value itself is left out
            if (std::abs(value) > DISCARD) {
                found.rows.push_back(i);
                found.values.push_back(value);
            }
            column[i] = 0.0;
            present[i] = 0;
        }
        filled.clear();
        found.start.push_back(found.rows.size());
        wait(j);
    }
    return true;
}

double inner(const Vector& a, const Vector& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

Vector conjugate_gradients(const System& system, const Decomposition& near) {
    Vector x(system.size(), 0.0), residual = system.right;
    const double enough = TOLERANCE * std::sqrt(inner(residual, residual));
    if (std::sqrt(inner(residual, residual)) <= enough) return x;
    Vector z = near.solve(residual), direction = z;
    double product = inner(residual, z);
    for (std::size_t step = 0; step < MOST_STEPS; ++step) {
        const Vector moved = system.times(direction);
        const double length = product / inner(direction, moved);
        for (std::size_t i = 0; i < x.size(); ++i) {
            x[i] += length * direction[i];
            residual[i] -= length * moved[i];
        }
        if (std::sqrt(inner(residual, residual)) < enough) return x;
        z = near.solve(residual);
        const double before = product;
        product = inner(residual, z);
        for (std::size_t i = 0; i < x.size(); ++i) direction[i] = direction[i] * (product / before) + z[i];
    }
    throw MattingFailed("Conjugate gradient descent did not converge within " + std::to_string(MOST_STEPS) + " iterations");
}

}  // namespace

Array<double> solve_alpha(const Array<double>& rgb, const Array<std::uint8_t>& known) {
    const Equations equations = equations_of(rgb, known);
    const System system = system_of(equations, known);
    Decomposition near;
    const std::array<double, 12> shifts{0.0, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5};
    const bool done = std::any_of(shifts.begin(), shifts.end(), [&](double shift) { return decompose(system, shift, near); });
    if (!done) throw MattingFailed("the picture's equations are not positive definite");
    const Vector x = conjugate_gradients(system, near);
    Array<double> alpha(known.shape);
    for (std::size_t i = 0; i < known.size(); ++i) {
        const std::size_t row = equations.numbers[i];
        const double value = row == NOTHING ? known.data[i] / 255.0 : x[row];
        if (std::isnan(value)) throw MattingFailed("the picture's equations have no solution");
        alpha.data[i] = std::clamp(value, 0.0, 1.0);
    }
    return alpha;
}

}  // namespace segship
