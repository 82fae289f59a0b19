#pragma once
// IEEE 754 half precision as bits: rounded to the nearest, ties to even, as numpy's float16.

#include <cstdint>
#include <cstring>

namespace segship {

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
    std::uint32_t exponent = (half >> 10) & 0x1Fu, fraction = half & 0x3FFu, bits = 0;
    if (exponent == 0x1F) {
        bits = sign | 0x7F800000u | (fraction << 13);
    } else if (exponent != 0) {
        bits = sign | ((exponent + 112) << 23) | (fraction << 13);
    } else if (fraction == 0) {
        bits = sign;
    } else {  // below the smallest normal half
        exponent = 113;
        while (!(fraction & 0x400u)) {
            fraction <<= 1;
            --exponent;
        }
        bits = sign | (exponent << 23) | ((fraction & 0x3FFu) << 13);
    }
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline std::uint16_t float_to_half(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
    const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);  // NaN
    if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // rounds to infinity
    const std::uint32_t exponent = magnitude >> 23;
    if (exponent < 102) return sign;  // below half of the smallest half
    const std::uint32_t fraction = (magnitude & 0x7FFFFFu) | 0x800000u;
    const std::uint32_t drop = exponent < 113 ? 126 - exponent : 13;  // bits that a half does not keep
    std::uint32_t kept = fraction >> drop;
    const std::uint32_t rest = fraction & ((1u << drop) - 1), middle = 1u << (drop - 1);
    if (rest > middle || (rest == middle && (kept & 1u))) ++kept;
    if (exponent >= 113) kept += (exponent - 113) << 10;  // the leading 1 counts as an exponent of 1
    return static_cast<std::uint16_t>(sign | kept);
}

// Rounded once: through a float whose last bit says whether something was cut off.
inline std::uint16_t double_to_half(double value) {
    float narrow = static_cast<float>(value);
    const double back = static_cast<double>(narrow);
    std::uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    if (back != value && (bits & 0x7F800000u) != 0x7F800000u) {
        if ((back > value) == (value > 0)) --bits;  // towards zero
        bits |= 1u;
        std::memcpy(&narrow, &bits, sizeof narrow);
    }
    return float_to_half(narrow);
}

inline float rounded_to_half(float value) { return half_to_float(float_to_half(value)); }

}  // namespace segship
