#pragma once
// Sums as numpy adds them: eight partial sums over blocks of 128, halves added to halves. Means and deviations that decide
// how a volume is normalised come out with numpy's own rounding.

#include <cstddef>

namespace segship {

template <typename T, typename Value>
T pairwise_sum(std::size_t first, std::size_t count, const Value& value) {
    if (count < 8) {
        T sum = count ? static_cast<T>(-0.0) : T{0};
        for (std::size_t i = 0; i < count; ++i) sum += value(first + i);
        return sum;
    }
    if (count <= 128) {
        T r[8];
        for (std::size_t k = 0; k < 8; ++k) r[k] = value(first + k);
        std::size_t i = 8;
        for (; i < count - count % 8; i += 8) {
            for (std::size_t k = 0; k < 8; ++k) r[k] += value(first + i + k);
        }
        T sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        for (; i < count; ++i) sum += value(first + i);
        return sum;
    }
    std::size_t half = count / 2;
    half -= half % 8;
    return pairwise_sum<T>(first, half, value) + pairwise_sum<T>(first + half, count - half, value);
}

}  // namespace segship
