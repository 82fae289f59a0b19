#pragma once
// Arrays in C order: what every step takes and gives.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "segship/errors.hpp"

namespace segship {

using Shape = std::vector<std::size_t>;

// How many values a shape holds. SegshipError where that is beyond any memory: sizes come from manifests and files, and
// a product that wraps around would make a small array of a large shape.
inline std::size_t elements(const Shape& shape) {
    std::size_t count = 1;
    for (const std::size_t side : shape) {
        if (__builtin_mul_overflow(count, side, &count) || count > (std::size_t{1} << 46)) {
            throw SegshipError("an array would be larger than any memory; the file or the package is damaged");
        }
    }
    return count;
}

// A dense array that owns its values; the last axis is the fastest.
template <typename T>
struct Array {
    using value_type = T;
    Shape shape;
    std::vector<T> data;

    Array() = default;
    explicit Array(Shape axes, T value = T{}) : shape(std::move(axes)), data(elements(shape), value) {}
    Array(Shape axes, std::vector<T> values) : shape(std::move(axes)), data(std::move(values)) {}

    std::size_t size() const { return data.size(); }
    std::size_t rank() const { return shape.size(); }
    // How many values one step along `axis` passes over.
    std::size_t stride(std::size_t axis) const {
        std::size_t step = 1;
        for (std::size_t i = axis + 1; i < shape.size(); ++i) step *= shape[i];
        return step;
    }
    T* at(std::size_t first) { return data.data() + first * stride(0); }
    const T* at(std::size_t first) const { return data.data() + first * stride(0); }
};

// An array and the name it has among a prediction's stages ("read", "preprocessed", "network", "decoded", ...).
struct Stage {
    std::string name;
    Array<float> values;
};

// One network, opened: a batch (n, c, [d,] h, w) in, the graph's outputs out, in the graph's order.
using NetworkRun = std::function<std::vector<Array<float>>(const Array<float>&)>;

}  // namespace segship
