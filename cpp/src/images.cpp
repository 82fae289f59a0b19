#include "images.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <vector>

#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "codecs.hpp"
#include "containers.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "jpeg_file.hpp"
#include "png_file.hpp"

namespace segship {

namespace {

constexpr const char* NOT_READ = ", which the C++ runner does not read for this network; save it as PNG";

// The manifest's reading rules, looked up once.
struct Rules {
    std::string reader, order;
    std::size_t count;
    bool apply_rotation, grey_expands, keeps_alpha;

    explicit Rules(const Json& spec)
        : reader(field<std::string>(spec, "reader")), order(field<std::string>(spec, "channel_order")),
          count(spec.at("channels").size()), apply_rotation(field<std::string>(spec, "exif_rotation") == "apply"),
          grey_expands(field_or<std::string>(spec, "grey", "expand") == "expand"),
          keeps_alpha(field_or<std::string>(spec, "alpha", "drop") == "keep") {}

    bool eight_bit() const { return reader != "skimage"; }
};

// Decoded pixels: grey, RGB, BGR or RGBA as `order` says.
struct Decoded {
    cv::Mat pixels;
    std::string order = "rgb";
    bool boolean = false;
    bool has_alpha = false;  // the file's own, as the fourth plane
};

void check_pixels(std::size_t height, std::size_t width, const ImageLimits& limits, const std::string& name) {
    std::size_t area = 0;
    if (!__builtin_mul_overflow(height, width, &area) && area <= limits.max_pixels) return;
    throw InputError(name + " has " + with_commas(height) + " x " + with_commas(width) + " pixels, the limit is " +
                     with_commas(limits.max_pixels) + "; cut it into tiles, or raise the limit with --max-pixels");
}

cv::Mat decode_opencv(const std::string& data, int flags, const Container& container, const std::string& name) {
    if (container.format == "WebP" && container.several) {
        throw InputError(name +
                         " is an animated WebP picture, which the C++ runner does not read; save its first frame as PNG");
    }
    cv::Mat pixels;
    try {
        const cv::Mat bytes(1, static_cast<int>(data.size()), CV_8U, const_cast<char*>(data.data()));
        pixels = codecs::imdecode(bytes, flags);
    } catch (const cv::Exception& error) {
        throw InputError(name + ": OpenCV refuses this " + container.format + " (" + error.err +
                         "); its own limits are raised with the environment variables OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and "
                         "_HEIGHT");
    }
    if (pixels.empty()) {
        throw InputError(name + ": OpenCV cannot decode this " + container.format +
                         ": it is damaged, cut short, or of a kind that OpenCV does not know (32-bit samples, a rare "
                         "compression); copy that file again or save it as 8-bit PNG");
    }
    return pixels;
}

// EXIF's eight positions: a transposition first where axes change places, then mirrorings.
cv::Mat turned(const cv::Mat& pixels, int orientation) {
    if (orientation <= 1) return pixels;
    cv::Mat out = pixels;
    if (orientation >= 5) cv::transpose(pixels, out);
    const bool horizontal = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
    const bool vertical = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
    if (!horizontal && !vertical) return out;
    cv::Mat flipped;
    cv::flip(out, flipped, horizontal && vertical ? -1 : horizontal ? 1 : 0);
    return flipped;
}

// OpenCV turns a TIFF upright whatever it is asked.
cv::Mat turned_by_rules(const cv::Mat& pixels, const Container& container, bool apply) {
    if (container.format != "TIFF") return apply ? turned(pixels, container.orientation) : pixels;
    const int back = container.orientation == 6 ? 8 : container.orientation == 8 ? 6 : container.orientation;
    return apply ? pixels : turned(pixels, back);
}

cv::Mat high_bytes(const cv::Mat& wide) {
    cv::Mat narrow(wide.size(), CV_8UC(wide.channels()));
    for (int y = 0; y < wide.rows; ++y) {
        const auto* from = wide.ptr<std::uint16_t>(y);
        auto* to = narrow.ptr<std::uint8_t>(y);
        const int count = wide.cols * wide.channels();
        for (int i = 0; i < count; ++i) to[i] = static_cast<std::uint8_t>(from[i] >> 8);
    }
    return narrow;
}

// As cv2.imdecode gives it: one plane, or three in the order B, G, R.
cv::Mat decode_like_opencv(const std::string& data, bool grey, const Container& container, const std::string& name) {
    if (container.format == "PNG" && grey && container.several) {  // OpenCV takes an animation's first picture in colour
        cv::Mat plane;
        cv::cvtColor(decode_png(data, PngPlanes::bgr, name), plane, cv::COLOR_BGR2GRAY);
        return plane;
    }
    if (container.format == "PNG") return decode_png(data, grey ? PngPlanes::grey : PngPlanes::bgr, name);
    if (container.format == "JPEG" && container.colour != 4) {
        return decode_jpeg(data, grey ? JpegPlanes::grey : JpegPlanes::bgr, name);
    }
    const int flags = (grey ? cv::IMREAD_GRAYSCALE : cv::IMREAD_COLOR) | cv::IMREAD_IGNORE_ORIENTATION;
    return decode_opencv(data, flags, container, name);
}

Decoded by_opencv(const std::string& data, const Rules& rules, const Container& container, const std::string& name) {
    const bool grey = rules.reader == "opencv:grey";
    Decoded found;
    found.pixels = decode_like_opencv(data, grey, container, name);
    if (container.format != "TIFF" && rules.apply_rotation) found.pixels = turned(found.pixels, container.orientation);
    found.order = grey ? "grey" : "bgr";
    return found;
}

// The other formats by OpenCV, in Pillow's order of planes: grey, RGB or RGBA.
cv::Mat decode_like_pillow(const std::string& data, const Container& container, const std::string& name) {
    if (container.format == "PNG") return decode_png(data, PngPlanes::stored, name);
    if (container.format == "JPEG") return decode_jpeg(data, JpegPlanes::rgb, name);
    if (container.misread) {
        const std::string why = container.format == "TIFF" ? "whose planes lie one behind the other" : "with the oldest kind of header";
        throw InputError(name + " is a " + container.format + " " + why + NOT_READ);
    }
    cv::Mat pixels = decode_opencv(data, cv::IMREAD_UNCHANGED, container, name);
    if (pixels.depth() == CV_64F) pixels.convertTo(pixels, CV_32F);
    if (pixels.depth() != CV_8U && pixels.depth() != CV_16U && pixels.depth() != CV_32F) {
        throw InputError(name + " holds signed or 32-bit whole numbers, which are not read here; save it with 8 or 16 bits");
    }
    if (pixels.channels() > 1 && pixels.depth() == CV_16U) pixels = high_bytes(pixels);
    if (pixels.channels() == 2 || pixels.channels() > 4) {
        throw InputError(name + " has " + std::to_string(pixels.channels()) + " planes; give grey, RGB or RGBA");
    }
    if (container.palette && pixels.channels() == 1) cv::cvtColor(pixels, pixels, cv::COLOR_GRAY2BGR);
    if (pixels.channels() == 3) cv::cvtColor(pixels, pixels, cv::COLOR_BGR2RGB);
    if (pixels.channels() == 4) cv::cvtColor(pixels, pixels, cv::COLOR_BGRA2RGBA);
    return pixels;
}

// InputError for TIFFs that OpenCV decodes to other values than Pillow: colours multiplied by alpha by one of both, other
// colour spaces.
void refuse_other_values(const Container& container, const std::string& name) {
    if (container.format != "TIFF") return;
    const bool plain = container.extra == 2 || container.extra == 999;  // Corel Draw's number
    const bool alpha = container.colour == 4 && (container.extra == 1 || (container.bits == 8 && plain));
    const bool space = container.photometric == 5 || container.photometric >= 8 ||
                       (container.photometric == 6 && container.compression == 1);
    if (!alpha && !space) return;
    throw InputError(name + " is a TIFF with " + (alpha ? "alpha beside its colours" : "colours other than RGB") + NOT_READ);
}

// The file as it is, in Pillow's terms: bit depth kept where grey, 8 bits where coloured.
Decoded by_pillow(const std::string& data, const Container& container, bool apply_rotation, const std::string& name) {
    refuse_other_values(container, name);
    Decoded found;
    found.pixels = turned_by_rules(decode_like_pillow(data, container, name), container, apply_rotation);
    found.has_alpha = found.pixels.channels() == 4;
    if (found.has_alpha && container.spare) {
        cv::cvtColor(found.pixels, found.pixels, cv::COLOR_RGBA2RGB);
        found.has_alpha = false;
    }
    found.boolean = container.bits == 1 && found.pixels.channels() == 1 && !container.palette;
    if (found.boolean) found.pixels = (found.pixels != 0) / 255;
    return found;
}

// Alpha is kept only where the rules say so.
void drop_alpha(Decoded& found, const Rules& rules) {
    if (!found.has_alpha || (rules.reader == "skimage" && rules.keeps_alpha)) return;
    cv::cvtColor(found.pixels, found.pixels, cv::COLOR_RGBA2RGB);
}

// uint8 of uint16 (its high byte) or of 0/1; InputError for floats.
void to_8_bit(Decoded& found, const std::string& name) {
    if (found.boolean) {
        found.pixels = found.pixels * 255;
        found.boolean = false;
    }
    if (found.pixels.depth() == CV_16U) found.pixels = high_bytes(found.pixels);
    if (found.pixels.depth() == CV_8U) return;
    throw InputError(name + " holds float32 pixels but this network reads 8-bit pictures; give uint8 0..255, for values of "
                            "0..1: (x * 255).round().astype(numpy.uint8)");
}

// Channels as the manifest takes them.
void to_order(Decoded& found, const Rules& rules, const std::string& name) {
    cv::Mat& pixels = found.pixels;
    const int channels = pixels.channels();
    if (rules.order == "grey") {
        if (channels == 3 && rules.count == 1) {
            cv::cvtColor(pixels, pixels, found.order == "bgr" ? cv::COLOR_BGR2GRAY : cv::COLOR_RGB2GRAY);
        }
    } else if (channels == 1 && rules.count == 3 && rules.grey_expands) {
        cv::cvtColor(pixels, pixels, cv::COLOR_GRAY2RGB);
    } else if (channels == 3 && found.order != rules.order) {
        cv::cvtColor(pixels, pixels, cv::COLOR_BGR2RGB);
    } else if (channels == 4 && found.order != rules.order) {
        cv::cvtColor(pixels, pixels, cv::COLOR_BGRA2RGBA);
    }
    const auto have = static_cast<std::size_t>(pixels.channels());
    const bool allowed = have == rules.count || (have == 1 && !rules.grey_expands) ||
                         (have == rules.count + 1 && rules.keeps_alpha);
    if (!allowed) {
        throw InputError(name + " has " + std::to_string(have) + " channel(s), the network takes " +
                         std::to_string(rules.count) + "; convert it first");
    }
    found.order = rules.order;
}

template <typename T>
Array<T> as_array(const cv::Mat& pixels) {
    const auto height = static_cast<std::size_t>(pixels.rows), width = static_cast<std::size_t>(pixels.cols);
    const auto planes = static_cast<std::size_t>(pixels.channels());
    Array<T> array;
    array.shape = {height, width, planes};
    array.data.resize(elements(array.shape));
    const std::size_t row = width * planes;
    for (std::size_t y = 0; y < height; ++y) {
        std::memcpy(array.data.data() + y * row, pixels.ptr<T>(static_cast<int>(y)), row * sizeof(T));
    }
    return array;
}

Pixels as_pixels(const cv::Mat& pixels) {
    if (pixels.depth() == CV_8U) return as_array<std::uint8_t>(pixels);
    if (pixels.depth() == CV_16U) return as_array<std::uint16_t>(pixels);
    return as_array<float>(pixels);
}

// uint8 RGB to look at: floats stand for 0..1, unless they go beyond.
cv::Mat rgb8(const Decoded& found) {
    cv::Mat pixels = found.pixels;
    if (found.boolean) pixels = cv::Mat(found.pixels * 255);  // a new one: the network's stay 0 and 1
    if (pixels.depth() == CV_16U) pixels = high_bytes(pixels);
    if (pixels.depth() == CV_32F) {
        double low = 0, high = 0;
        cv::minMaxLoc(pixels.reshape(1), &low, &high);
        cv::Mat levels(pixels.size(), CV_8UC(pixels.channels()));
        const auto top = static_cast<float>(std::max(high, 1.0));
        for (int y = 0; y < pixels.rows; ++y) {
            const auto* from = pixels.ptr<float>(y);
            auto* to = levels.ptr<std::uint8_t>(y);
            for (int i = 0; i < pixels.cols * pixels.channels(); ++i) {
                to[i] = static_cast<std::uint8_t>(std::nearbyint(std::clamp(from[i] / top, 0.0F, 1.0F) * 255.0F));
            }
        }
        pixels = levels;
    }
    cv::Mat rgb;  // of its own: a conversion in place would turn the network's pixels too
    const bool bgr = found.order == "bgr";
    if (pixels.channels() == 1) cv::cvtColor(pixels, rgb, cv::COLOR_GRAY2RGB);
    if (pixels.channels() == 3 && bgr) cv::cvtColor(pixels, rgb, cv::COLOR_BGR2RGB);
    if (pixels.channels() == 4) cv::cvtColor(pixels, rgb, bgr ? cv::COLOR_BGRA2RGB : cv::COLOR_RGBA2RGB);
    return rgb.empty() ? pixels : rgb;
}

Image finished(const Decoded& found, const std::string& name) {
    Image image;
    image.pixels = as_pixels(found.pixels);
    image.boolean = found.boolean;
    image.name = name;
    image.channel_order = found.order;
    return image;
}

// The picture in colour by the sister of its reader: opencv:grey reads grey, opencv:color the same file in colour.
cv::Mat colours_of_grey(const std::string& data, const Rules& rules, const Container& container, const std::string& name) {
    if (rules.reader == "opencv:grey" || rules.reader == "opencv:color") {
        Rules in_colour = rules;
        in_colour.reader = "opencv:color";
        return rgb8(by_opencv(data, in_colour, container, name));
    }
    Decoded found = by_pillow(data, container, rules.apply_rotation, name);
    to_8_bit(found, name);
    return rgb8(found);
}

void keep_alpha(Image& image, const std::string& data, const Rules& rules, const Container& container) {
    if (container.format == "JPEG" || container.spare) return;
    if (container.format == "TIFF" && container.colour == 2 && (container.extra == 1 || container.extra == 2)) {
        throw InputError(image.name + " is a TIFF with alpha beside its grey" + NOT_READ);
    }
    cv::Mat whole = container.format == "PNG" ? decode_png(data, PngPlanes::rgba, image.name)
                                              : decode_like_pillow(data, container, image.name);
    if (whole.channels() != 4 || whole.depth() != CV_8U) return;
    whole = turned_by_rules(whole, container, rules.apply_rotation);
    cv::Mat plane;
    cv::extractChannel(whole, plane, 3);
    Array<std::uint8_t> alpha = as_array<std::uint8_t>(plane);
    alpha.shape.pop_back();
    if (alpha.shape == Shape{image.height(), image.width()}) image.alpha = std::move(alpha);
}

}  // namespace

Image read_image_bytes(const std::string& data, const Json& spec, const std::string& name, const ImageLimits& limits,
                       Keep keep) {
    const Rules rules(spec);
    if (data.size() > limits.max_bytes || data.size() > 0x7FFFFFFF) {
        throw InputError(name + " has " + with_commas(data.size()) + " bytes, the limit is " +
                         with_commas(std::min<std::size_t>(limits.max_bytes, 0x7FFFFFFF)) + "; raise it with --max-bytes");
    }
    const Container container = inspect_container(data, name);
    check_pixels(container.height, container.width, limits, name);
    Decoded found;
    if (rules.reader.compare(0, 7, "opencv:") == 0) {
        found = by_opencv(data, rules, container, name);
    } else {
        found = by_pillow(data, container, rules.apply_rotation, name);
        drop_alpha(found, rules);
        if (rules.eight_bit()) to_8_bit(found, name);
        if (found.pixels.channels() == 1) found.order = "grey";
    }
    if (found.order == "grey" && found.pixels.channels() == 1 && rules.order != "grey") found.order = rules.order;
    const bool grey_network = rules.order == "grey";
    Array<std::uint8_t> colors;
    if (keep.colors && !grey_network) colors = as_array<std::uint8_t>(rgb8(found));
    if (keep.colors && grey_network) colors = as_array<std::uint8_t>(colours_of_grey(data, rules, container, name));
    to_order(found, rules, name);
    Image image = finished(found, name);
    image.colors = std::move(colors);
    if (keep.alpha) keep_alpha(image, data, rules, container);
    if (container.several) image.notes.emplace_back("more than one frame; the first is used");
    return image;
}

Image read_image(const std::string& path, const Json& spec, const ImageLimits& limits, Keep keep) {
    const std::string name = std::filesystem::path(path).filename().string();
    return read_image_bytes(read_file(path, limits.max_bytes), spec, name, limits, keep);
}

Image image_from_array(const Pixels& array, const Json& spec, const std::string& name, const ImageLimits& limits, Keep keep) {
    const Rules rules(spec);
    const Shape given = std::visit([](const auto& values) { return values.shape; }, array);
    const std::size_t planes = given.size() == 3 ? given[2] : 1;
    if ((given.size() != 2 && given.size() != 3) || (planes != 1 && planes != 3 && planes != 4)) {
        throw InputError(name + " has " + std::to_string(given.size()) +
                         " axes or other planes; give (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)");
    }
    const std::size_t values = std::visit([](const auto& one) { return one.size(); }, array);
    if (elements(given) == 0 || values != elements(given)) throw InputError(name + " holds no pixel, or not as many as it says");
    check_pixels(given[0], given[1], limits, name);
    if (given[0] > 0x7FFFFFFF || given[1] > 0x7FFFFFFF) throw InputError(name + " is wider than pictures are");
    Decoded found;
    std::visit(
        [&](const auto& one) {
            using Value = typename std::decay_t<decltype(one)>::value_type;
            const int type = CV_MAKETYPE(cv::DataType<Value>::depth, static_cast<int>(planes));
            const cv::Mat view(static_cast<int>(given[0]), static_cast<int>(given[1]), type,
                               const_cast<Value*>(one.data.data()));
            found.pixels = view.clone();
        },
        array);
    found.has_alpha = planes == 4;
    Image kept;
    if (keep.alpha && found.has_alpha) {
        Decoded plane;
        cv::extractChannel(found.pixels, plane.pixels, 3);
        cv::Mat grey;
        cv::extractChannel(rgb8(plane), grey, 0);
        kept.alpha = as_array<std::uint8_t>(grey);
        kept.alpha.shape.pop_back();
    }
    if (found.has_alpha && !rules.keeps_alpha) cv::cvtColor(found.pixels, found.pixels, cv::COLOR_RGBA2RGB);
    if (rules.eight_bit()) to_8_bit(found, name);
    if (keep.colors) kept.colors = as_array<std::uint8_t>(rgb8(found));
    to_order(found, rules, name);
    Image image = finished(found, name);
    image.colors = std::move(kept.colors);
    image.alpha = std::move(kept.alpha);
    return image;
}

Array<std::uint8_t> read_rgb(const std::string& path, const ImageLimits& limits) {
    const Json spec = {{"reader", "pillow:rgb"},
                       {"channels", {{{"name", "R"}}, {{"name", "G"}}, {{"name", "B"}}}},
                       {"channel_order", "rgb"},
                       {"exif_rotation", "apply"}};
    return std::get<Array<std::uint8_t>>(read_image(path, spec, limits).pixels);
}

}  // namespace segship
