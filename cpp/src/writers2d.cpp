#include "writers2d.hpp"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <filesystem>
#include <type_traits>
#include <utility>

#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <zlib.h>

#include "errors.hpp"
#include "files.hpp"
#include "npy.hpp"
#include "postprocess2d.hpp"

namespace segship {
namespace {

namespace fs = std::filesystem;
using Grey = Array<std::uint8_t>;

template <typename T>
Bytes encode(const Array<T>& pixels) {
    const int channels = pixels.rank() == 3 ? static_cast<int>(pixels.shape[2]) : 1;
    const int depth = std::is_same_v<T, std::uint8_t> ? CV_8U : CV_16U;
    Array<T> turned = pixels;  // OpenCV writes B, G, R
    for (std::size_t i = 0; channels >= 3 && i < turned.size(); i += static_cast<std::size_t>(channels)) {
        std::swap(turned.data[i], turned.data[i + 2]);
    }
    const cv::Mat image(static_cast<int>(pixels.shape[0]), static_cast<int>(pixels.shape[1]), CV_MAKETYPE(depth, channels),
                        turned.data.data());
    Bytes out;
    bool done = false;
    try {
        done = cv::imencode(".png", image, out, {cv::IMWRITE_PNG_COMPRESSION, 1});
    } catch (const cv::Exception&) {
        done = false;
    }
    if (!done) throw OutputError("OpenCV cannot write a picture of this size as PNG; write .npz instead");
    return out;
}

void put_number(Bytes& out, std::uint32_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::uint8_t>(value >> shift));
}

// A PNG's chunk: length, type and content, check sum over the last two.
void put_chunk(Bytes& out, const char* type, const Bytes& content) {
    put_number(out, static_cast<std::uint32_t>(content.size()));
    const std::size_t from = out.size();
    out.insert(out.end(), type, type + 4);
    out.insert(out.end(), content.begin(), content.end());
    put_number(out, static_cast<std::uint32_t>(crc32(0, out.data() + from, static_cast<uInt>(out.size() - from))));
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

Grey narrow(const Array<std::uint16_t>& labels) {
    Grey out(labels.shape);
    std::transform(labels.data.begin(), labels.data.end(), out.data.begin(),
                   [](std::uint16_t value) { return static_cast<std::uint8_t>(value); });
    return out;
}

Grey as_mask(const std::uint8_t* mask, std::size_t height, std::size_t width) {
    Grey out(Shape{height, width});
    std::transform(mask, mask + out.size(), out.data.begin(), [](std::uint8_t value) { return value != 0 ? 255 : 0; });
    return out;
}

Grey levels_of(const SaliencyMap& map) {
    if (const auto* levels = std::get_if<Grey>(&map)) return *levels;
    const auto& values = std::get<Array<float>>(map);
    Grey out(values.shape);
    std::transform(values.data.begin(), values.data.end(), out.data.begin(), [](float value) {
        return static_cast<std::uint8_t>(std::nearbyint(std::min(std::max(value, 0.0F), 1.0F) * 255.0F));
    });
    return out;
}

std::variant<Grey, Array<std::uint16_t>> label_pixels(const Array<std::uint16_t>& labels, bool wide) {
    if (wide) return labels;
    return narrow(labels);
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
        return as_mask(any.data.data(), size.height, size.width);
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

Rendered mask_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const Size size = found.size();
    if (found.rule() == "saliency") {
        out.pixels = foreground(found, options);
    } else if (found.rule() == "threshold" && found.classes().size() == 1) {
        out.pixels = as_mask(found.masks().data.data(), size.height, size.width);
    } else {
        out.pixels = label_pixels(found.labels(), wide_ids(found.recipe));
    }
    if (options.rgb_mask) {
        const auto* plane = std::get_if<Grey>(&out.pixels);
        if (plane == nullptr) {
            throw UsageError("three equal planes hold 8 bits; this package's ids take 16, leave out rgb_mask");
        }
        Grey three(Shape{plane->shape[0], plane->shape[1], 3});
        for (std::size_t i = 0; i < three.size(); ++i) three.data[i] = plane->data[i / 3];
        out.pixels = std::move(three);
    }
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

Rendered object_picture(const Prediction2d& found, const OutputOptions& options) {
    Rendered out;
    out.notes = found.notes();
    const Grey plane = foreground(found, options);
    const Grey& picture = picture_of(found);
    Grey cut = put_alpha(picture, plane);
    if (options.cutout_style == "rembg") {
        const Grey full(plane.shape, 255);
        cut = premultiplied(put_alpha(picture, found.alpha.size() == plane.size() ? found.alpha : full), plane);
    }
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
    if (options.kind == "mask") return mask_picture(found, options);
    // cutouts lie on the picture's own grid
    if (found.grid != "input") return draw(found.on_grid("input"), options);
    return options.kind == "overlay" ? overlay_picture(found, options) : object_picture(found, options);
}

void require_labels(const Json& manifest, const OutputOptions& options, const Json& decision) {
    const bool undecided = field<std::string>(decision, "rule") == "saliency" &&
                           (!decision.contains("threshold") || decision.at("threshold").is_null());
    if (undecided && !options.has_threshold()) {
        throw UsageError(options.kind + " is made of classes and this package gives maps of grey; add --threshold 0.5");
    }
    if (options.clean_mask || options.rgb_mask) {
        throw UsageError("clean_mask and rgb_mask are for masks, not for " + options.kind + "; leave them out");
    }
    const Json labels = field<Json>(manifest, "labels");
    const bool known = std::any_of(labels.begin(), labels.end(), [](const Json& label) {
        return label.contains("file_value") && !label.at("file_value").is_null();
    });
    if (options.kind == "cityscapes" && !known) {
        throw UsageError("package '" + field<std::string>(manifest, "name") +
                         "' does not know the label ids of Cityscapes (labels.file_value in its manifest); take --output ids or "
                         "color, or export it again from a network with Cityscapes' classes");
    }
}

std::vector<std::string> save_npz(const Prediction2d& found, const std::string& path, bool probabilities) {
    Npz file;
    std::vector<std::string> names;
    for (const Json& label : found.classes()) names.push_back(field<std::string>(label, "name"));
    file.add_texts("classes", names);
    if (found.rule() == "saliency") {
        std::visit([&](const auto& map) { file.add("saliency", map); }, found.saliency());
    } else {
        file.add_labels("labels", found.labels(), !wide_ids(found.recipe));
        file.add_bools("masks", found.masks());
    }
    const Array<float> values = probabilities ? found.probabilities() : Array<float>{};
    if (probabilities) file.add("probabilities", values);
    file.save(path);
    return {path};
}

std::vector<std::string> save_palette(const Prediction2d& found, const std::string& path) {
    if (wide_ids(found.recipe)) throw OutputError("a palette PNG holds ids up to 255; write without palette (16-bit) instead");
    write_bytes(path, encode_palette_png(narrow(found.labels()), colors_of(found.recipe)));
    return {path};
}

std::vector<std::string> save_classes(const Prediction2d& found, const std::string& path) {
    std::vector<std::string> written;
    const auto& masks = found.masks();
    for (std::size_t k = 0; k < masks.shape[0]; ++k) {
        written.push_back(class_path(path, k));
        write_bytes(written.back(), encode_png(as_mask(masks.at(k), masks.shape[1], masks.shape[2])));
    }
    return written;
}

std::string lowered(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
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
    if ((options.kind == "cutout" || options.kind == "composite") && !has_background(manifest)) {
        throw UsageError("package '" + field<std::string>(manifest, "name") +
                         "' gives every pixel a class and none is the background, so there is nothing to cut out; take the mask");
    }
}

Rendered render(const Prediction2d& found, const OutputOptions& options) {
    check_output(found.recipe, options);
    return options.has_threshold() || options.clean_mask ? draw(found.decided(options), options) : draw(found, options);
}

std::vector<std::string> save(const Prediction2d& found, const std::string& path, const OutputOptions& options) {
    const std::string suffix = lowered(fs::path(path).extension().string());
    if (suffix != ".png" && suffix != ".npz") {
        throw OutputError(fs::path(path).filename().string() +
                          ": masks are kept as .png or .npz (lossless); choose one of these suffixes");
    }
    const bool plain = options.kind == "mask" && !options.rgb_mask;
    if (!plain && (suffix == ".npz" || options.palette)) {
        throw UsageError("npz and palette are forms of plain masks; leave them out for other kinds of output");
    }
    if (suffix == ".png" && !options.palette && (!plain || found.rule() != "threshold" || found.classes().size() == 1)) {
        write_bytes(path, render(found, options).encode());
        return {path};
    }
    check_output(found.recipe, options);
    const Prediction2d changed = options.has_threshold() || options.clean_mask ? found.decided(options) : Prediction2d{};
    const Prediction2d& chosen = changed.outputs.empty() ? found : changed;
    if (suffix == ".npz") return save_npz(chosen, path, options.probabilities);
    return options.palette ? save_palette(chosen, path) : save_classes(chosen, path);
}

void write_probability_png(const std::string& path, const Array<float>& values) {
    write_bytes(path, encode_png(levels_of(values)));
}

void write_bytes(const std::string& path, const Bytes& data) {
    write_text(path, std::string(data.begin(), data.end()));
}

Bytes encode_png(const Array<std::uint8_t>& pixels) { return encode(pixels); }

Bytes encode_png(const Array<std::uint16_t>& pixels) { return encode(pixels); }

Bytes encode_palette_png(const Array<std::uint8_t>& labels, const std::map<int, Color>& colors) {
    // A grey PNG that says of itself that its numbers stand for colours: signature, IHDR, PLTE, the rest.
    constexpr std::size_t SIGNATURE = 8, HEADER = 13, CHUNK = 12;
    const Bytes grey = encode_png(labels);
    Bytes header(grey.begin() + SIGNATURE + 8, grey.begin() + SIGNATURE + 8 + HEADER);
    header[9] = 3;
    Bytes table(256 * 3, 0);
    for (const auto& [number, color] : colors) {
        if (number < 256) std::copy(color.begin(), color.end(), table.begin() + number * 3);
    }
    Bytes out(grey.begin(), grey.begin() + SIGNATURE);
    put_chunk(out, "IHDR", header);
    put_chunk(out, "PLTE", table);
    out.insert(out.end(), grey.begin() + SIGNATURE + CHUNK + HEADER, grey.end());
    return out;
}

std::string class_path(const std::string& path, std::size_t index) {
    const fs::path whole(path);
    return (whole.parent_path() / std::to_string(index) / whole.filename()).string();
}

}  // namespace segship
