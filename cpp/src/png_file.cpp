#include "png_file.hpp"

#include <csetjmp>
#include <cstdio>
#include <cstring>

#include <png.h>

#include "errors.hpp"

namespace segship {

namespace {

constexpr int FAST = 1;  // zlib's level: a sixth of the time of level 6 for files a tenth larger
constexpr std::size_t WORDS = 200;

struct Source {
    const std::string& data;
    std::size_t at;
    char words[WORDS];
};

void read_bytes(png_structp png, png_bytep into, std::size_t size) {
    auto* source = static_cast<Source*>(png_get_io_ptr(png));
    if (size > source->data.size() - source->at) png_error(png, "cut short");
    std::memcpy(into, source->data.data() + source->at, size);
    source->at += size;
}

[[noreturn]] void on_error(png_structp png, png_const_charp words) {
    auto* kept = static_cast<char*>(png_get_error_ptr(png));
    std::snprintf(kept, WORDS, "%s", words);
    png_longjmp(png, 1);
}

void on_warning(png_structp, png_const_charp) {}

// Frees libpng's memory however the function is left; stands before setjmp, so that no jump passes over it.
struct Reader {
    png_structp png = nullptr;
    png_infop info = nullptr;
    ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct Writer {
    png_structp png = nullptr;
    png_infop info = nullptr;
    ~Writer() { png_destroy_write_struct(&png, &info); }
};

// The transformations that bring any PNG to the planes wanted; those of OpenCV for its three kinds.
void set_transformations(png_structp png, png_infop info, PngPlanes planes) {
    const int colour = png_get_color_type(png, info), depth = png_get_bit_depth(png, info);
    const bool colours = (colour & PNG_COLOR_MASK_COLOR) != 0, alpha = (colour & PNG_COLOR_MASK_ALPHA) != 0;
    const bool palette = colour == PNG_COLOR_TYPE_PALETTE, as_it_is = planes == PngPlanes::unchanged;
    const bool keeps_depth = as_it_is || (planes == PngPlanes::stored && colour == PNG_COLOR_TYPE_GRAY);
    if (depth == 16 && keeps_depth) png_set_swap(png);
    if (depth == 16 && !keeps_depth) png_set_strip_16(png);
    const bool opens_palette = as_it_is && palette && png_get_valid(png, info, PNG_INFO_tRNS) != 0;
    if (planes == PngPlanes::rgba || opens_palette) png_set_tRNS_to_alpha(png);
    const bool wide_grey_alpha = planes == PngPlanes::stored && colour == PNG_COLOR_TYPE_GRAY_ALPHA && depth == 16;  // Pillow's RGBA
    const bool keeps_alpha = planes == PngPlanes::rgba || as_it_is || wide_grey_alpha ||
                             (planes == PngPlanes::stored && colour == PNG_COLOR_TYPE_RGB_ALPHA);
    if (!keeps_alpha) png_set_strip_alpha(png);
    if (palette) png_set_palette_to_rgb(png);
    if (!colours && depth < 8) png_set_expand_gray_1_2_4_to_8(png);
    if ((planes == PngPlanes::bgr || as_it_is) && colours) png_set_bgr(png);
    const bool becomes_colour = planes == PngPlanes::bgr || planes == PngPlanes::rgba || (as_it_is && alpha) || wide_grey_alpha;
    if (!colours && becomes_colour) png_set_gray_to_rgb(png);
    if (planes == PngPlanes::grey && colours) png_set_rgb_to_gray(png, 1, 0.299, 0.587);
    if (planes == PngPlanes::rgba) png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
}

bool decode(Source& source, PngPlanes planes, cv::Mat& pixels, std::vector<png_bytep>& rows) {
    Reader reader;
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, source.words, on_error, on_warning);
    if (reader.png == nullptr) return false;
    reader.info = png_create_info_struct(reader.png);
    if (reader.info == nullptr || setjmp(png_jmpbuf(reader.png)) != 0) return false;
    png_set_read_fn(reader.png, &source, read_bytes);
    png_read_info(reader.png, reader.info);
    set_transformations(reader.png, reader.info, planes);
    const int depth = png_get_bit_depth(reader.png, reader.info) == 16 ? CV_16U : CV_8U;
    const int channels = png_get_channels(reader.png, reader.info);
    const auto height = static_cast<int>(png_get_image_height(reader.png, reader.info));
    const auto width = static_cast<int>(png_get_image_width(reader.png, reader.info));
    pixels.create(height, width, CV_MAKETYPE(depth, channels));
    if (png_get_rowbytes(reader.png, reader.info) != pixels.elemSize() * static_cast<std::size_t>(width)) return false;
    rows.resize(static_cast<std::size_t>(height));
    for (int y = 0; y < height; ++y) rows[static_cast<std::size_t>(y)] = pixels.ptr(y);
    png_read_image(reader.png, rows.data());
    png_read_end(reader.png, nullptr);
    return true;
}

void append(png_structp png, png_bytep data, std::size_t size) {
    auto* bytes = static_cast<std::vector<std::uint8_t>*>(png_get_io_ptr(png));
    bytes->insert(bytes->end(), data, data + size);
}

void flush(png_structp) {}

bool encode(const cv::Mat& pixels, bool flat, std::vector<std::uint8_t>& bytes, char* words) {
    Writer writer;
    writer.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, words, on_error, on_warning);
    if (writer.png == nullptr) return false;
    writer.info = png_create_info_struct(writer.png);
    if (writer.info == nullptr || setjmp(png_jmpbuf(writer.png)) != 0) return false;
    png_set_write_fn(writer.png, &bytes, append, flush);
    png_set_compression_level(writer.png, FAST);
    png_set_filter(writer.png, PNG_FILTER_TYPE_BASE, flat ? PNG_FILTER_NONE : PNG_FILTER_UP);
    const int colour = pixels.channels() == 1   ? PNG_COLOR_TYPE_GRAY
                       : pixels.channels() == 3 ? PNG_COLOR_TYPE_RGB
                                                : PNG_COLOR_TYPE_RGB_ALPHA;
    png_set_IHDR(writer.png, writer.info, static_cast<png_uint_32>(pixels.cols), static_cast<png_uint_32>(pixels.rows),
                 pixels.depth() == CV_16U ? 16 : 8, colour, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_write_info(writer.png, writer.info);
    if (pixels.depth() == CV_16U) png_set_swap(writer.png);
    for (int y = 0; y < pixels.rows; ++y) png_write_row(writer.png, pixels.ptr(y));
    png_write_end(writer.png, writer.info);
    return true;
}

}  // namespace

cv::Mat decode_png(const std::string& data, PngPlanes planes, const std::string& name) {
    Source source{data, 0, {}};
    cv::Mat pixels;
    std::vector<png_bytep> rows;
    if (!decode(source, planes, pixels, rows)) {
        throw InputError(name + " cannot be decoded as PNG (" + source.words +
                         "); it is damaged or cut short, copy that file again");
    }
    return pixels;
}

std::vector<std::uint8_t> encode_png_file(const cv::Mat& pixels, bool flat) {
    const bool known = (pixels.depth() == CV_8U || (pixels.depth() == CV_16U && pixels.channels() == 1)) &&
                       (pixels.channels() == 1 || pixels.channels() == 3 || pixels.channels() == 4);
    std::vector<std::uint8_t> bytes;
    char words[WORDS] = "of another type than a PNG holds";
    if (!known || pixels.empty() || !encode(pixels, flat, bytes, words)) {
        throw OutputError("a PNG of " + std::to_string(pixels.rows) + " x " + std::to_string(pixels.cols) +
                          " pixels cannot be made: " + words);
    }
    return bytes;
}

}  // namespace segship
