#include "axis_starts.hpp"

#include <algorithm>
#include <cmath>

namespace segship {

std::size_t stride_of(double step) {
    return std::max<std::size_t>(1, static_cast<std::size_t>(step));
}

std::vector<std::size_t> axis_starts(std::size_t size, std::size_t window, double step, const std::string& positions) {
    if (size <= window) return {0};
    const std::size_t room = size - window;
    std::vector<std::size_t> starts;
    if (positions == "even-spread") {
        const auto count = static_cast<std::size_t>(std::ceil(static_cast<double>(room) / step)) + 1;
        const double apart = static_cast<double>(room) / static_cast<double>(count - 1);
        for (std::size_t i = 0; i < count; ++i) {
            starts.push_back(static_cast<std::size_t>(std::nearbyint(apart * static_cast<double>(i))));
        }
        return starts;
    }
    const std::size_t stride = stride_of(step);
    const std::size_t count = (room + stride - 1) / stride + 1;
    for (std::size_t i = 0; i < count; ++i) starts.push_back(std::min(i * stride, room));
    return starts;
}

}  // namespace segship
