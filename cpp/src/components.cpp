#include "components.hpp"

#include <algorithm>
#include <numeric>
#include <vector>

#include "errors.hpp"

namespace segship {
namespace {

// A row's voxels first .. end - 1 that belong together.
struct Span {
    std::size_t first, end;  // flat
};

class Components {
public:
    Components(const std::vector<bool>& wanted, const LabelMap& labels, bool full) : shape_(last_three(labels.shape)), full_(full) {
        for (std::size_t z = 0; z < shape_[0]; ++z) {
            for (std::size_t y = 0; y < shape_[1]; ++y) add_row(wanted, labels, z, y);
        }
        sizes_.assign(spans_.size(), 0);
        for (std::size_t i = 0; i < spans_.size(); ++i) sizes_[root(i)] += spans_[i].end - spans_[i].first;
    }

    // Of what is not the largest and, where a size is given, smaller than that.
    template <typename Drop>
    void drop(const Drop& drop_span, const double* minimum, double voxel) {
        const std::size_t most = sizes_.empty() ? 0 : *std::max_element(sizes_.begin(), sizes_.end());
        for (std::size_t i = 0; i < spans_.size(); ++i) {
            const std::size_t size = sizes_[root(i)];
            if (size < most && (minimum == nullptr || static_cast<double>(size) * voxel < *minimum)) drop_span(spans_[i]);
        }
    }

private:
    void add_row(const std::vector<bool>& wanted, const LabelMap& labels, std::size_t z, std::size_t y) {
        const std::size_t row = z * shape_[1] + y, start = row * shape_[2];
        begins_.push_back(spans_.size());
        for (std::size_t x = 0; x < shape_[2];) {
            if (!wanted[labels.data[start + x]]) {
                ++x;
                continue;
            }
            std::size_t end = x + 1;
            while (end < shape_[2] && wanted[labels.data[start + end]]) ++end;
            spans_.push_back({start + x, start + end});
            parent_.push_back(parent_.size());
            x = end;
        }
        if (y > 0) join(row, row - 1);
        if (z > 0) join(row, row - shape_[1]);
        if (full_ && z > 0 && y > 0) join(row, row - shape_[1] - 1);
        if (full_ && z > 0 && y + 1 < shape_[1]) join(row, row - shape_[1] + 1);
    }

    // Unite spans of two rows that touch: above each other, or also at their corners.
    void join(std::size_t row, std::size_t other) {
        const std::size_t here = row * shape_[2], there = other * shape_[2], more = full_ ? 1 : 0;
        std::size_t a = begins_[row], b = begins_[other];
        const std::size_t a_end = spans_.size(), b_end = begins_[other + 1];
        while (a < a_end && b < b_end) {
            const std::size_t a_first = spans_[a].first - here, a_last = spans_[a].end - here;
            const std::size_t b_first = spans_[b].first - there, b_last = spans_[b].end - there;
            if (a_first < b_last + more && b_first < a_last + more) unite(a, b);
            a_last < b_last ? ++a : ++b;
        }
    }

    std::size_t root(std::size_t i) {
        while (parent_[i] != i) {
            parent_[i] = parent_[parent_[i]];
            i = parent_[i];
        }
        return i;
    }

    void unite(std::size_t a, std::size_t b) {
        a = root(a);
        b = root(b);
        parent_[std::max(a, b)] = std::min(a, b);
    }

    Shape3 shape_;
    bool full_;
    std::vector<Span> spans_;
    std::vector<std::size_t> begins_, parent_, sizes_;
};

}  // namespace

void keep_largest(LabelMap& labels, const Json& rule, double voxel_mm3) {
    const auto named = field<std::vector<std::size_t>>(rule, "labels");
    const bool full = field<std::string>(rule, "connectivity") == "full";
    const bool limited = rule.contains("minimum_mm3") && !rule.at("minimum_mm3").is_null();
    const double minimum = limited ? field<double>(rule, "minimum_mm3") : 0;
    std::vector<std::vector<std::size_t>> groups;
    if (field<bool>(rule, "joint")) {
        groups.push_back(named);
    } else {
        for (const std::size_t label : named) groups.push_back({label});
    }
    for (const auto& group : groups) {  // each label is of one group at most, so dropping does not change what the next sees
        std::vector<bool> wanted(65536, false);
        for (const std::size_t label : group) {
            if (label < wanted.size()) wanted[label] = true;
        }
        Components found(wanted, labels, full);
        found.drop([&](const Span& span) { std::fill(labels.data.begin() + static_cast<std::ptrdiff_t>(span.first),
                                                     labels.data.begin() + static_cast<std::ptrdiff_t>(span.end), std::uint16_t{0}); },
                   limited ? &minimum : nullptr, voxel_mm3);
    }
}

}  // namespace segship
