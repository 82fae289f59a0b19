#pragma once
// Arrays in C order: what every step takes and gives.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace segship {

using Shape = std::vector<std::size_t>;

inline std::size_t elements(const Shape& shape) {
    return std::accumulate(shape.begin(), shape.end(), std::size_t{1}, std::multiplies<>());
}

// A dense array that owns its values; the last axis is the fastest.
template <typename T>
struct Array {
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
