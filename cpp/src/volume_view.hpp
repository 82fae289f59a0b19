#pragma once
// Three axes seen in another order or direction, and what reading and writing of volumes share.

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <string>
#include <vector>

#include "volume.hpp"

namespace segship {

inline std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

inline bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Of a grid that came without directions: ITK's identity, x to the left and y to the back.
inline Affine plain_affine(const std::vector<double>& zooms) {
    Affine out{};
    out[0][0] = -zooms[0];
    out[1][1] = -zooms[1];
    out[2][2] = zooms.size() > 2 ? zooms[2] : 1;
    out[3][3] = 1;
    return out;
}

// A view of three axes: where it begins, and how far one step along each axis goes.
template <typename T>
struct View {
    const T* first;
    std::array<std::ptrdiff_t, 3> step;
    Shape3 shape;
};

template <typename T>
View<T> flipped_order(const View<T>& view) {
    return {view.first, {view.step[2], view.step[1], view.step[0]}, {view.shape[2], view.shape[1], view.shape[0]}};
}

template <typename T>
View<T> turned_view(View<T> view, const Orientation& turn) {
    View<T> out = view;
    for (std::size_t axis = 0; axis < 3; ++axis) {
        if (turn[axis].flip == -1) {
            view.first += static_cast<std::ptrdiff_t>(view.shape[axis] - 1) * view.step[axis];
            view.step[axis] = -view.step[axis];
        }
        out.step[turn[axis].axis] = view.step[axis];
        out.shape[turn[axis].axis] = view.shape[axis];
    }
    out.first = view.first;
    return out;
}

template <typename T>
View<T> view_of(const T* data, const Shape3& shape) {
    const auto plane = static_cast<std::ptrdiff_t>(shape[1] * shape[2]), row = static_cast<std::ptrdiff_t>(shape[2]);
    return {data, {plane, row, 1}, shape};
}

template <typename T>
void copy_view(const View<T>& view, T* into) {
    for (std::size_t a = 0; a < view.shape[0]; ++a) {
        for (std::size_t b = 0; b < view.shape[1]; ++b) {
            const T* from = view.first + static_cast<std::ptrdiff_t>(a) * view.step[0] + static_cast<std::ptrdiff_t>(b) * view.step[1];
            for (std::size_t c = 0; c < view.shape[2]; ++c, from += view.step[2]) *into++ = *from;
        }
    }
}

}  // namespace segship
