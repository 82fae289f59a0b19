#pragma once
// Grids cut, turned, padded and filled: arrays are (C, z, y, x) or (z, y, x).

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "volume.hpp"

namespace segship {

// The part of (C, z, y, x) from `start` on.
template <typename T>
Array<T> boxed(const Array<T>& x, const Shape3& start, const Shape3& size) {
    const Shape3 have = last_three(x.shape);
    if (have == size) return x;
    const std::size_t planes = x.rank() == 4 ? x.shape[0] : 1, whole = count(have);
    Array<T> out(x.rank() == 4 ? as_shape(planes, size) : as_shape(size));
    T* into = out.data.data();
    for (std::size_t c = 0; c < planes; ++c) {
        for (std::size_t z = 0; z < size[0]; ++z) {
            for (std::size_t y = 0; y < size[1]; ++y, into += size[2]) {
                const T* row = x.data.data() + c * whole + ((start[0] + z) * have[1] + start[1] + y) * have[2] + start[2];
                std::copy(row, row + size[2], into);
            }
        }
    }
    return out;
}

// (C, z, y, x) with the spatial axes in another order: output axis i is input axis axes[i].
template <typename T>
Array<T> transposed(const Array<T>& x, const std::array<std::size_t, 3>& axes) {
    const Shape3 have = last_three(x.shape);
    const Shape3 want{have[axes[0]], have[axes[1]], have[axes[2]]};
    const Shape3 steps{have[1] * have[2], have[2], 1};
    const std::size_t planes = x.rank() == 4 ? x.shape[0] : 1, whole = count(have);
    Array<T> out(x.rank() == 4 ? as_shape(planes, want) : as_shape(want));
    T* into = out.data.data();
    for (std::size_t c = 0; c < planes; ++c) {
        for (std::size_t z = 0; z < want[0]; ++z) {
            for (std::size_t y = 0; y < want[1]; ++y) {
                const T* from = x.data.data() + c * whole + z * steps[axes[0]] + y * steps[axes[1]];
                for (std::size_t i = 0; i < want[2]; ++i, from += steps[axes[2]]) *into++ = *from;
            }
        }
    }
    return out;
}

// Where padding takes its value from: numpy's modes 'edge' and 'reflect'.
inline std::size_t padded_source(std::ptrdiff_t at, std::size_t size, bool reflect) {
    const auto last = static_cast<std::ptrdiff_t>(size) - 1;
    if (!reflect || last == 0) return static_cast<std::size_t>(std::clamp<std::ptrdiff_t>(at, 0, last));
    const std::ptrdiff_t period = 2 * last;
    at = ((at % period) + period) % period;
    return static_cast<std::size_t>(at > last ? period - at : at);
}

template <typename T>
Array<T> padded(const Array<T>& x, const Shape3& first, const Shape3& size, const std::string& mode, T value) {
    const Shape3 have = last_three(x.shape);
    const std::size_t planes = x.rank() == 4 ? x.shape[0] : 1, whole = count(have);
    Array<T> out(x.rank() == 4 ? as_shape(planes, size) : as_shape(size), value);
    const bool constant = mode == "constant", reflect = mode == "reflect";
    const auto source = [&](std::size_t axis, std::size_t at) -> std::ptrdiff_t {
        const auto inside = static_cast<std::ptrdiff_t>(at) - static_cast<std::ptrdiff_t>(first[axis]);
        if (constant && (inside < 0 || inside >= static_cast<std::ptrdiff_t>(have[axis]))) return -1;
        return static_cast<std::ptrdiff_t>(padded_source(inside, have[axis], reflect));
    };
    T* into = out.data.data();
    for (std::size_t c = 0; c < planes; ++c) {
        for (std::size_t z = 0; z < size[0]; ++z) {
            for (std::size_t y = 0; y < size[1]; ++y, into += size[2]) {
                const std::ptrdiff_t sz = source(0, z), sy = source(1, y);
                if (sz < 0 || sy < 0) continue;
                const T* row = x.data.data() + c * whole + (static_cast<std::size_t>(sz) * have[1] + static_cast<std::size_t>(sy)) * have[2];
                for (std::size_t i = 0; i < size[2]; ++i) {
                    const std::ptrdiff_t sx = source(2, i);
                    if (sx >= 0) into[i] = row[sx];
                }
            }
        }
    }
    return out;
}

// Background that no face-connected path leads out of becomes foreground.
std::vector<std::uint8_t> fill_holes(const std::vector<std::uint8_t>& mask, const Shape3& shape);

}  // namespace segship
