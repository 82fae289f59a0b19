#include "jpeg_file.hpp"

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <jpeglib.h>
#include <opencv2/imgproc.hpp>

#include "errors.hpp"

namespace segship {

namespace {

struct Failure {
    jpeg_error_mgr manager;
    std::jmp_buf back;
    char words[JMSG_LENGTH_MAX];
};

[[noreturn]] void give_up(j_common_ptr info) {
    auto* failure = reinterpret_cast<Failure*>(info->err);
    info->err->format_message(info, failure->words);
    std::longjmp(failure->back, 1);
}

void stay_silent(j_common_ptr, int) {}

// Frees libjpeg's memory however the function is left; stands before setjmp, so that no jump passes over it.
struct Decompressor {
    jpeg_decompress_struct info{};
    ~Decompressor() { jpeg_destroy_decompress(&info); }
};

// Divided by 255 and rounded as Pillow does it (libImaging/ImagingUtils.h, MULDIV255).
int muldiv255(int a, int b) {
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

// One row of inverted CMYK, as Adobe's programs write it and Pillow takes it, to RGB (libImaging/Convert.c, cmyk2rgb).
void cmyk_to_rgb(const std::uint8_t* from, std::uint8_t* to, int width) {
    for (int x = 0; x < width; ++x, from += 4, to += 3) {
        const int white = from[3];
        for (int c = 0; c < 3; ++c) {
            const int value = white - muldiv255(255 - from[c], white);
            to[c] = static_cast<std::uint8_t>(value < 0 ? 0 : value);
        }
    }
}

J_COLOR_SPACE space_for(const jpeg_decompress_struct& info, JpegPlanes planes) {
    if (info.num_components == 4) return JCS_CMYK;
    const bool grey = planes == JpegPlanes::grey || (planes == JpegPlanes::rgb && info.num_components == 1);
    return grey ? JCS_GRAYSCALE : JCS_RGB;
}

bool decode(const std::string& data, JpegPlanes planes, Failure& failure, cv::Mat& pixels, std::vector<std::uint8_t>& row) {
    Decompressor holder;
    jpeg_decompress_struct& info = holder.info;
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = give_up;
    failure.manager.emit_message = stay_silent;
    if (setjmp(failure.back) != 0) return false;
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(data.data()), data.size());
    jpeg_read_header(&info, TRUE);
    info.out_color_space = space_for(info, planes);
    jpeg_start_decompress(&info);
    const bool cmyk = info.out_color_space == JCS_CMYK;
    row.resize(cmyk ? static_cast<std::size_t>(info.output_width) * 4 : 0);
    pixels.create(static_cast<int>(info.output_height), static_cast<int>(info.output_width),
                  CV_8UC(info.out_color_space == JCS_GRAYSCALE ? 1 : 3));
    while (info.output_scanline < info.output_height) {
        std::uint8_t* target = pixels.ptr(static_cast<int>(info.output_scanline));
        JSAMPROW rows[1] = {cmyk ? row.data() : target};
        jpeg_read_scanlines(&info, rows, 1);
        if (cmyk) cmyk_to_rgb(row.data(), target, pixels.cols);
    }
    jpeg_finish_decompress(&info);
    return true;
}

}  // namespace

cv::Mat decode_jpeg(const std::string& data, JpegPlanes planes, const std::string& name) {
    Failure failure{};
    cv::Mat pixels;
    std::vector<std::uint8_t> row;
    if (!decode(data, planes, failure, pixels, row)) {
        throw InputError(name + " cannot be decoded as JPEG (" + failure.words +
                         "); it is damaged or cut short, copy that file again");
    }
    if (planes == JpegPlanes::bgr) cv::cvtColor(pixels, pixels, cv::COLOR_RGB2BGR);
    return pixels;
}

}  // namespace segship
