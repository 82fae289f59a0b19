#include "volume_grid.hpp"

namespace segship {
namespace {

// Floods what is not mask, a row's run at a time, so that little has to wait.
class Flood {
public:
    Flood(const std::vector<std::uint8_t>& mask, const Shape3& shape) : mask_(mask), shape_(shape), outside_(mask.size(), 0) {}

    void from(std::size_t z, std::size_t y, std::size_t x) {
        seed(z, y, x);
        while (!waiting_.empty()) {
            const Place place = waiting_.back();
            waiting_.pop_back();
            run(place);
        }
    }

    std::vector<std::uint8_t> filled() && {
        for (auto& value : outside_) value = value ? 0 : 1;
        return std::move(outside_);
    }

private:
    struct Place {
        std::size_t z, y, x;
    };

    std::size_t row(std::size_t z, std::size_t y) const { return (z * shape_[1] + y) * shape_[2]; }
    bool open(std::size_t at) const { return !mask_[at] && !outside_[at]; }

    void seed(std::size_t z, std::size_t y, std::size_t x) {
        if (open(row(z, y) + x)) waiting_.push_back({z, y, x});
    }

    void run(const Place& place) {
        const std::size_t start = row(place.z, place.y);
        if (!open(start + place.x)) return;
        std::size_t first = place.x, end = place.x + 1;
        while (first > 0 && open(start + first - 1)) --first;
        while (end < shape_[2] && open(start + end)) ++end;
        std::fill(outside_.begin() + static_cast<std::ptrdiff_t>(start + first), outside_.begin() + static_cast<std::ptrdiff_t>(start + end), 1);
        if (place.z > 0) neighbours(place.z - 1, place.y, first, end);
        if (place.z + 1 < shape_[0]) neighbours(place.z + 1, place.y, first, end);
        if (place.y > 0) neighbours(place.z, place.y - 1, first, end);
        if (place.y + 1 < shape_[1]) neighbours(place.z, place.y + 1, first, end);
    }

    // One seed for each run of another row that touches this one.
    void neighbours(std::size_t z, std::size_t y, std::size_t first, std::size_t end) {
        const std::size_t start = row(z, y);
        for (std::size_t x = first; x < end; ++x) {
            if (open(start + x) && (x == first || !open(start + x - 1))) waiting_.push_back({z, y, x});
        }
    }

    const std::vector<std::uint8_t>& mask_;
    Shape3 shape_;
    std::vector<std::uint8_t> outside_;
    std::vector<Place> waiting_;
};

}  // namespace

std::vector<std::uint8_t> fill_holes(const std::vector<std::uint8_t>& mask, const Shape3& shape) {
    Flood flood(mask, shape);
    for (std::size_t z = 0; z < shape[0]; ++z) {
        for (std::size_t y = 0; y < shape[1]; ++y) {
            const bool face = z == 0 || z + 1 == shape[0] || y == 0 || y + 1 == shape[1];
            const std::size_t step = face || shape[2] < 3 ? 1 : shape[2] - 1;  // of an inner row the two ends alone
            for (std::size_t x = 0; x < shape[2]; x += step) flood.from(z, y, x);
        }
    }
    return std::move(flood).filled();
}

}  // namespace segship
