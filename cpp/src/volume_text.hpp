#pragma once
// Numbers and shapes as messages show them, as Python's texts have them.

#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace segship {

__extension__ typedef unsigned __int128 Wide;  // counts of voxels that a hostile header declares

inline std::string digits(Wide value) {
    std::string out;
    do {
        out.insert(out.begin(), static_cast<char>('0' + static_cast<int>(value % 10)));
        value /= 10;
    } while (value != 0);
    return out;
}

// 1234567 as '1,234,567'
inline std::string grouped(Wide value) {
    std::string out = digits(value);
    for (int i = static_cast<int>(out.size()) - 3; i > 0; i -= 3) out.insert(static_cast<std::size_t>(i), ",");
    return out;
}

// a * b, at most the largest number there is
inline Wide times(Wide a, Wide b) {
    const Wide most = ~Wide{0};
    return a != 0 && b > most / a ? most : a * b;
}

// The shortest text that reads back as the same number: 1.0, 0.8, 1e-20
inline std::string number_text(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    char buffer[64];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    std::string out(buffer, end);
    return out.find_first_of(".e") == std::string::npos ? out + ".0" : out;
}

inline std::string number_text(std::size_t value) { return std::to_string(value); }
inline std::string number_text(std::int64_t value) { return std::to_string(value); }

// printf's %g
inline std::string general_text(double value) {
    char buffer[64];
    std::snprintf(buffer, sizeof buffer, "%g", value);
    return buffer;
}

// (1, 2, 3)
template <typename Values>
std::string tuple_text(const Values& values) {
    std::string out = "(";
    std::size_t n = 0;
    for (const auto& value : values) out += (n++ ? ", " : "") + number_text(value);
    return out + (n == 1 ? ",)" : ")");
}

template <typename Texts>
std::string joined(const Texts& texts, const std::string& between) {
    std::string out;
    std::size_t n = 0;
    for (const auto& text : texts) out += (n++ ? between : std::string()) + text;
    return out;
}

}  // namespace segship
