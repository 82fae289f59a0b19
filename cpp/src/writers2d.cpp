#include "writers2d.hpp"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <type_traits>
#include <utility>

#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>  // names of its options
#include <zlib.h>

#include "codecs.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "npy.hpp"

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
        done = codecs::imencode(".png", image, out, {cv::IMWRITE_PNG_COMPRESSION, 1});
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
    write_bytes(path, encode_palette_png(eight_bits(found.labels()), colors_of(found.recipe)));
    return {path};
}

std::vector<std::string> save_classes(const Prediction2d& found, const std::string& path) {
    std::vector<std::string> written;
    const auto& masks = found.masks();
    for (std::size_t k = 0; k < masks.shape[0]; ++k) {
        written.push_back(class_path(path, k));
        write_bytes(written.back(), encode_png(black_and_white(masks.at(k), masks.shape[1], masks.shape[2])));
    }
    return written;
}

std::string lowered(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return text;
}

}  // namespace

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
