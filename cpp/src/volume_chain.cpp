#include "volume_chain.hpp"

#include <algorithm>
#include <cmath>

#include "errors.hpp"
#include "volume_grid.hpp"
#include "volume_text.hpp"
#include "volume_values.hpp"

namespace segship {
namespace {

struct State {
    Array<float> x;
    Spacing spacing{};
    VolumeMask mask;                     // the hole-filled non-zero mask on the current grid; empty before a crop makes it
    Array<std::int32_t> previous;        // the previous stage's labels on the current grid; -1 outside the mask
    const Json* cascade = nullptr;       // the step that appends them
    bool masked = false;                 // does any step need the mask?
    std::vector<Moved> moved;

    Shape3 shape() const { return last_three(x.shape); }
    bool has_previous() const { return !previous.data.empty(); }
};

VolumeMask as_mask(const Array<std::uint8_t>& array) { return array.data; }

Array<std::uint8_t> as_array(const VolumeMask& mask, const Shape3& shape) { return Array<std::uint8_t>(as_shape(shape), mask); }

// ------------------------------------------------------------------------------------------------------ checks

std::vector<std::string> channel_names(const Json& manifest) {
    std::vector<std::string> out;
    for (const auto& channel : manifest.at("input").at("channels")) out.push_back(field<std::string>(channel, "name"));
    return out;
}

void check_values(const Volume& volume, const Json& steps) {
    if (!std::all_of(volume.spacing.begin(), volume.spacing.end(), [](double s) { return std::isfinite(s) && s > 0; })) {
        throw InputError(volume.name + " has the spacing " + tuple_text(volume.spacing) +
                         "; it must be positive, correct the file's header");
    }
    for (const auto& step : steps) {
        if (field<std::string>(step, "step") == "replace_non_finite") return;
    }
    std::size_t bad = 0, first = 0;
    for (std::size_t i = 0; i < volume.channels.size(); ++i) {
        if (std::isfinite(volume.channels.data[i])) continue;
        if (bad++ == 0) first = i;
    }
    if (bad == 0) return;
    std::vector<std::size_t> where(4);
    for (std::size_t axis = 4; axis-- > 0;) {
        where[axis] = first % volume.channels.shape[axis];
        first /= volume.channels.shape[axis];
    }
    throw InputError(volume.name + " holds " + std::to_string(bad) + " NaN or infinite values, the first at (channel, z, y, x) = " +
                     tuple_text(where) + "; replace them first");
}

void check_volume(const Volume& volume, const Json& manifest) {
    if (volume.channels.rank() != 4 || volume.channels.size() == 0) {
        throw InputError(volume.name + " has shape " + tuple_text(volume.channels.shape) + "; give (channels, z, y, x) with some extent");
    }
    const auto names = channel_names(manifest);
    if (volume.channels.shape[0] != names.size()) {
        throw InputError(volume.name + " has " + std::to_string(volume.channels.shape[0]) + " channel(s), the network takes " +
                         std::to_string(names.size()) + ": " + joined(names, ", "));
    }
    check_values(volume, manifest.at("preprocess"));
}

void check_channels(std::size_t found, const Json& manifest, const std::string& name) {
    const auto wanted = field<std::size_t>(manifest.at("network"), "input_channels");
    if (found != wanted) {
        throw InputError(name + " gives " + std::to_string(found) + " channel(s), the network takes " + std::to_string(wanted));
    }
}

bool needs_mask(const Json& steps) {
    return std::any_of(steps.begin(), steps.end(), [](const Json& step) {
        const auto name = field<std::string>(step, "step");
        if (name == "previous_stage_channels") return true;
        return name == "zscore" && (field<std::string>(step, "mask") == "nonzero" ||
                                    field_or<std::string>(step, "outside_mask", "keep") == "zero");
    });
}

// ------------------------------------------------------------------------------------------------------- steps

void transpose(State& state, const Json& step) {
    const auto given = field<std::vector<std::size_t>>(step, "axes");
    std::array<std::size_t, 3> axes{};
    auto sorted = given;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != std::vector<std::size_t>{0, 1, 2}) throw PackageError("step 'transpose' does not name three axes; export again");
    std::copy(given.begin(), given.end(), axes.begin());
    Moved moved;
    moved.kind = Moved::Kind::transpose;
    moved.before = state.shape();
    moved.before_spacing = state.spacing;
    moved.axes = axes;
    if (axes != std::array<std::size_t, 3>{0, 1, 2}) {
        if (!state.mask.empty()) state.mask = as_mask(transposed(as_array(state.mask, state.shape()), axes));
        if (state.has_previous()) state.previous = transposed(state.previous, axes);
        state.x = transposed(state.x, axes);
        state.spacing = {moved.before_spacing[axes[0]], moved.before_spacing[axes[1]], moved.before_spacing[axes[2]]};
    }
    moved.after = state.shape();
    moved.after_spacing = state.spacing;
    state.moved.push_back(moved);
}

struct Bounds {
    Shape3 low, size;
};

// Of what is not zero; an empty case stays whole.
Bounds bounds_of(const VolumeMask& present, const Shape3& shape) {
    Shape3 low = shape, high{0, 0, 0};
    std::size_t at = 0;
    for (std::size_t z = 0; z < shape[0]; ++z) {
        for (std::size_t y = 0; y < shape[1]; ++y, at += shape[2]) {
            const std::uint8_t *row = present.data() + at, *end = row + shape[2];
            const std::uint8_t* first = std::find(row, end, 1);
            if (first == end) continue;
            const std::uint8_t* last = end;
            while (*(last - 1) == 0) --last;
            low = {std::min(low[0], z), std::min(low[1], y), std::min(low[2], static_cast<std::size_t>(first - row))};
            high = {std::max(high[0], z + 1), std::max(high[1], y + 1), std::max(high[2], static_cast<std::size_t>(last - row))};
        }
    }
    if (high[0] == 0) return {{0, 0, 0}, shape};
    return {low, {high[0] - low[0], high[1] - low[1], high[2] - low[2]}};
}

void crop(State& state, const Json& step) {
    const Shape3 shape = state.shape();
    VolumeMask present(count(shape), 0);
    for (std::size_t c = 0; c < state.x.shape[0]; ++c) {
        const float* values = state.x.at(c);
        for (std::size_t i = 0; i < present.size(); ++i) present[i] = present[i] | (values[i] != 0);
    }
    const Bounds box = bounds_of(present, shape);
    if (state.masked) {
        if (field<bool>(step, "fill_holes")) present = fill_holes(present, shape);
        state.mask = as_mask(boxed(as_array(present, shape), box.low, box.size));
    }
    VolumeMask().swap(present);
    if (state.has_previous() && state.cascade && field<bool>(*state.cascade, "crop")) {
        state.previous = boxed(state.previous, box.low, box.size);
        for (std::size_t i = 0; i < state.mask.size(); ++i) {
            if (state.previous.data[i] == 0 && !state.mask[i]) state.previous.data[i] = -1;
        }
    }
    Moved moved;
    moved.kind = Moved::Kind::crop;
    moved.before = shape;
    moved.after = box.size;
    moved.before_spacing = moved.after_spacing = state.spacing;
    moved.start = box.low;
    if (box.size != shape) state.x = boxed(state.x, box.low, box.size);
    state.moved.push_back(moved);
}

Shape3 resampled_shape(const Shape3& shape, const Spacing& before, const Spacing& after, const std::string& rule) {
    Shape3 out{};
    for (std::size_t i = 0; i < 3; ++i) {
        const double exact = before[i] / after[i] * static_cast<double>(shape[i]);
        const double side = rule == "round-half-even" ? std::nearbyint(exact) : std::max(1.0, std::trunc(exact));
        if (!(side >= 1)) {
            throw InputError("a case of " + tuple_text(shape) + " voxels at " + tuple_text(before) + " mm has no voxel left at " +
                             tuple_text(after) + " mm; check the file's spacing");
        }
        if (side > 1e9) throw InputError("a case at " + tuple_text(before) + " mm becomes too large; check the file's spacing");
        out[i] = static_cast<std::size_t>(side);
    }
    return out;
}

Rule rule_of(const Json& step) {
    Rule out;
    const auto method = field<std::string>(step, "method");
    out.anisotropy_threshold = field<double>(step, "anisotropy_threshold");
    if (method == "torch:nearest") {
        out.order = 0;
        return out;
    }
    out.kind = resample_kind(method, "method");
    out.order = field<int>(step, "order");
    out.separate_z = field<std::string>(step, "separate_z");
    return out;
}

void resample_step(State& state, const Json& step) {
    Spacing target = state.spacing;
    const Json& wanted = step.at("spacing_mm_zyx");
    for (std::size_t i = 0; i < 3; ++i) {
        if (!wanted.at(i).is_null()) target[i] = wanted.at(i).get<double>();
    }
    Moved moved;
    moved.kind = Moved::Kind::resample;
    moved.before = state.shape();
    moved.before_spacing = state.spacing;
    moved.after = resampled_shape(moved.before, state.spacing, target, field<std::string>(step, "shape_rule"));
    moved.after_spacing = target;
    if (moved.after != moved.before) {
        const Rule rule = rule_of(step);
        Rule linear = rule;
        linear.order = 1;
        if (!state.mask.empty()) {
            const Array<float> share =
                resample(Array<float>(as_shape(1, moved.before), std::vector<float>(state.mask.begin(), state.mask.end())), moved.after,
                         linear, state.spacing, target);
            state.mask.assign(share.size(), 0);
            for (std::size_t i = 0; i < share.size(); ++i) state.mask[i] = share.data[i] >= 0.5F;
        }
        if (state.has_previous()) {
            const bool half = state.cascade && field_or<std::string>(*state.cascade, "resampling", "largest") == "half";
            state.previous = resample_labels(state.previous, moved.after, linear, state.spacing, target, half);
        }
        state.x = resample(std::move(state.x), moved.after, rule, state.spacing, target);
    }
    state.spacing = target;
    state.moved.push_back(moved);
}

void pad(State& state, const Json& step) {
    const Shape3 have = state.shape();
    std::vector<std::size_t> least{1, 1, 1};
    if (step.contains("minimum") && !step.at("minimum").is_null()) least = field<std::vector<std::size_t>>(step, "minimum");
    if (least.size() != 3) throw PackageError("step 'pad' does not name three sides; export the package again");
    const auto multiple = std::max<std::size_t>(1, field_or<std::size_t>(step, "multiple_of", 1));
    const bool both = field<std::string>(step, "where") == "both";
    Shape3 target{}, first{};
    for (std::size_t i = 0; i < 3; ++i) {
        target[i] = (std::max(have[i], least[i]) + multiple - 1) / multiple * multiple;
        first[i] = both ? (target[i] - have[i]) / 2 : 0;
    }
    if (target == have) return;
    const auto mode = field<std::string>(step, "mode");
    if (!state.mask.empty()) state.mask = as_mask(padded<std::uint8_t>(as_array(state.mask, have), first, target, "constant", 0));
    if (state.has_previous()) state.previous = padded<std::int32_t>(state.previous, first, target, "constant", 0);
    state.x = padded(state.x, first, target, mode, static_cast<float>(field_or<double>(step, "value", 0)));
    Moved moved;
    moved.kind = Moved::Kind::pad;
    moved.before = have;
    moved.after = target;
    moved.before_spacing = moved.after_spacing = state.spacing;
    moved.start = first;
    state.moved.push_back(moved);
}

void append_previous(State& state, const Json& step) {
    if (last_three(state.previous.shape) != state.shape()) {
        throw PackageError("step 'previous_stage_channels' without a crop needs a resampling before it; export again");
    }
    const auto labels = field<std::vector<std::int32_t>>(step, "labels");
    state.x.data.reserve(state.x.size() + labels.size() * state.previous.size());
    for (const std::int32_t label : labels) {
        for (const std::int32_t value : state.previous.data) state.x.data.push_back(value == label ? 1.0F : 0.0F);
        ++state.x.shape[0];
    }
}

void run(State& state, const Json& step) {
    const auto name = field<std::string>(step, "step");
    if (name == "transpose") return transpose(state, step);
    if (name == "crop_to_nonzero") return crop(state, step);
    if (name == "resample") return resample_step(state, step);
    if (name == "pad") return pad(state, step);
    if (name == "previous_stage_channels") return append_previous(state, step);
    if (name == "resize" || name == "resize_keep_ratio") {
        throw PackageError("step '" + name + "' is for pictures; this package applies it to a volume");
    }
    apply_value_step(state.x, step, state.mask.empty() ? nullptr : &state.mask);
}

Array<std::int32_t> previous_labels(const Volume& volume, const LabelMap* previous, bool wanted) {
    if (wanted && previous == nullptr) {
        throw InputError(volume.name + ": this network needs the labels of its previous stage; give the package of that stage or "
                                       "--prev-stage-predictions");
    }
    if (previous == nullptr) return {};
    if (previous->rank() != 3 || last_three(previous->shape) != volume.shape()) {
        throw InputError(volume.name + ": the previous stage's labels are " + tuple_text(previous->shape) + ", the case " +
                         tuple_text(volume.shape()));
    }
    if (!wanted) return {};
    return Array<std::int32_t>(previous->shape, {previous->data.begin(), previous->data.end()});
}

}  // namespace

Rule::Kind resample_kind(const std::string& method, const std::string& what) {
    if (method == "skimage:edge") return Rule::Kind::spline;
    if (method == "torch:trilinear") return Rule::Kind::torch;
    if (method == "torch:trilinear-align-corners") return Rule::Kind::torch_align_corners;
    throw PackageError(what + " '" + method + "' is for pictures; this package takes volumes");
}

PreparedVolume prepare_volume(Volume& volume, const Json& manifest, const LabelMap* previous) {
    check_volume(volume, manifest);
    PreparedVolume out;
    out.frame.name = volume.name;
    out.frame.shape = volume.shape();
    out.frame.spacing = volume.spacing;
    State state;
    state.spacing = volume.spacing;
    if (!volume.prepared) {
        const Json& steps = manifest.at("preprocess");
        for (const auto& step : steps) {
            if (!state.cascade && field<std::string>(step, "step") == "previous_stage_channels") state.cascade = &step;
        }
        state.previous = previous_labels(volume, previous, state.cascade != nullptr);
        state.masked = needs_mask(steps);
        state.x = std::move(volume.channels);
        for (const auto& step : steps) run(state, step);
    } else {
        state.x = std::move(volume.channels);
    }
    check_channels(state.x.shape[0], manifest, volume.name);
    out.x = std::move(state.x);
    out.spacing = state.spacing;
    out.frame.moved = std::move(state.moved);
    return out;
}

}  // namespace segship
