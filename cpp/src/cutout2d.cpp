#include "cutout2d.hpp"

#include <algorithm>
#include <cctype>
#include <type_traits>
#include <utility>

#include "errors.hpp"
#include "matting2d.hpp"
#include "postprocess2d.hpp"
#include "writers2d.hpp"

namespace segship {
namespace {

using Grey = Array<std::uint8_t>;

std::string lowered(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

Levels label_pixels(const Array<std::uint16_t>& labels, bool wide) {
    if (wide) return labels;
    return eight_bits(labels);
}

// How much each pixel belongs to an object.
Grey foreground(const Prediction2d& found, const OutputOptions& options) {
    const Size size = found.size();
    if (found.rule() == "saliency" && !options.has_threshold()) return levels_of(found.saliency());
    if (found.rule() == "threshold") {
        const auto& masks = found.masks();
        const std::vector<bool> shown = found.foreground_classes();
        Grey any(Shape{size.height, size.width});
        for (std::size_t k = 0; k < masks.shape[0]; ++k) {
            for (std::size_t i = 0; shown[k] && i < any.size(); ++i) any.data[i] |= masks.at(k)[i];
        }
        return black_and_white(any.data.data(), size.height, size.width);
    }
    Grey plane(Shape{size.height, size.width});
    const auto& labels = found.labels();
    std::transform(labels.data.begin(), labels.data.end(), plane.data.begin(),
                   [](std::uint16_t label) { return label != 0 ? 255 : 0; });
    return options.clean_mask && found.rule() != "saliency" ? smooth_mask(plane, CLEANING_SIGMA) : plane;
}

const Grey& picture_of(const Prediction2d& found) {
    if (found.colors.size() == 0) throw UsageError("the picture was not kept; read it with its colours for this kind of output");
    return found.colors;
}

// One plane, or three equal ones where that is asked for.
template <typename T>
Levels planes_of(const Array<T>& plane, const OutputOptions& options) {
    if (!options.rgb_mask) return plane;
    if constexpr (std::is_same_v<T, std::uint8_t>) {
        Grey three(Shape{plane.shape[0], plane.shape[1], 3});
        for (std::size_t i = 0; i < three.size(); ++i) three.data[i] = plane.data[i / 3];
        return three;
    }
    throw UsageError("three equal planes hold 8 bits; this package's ids take 16, leave out rgb_mask");
}

Rendered mask_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const Size size = found.size();
    if (found.rule() == "saliency") {
        out.pixels = foreground(found, options);
    } else if (found.rule() == "threshold" && found.classes().size() == 1) {
        out.pixels = black_and_white(found.masks().data.data(), size.height, size.width);
    } else {
        out.pixels = label_pixels(found.labels(), wide_ids(found.recipe));
    }
    out.pixels = std::visit([&](auto& plane) { return planes_of(plane, options); }, out.pixels);
    return out;
}

// Exclusive classes as the data set's own numbers, or in their colours.
Rendered label_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const std::map<int, Color> colors = colors_of(found.recipe);
    if (options.kind == "color") {
        out.pixels = colored(found.labels(), colors);
        return out;
    }
    std::map<int, int> numbers;
    bool wide = false;
    for (const Json& label : field<Json>(found.recipe, "labels")) {
        const int id = field<int>(label, "id");
        numbers[id] = field_or<int>(label, "file_value", id);
        wide = wide || numbers[id] > 255;
        if (options.kind == "cityscapes") out.palette[numbers[id]] = colors.at(id);
    }
    out.pixels = label_pixels(renumbered(found.labels(), numbers), wide);
    return out;
}

Rendered overlay_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const Grey& picture = picture_of(found);
    const std::map<int, Color> colors = colors_of(found.recipe);
    const std::vector<Json> classes = found.classes();
    if (found.rule() == "saliency") {
        out.pixels = draw_heat(picture, foreground(found, options), colors.at(field<int>(classes.at(0), "id")));
        return out;
    }
    if (!has_background(found.recipe)) {
        out.pixels = blend_labels(picture, found.labels(), colors);
        return out;
    }
    const std::vector<bool> shown = found.foreground_classes();
    const auto& masks = found.masks();
    Grey chosen(Shape{0, masks.shape[1], masks.shape[2]});
    std::vector<Color> own;
    for (std::size_t k = 0; k < masks.shape[0]; ++k) {
        if (!shown[k]) continue;
        chosen.data.insert(chosen.data.end(), masks.at(k), masks.at(k) + masks.stride(0));
        ++chosen.shape[0];
        own.push_back(colors.at(field<int>(classes[k], "id")));
    }
    out.pixels = draw_overlay(picture, chosen, own);
    return out;
}

// RGBA and what to say about it; empty where no matting is possible.
std::pair<Grey, std::string> matted(const Grey& rgb, const Grey& plane, const OutputOptions& options) {
    const Grey known = trimap(plane, options.foreground_threshold, options.background_threshold, options.erode);
    try {
        Grey cut = options.kind == "mask" ? Grey{} : estimate_cutout(rgb, known);
        if (options.kind == "mask") {
            const Array<double> alpha = estimate_alpha(rgb, known);
            Grey levels(plane.shape);
            std::transform(alpha.data.begin(), alpha.data.end(), levels.data.begin(),
                           [](double value) { return static_cast<std::uint8_t>(value * 255); });
            cut = put_alpha(rgb, levels);
        }
        const bool reduced = known.size() > MATTING_MAX_PIXELS;
        return {std::move(cut), reduced ? "alpha was estimated at 4 megapixels and enlarged" : ""};
    } catch (const MattingFailed& error) {
        return {Grey{}, std::string("no matting: ") + error.what() + "; the mask itself was used"};
    }
}

Grey plain_cutout(const Prediction2d& found, const Grey& plane, const OutputOptions& options) {
    const Grey& picture = picture_of(found);
    if (options.cutout_style == "straight") return put_alpha(picture, plane);
    const Grey full(plane.shape, 255);
    return premultiplied(put_alpha(picture, found.alpha.size() == plane.size() ? found.alpha : full), plane);
}

Grey alpha_of(const Grey& rgba) {
    Grey out(Shape{rgba.shape[0], rgba.shape[1]});
    for (std::size_t i = 0; i < out.size(); ++i) out.data[i] = rgba.data[4 * i + 3];
    return out;
}

Rendered object_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const Grey plane = foreground(found, options);
    Grey cut;
    if (options.estimates_alpha()) {
        auto [pixels, said] = matted(picture_of(found), plane, options);
        cut = std::move(pixels);
        if (!said.empty()) out.notes.push_back(said);
    }
    if (options.kind == "mask") {
        out.pixels = planes_of(cut.size() == 0 ? plane : alpha_of(cut), options);
        return out;
    }
    if (cut.size() == 0) cut = plain_cutout(found, plane, options);
    if (options.kind == "composite") {
        cut = over(cut, options);
        const bool opaque = options.background_picture.size() != 0 || options.background[3] == 255;
        if (opaque && options.cutout_style == "straight") cut = without_alpha(cut);
    }
    out.pixels = std::move(cut);
    return out;
}

Rendered draw(const Prediction2d& found, const OutputOptions& options) {
    if (options.is_label_kind()) return label_picture(found, options);
    if (options.kind == "mask" && !options.estimates_alpha()) return mask_picture(found, options);
    // cutouts lie on the picture's own grid
    if (found.grid != "input") return draw(found.on_grid("input"), options);
    return options.kind == "overlay" ? overlay_picture(found, options) : object_picture(found, options);
}

void require_labels(const Json& manifest, const OutputOptions& options, const Json& decision) {
    const bool undecided = field<std::string>(decision, "rule") == "saliency" &&
                           (!decision.contains("threshold") || decision.at("threshold").is_null());
    if (undecided && !options.has_threshold()) {
        throw UsageError(options.kind +
                         " is made of classes and this package gives maps of grey; give a threshold, 0.5 for example");
    }
    if (options.clean_mask || options.matting || options.rgb_mask) {
        throw UsageError("clean_mask, matting and rgb_mask are for masks, not for " + options.kind + "; leave them out");
    }
    const Json labels = field<Json>(manifest, "labels");
    const bool known = std::any_of(labels.begin(), labels.end(), [](const Json& label) {
        return label.contains("file_value") && !label.at("file_value").is_null();
    });
    if (options.kind == "cityscapes" && !known) {
        throw UsageError("package '" + field<std::string>(manifest, "name") +
                         "' does not know the label ids of Cityscapes (labels.file_value in its manifest); take ids or color, "
                         "or export it again from a network with Cityscapes' classes");
    }
}

}  // namespace

Bytes Rendered::encode() const {
    if (!palette.empty()) {
        const auto* ids = std::get_if<Grey>(&pixels);
        if (ids == nullptr) throw OutputError("a palette PNG holds ids up to 255; write without palette (16-bit) instead");
        return encode_palette_png(*ids, palette);
    }
    return std::visit([](const auto& array) { return encode_png(array); }, pixels);
}

std::map<int, Color> colors_of(const Json& recipe) {
    std::map<int, Color> colors;
    for (const Json& label : field<Json>(recipe, "labels")) {
        const auto color = field<std::vector<int>>(label, "color");
        Color& own = colors[field<int>(label, "id")];
        for (std::size_t c = 0; c < 3; ++c) own[c] = static_cast<std::uint8_t>(color.at(c));
    }
    return colors;
}

// Whether ids of this package need 16 bits: then all its label files have them.
bool wide_ids(const Json& recipe) {
    const Json labels = field<Json>(recipe, "labels");
    return std::any_of(labels.begin(), labels.end(), [](const Json& label) { return field<int>(label, "id") > 255; });
}

Grey eight_bits(const Array<std::uint16_t>& labels) {
    Grey out(labels.shape);
    std::transform(labels.data.begin(), labels.data.end(), out.data.begin(),
                   [](std::uint16_t value) { return static_cast<std::uint8_t>(value); });
    return out;
}

Grey black_and_white(const std::uint8_t* mask, std::size_t height, std::size_t width) {
    Grey out(Shape{height, width});
    std::transform(mask, mask + out.size(), out.data.begin(), [](std::uint8_t value) { return value != 0 ? 255 : 0; });
    return out;
}

bool has_background(const Json& recipe) {
    if (field<std::string>(field<Json>(field<Json>(recipe, "decode"), "decision"), "rule") != "argmax") return true;
    static const std::vector<std::string> NAMES{"background", "_background_", "bg",    "unlabeled",
                                                "void",       "ignore",       "other", "nothing"};
    for (const Json& label : field<Json>(recipe, "labels")) {
        if (field<int>(label, "id") != 0) continue;
        return std::find(NAMES.begin(), NAMES.end(), lowered(field<std::string>(label, "name"))) != NAMES.end();
    }
    return false;
}

void check_output(const Json& manifest, const OutputOptions& options) {
    check_options(options);
    const Json decision = field<Json>(field<Json>(manifest, "decode"), "decision");
    const auto rule = field<std::string>(decision, "rule");
    if (options.has_threshold() && rule == "argmax") {
        throw UsageError("threshold needs independent classes or a map; this package gives one class a pixel");
    }
    const bool single = rule == "saliency" || rule == "threshold";
    if ((options.kind == "mask" || options.kind == "overlay") && options.clean_mask && !single) {
        throw UsageError(
            "clean_mask smooths single masks; this package gives one map of labels (a cutout can be cleaned)");
    }
    if (options.is_label_kind()) require_labels(manifest, options, decision);
    const bool objects = options.kind == "cutout" || options.kind == "composite" ||
                         (options.kind == "mask" && options.estimates_alpha());
    if (objects && !has_background(manifest)) {
        std::string names;
        const Json labels = field<Json>(manifest, "labels");
        for (std::size_t i = 0; i < std::min<std::size_t>(labels.size(), 3); ++i) {
            names += (i > 0 ? ", " : "") + field<std::string>(labels[i], "name");
        }
        throw UsageError("package '" + field<std::string>(manifest, "name") + "' gives every pixel a class (" + names +
                         " …) and none is the background, so there is nothing to cut out; take the mask");
    }
}

Rendered render(const Prediction2d& found, const OutputOptions& options) {
    check_output(found.recipe, options);
    return options.has_threshold() || options.clean_mask ? draw(found.decided(options), options) : draw(found, options);
}

}  // namespace segship
