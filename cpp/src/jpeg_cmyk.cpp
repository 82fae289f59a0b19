#include "jpeg_cmyk.hpp"

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <vector>

#include <jpeglib.h>

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

// Divided by 255 and rounded, as Pillow does it: libImaging/ImagingUtils.h, MULDIV255.
int muldiv255(int a, int b) {
    const int product = a * b + 128;
    return ((product >> 8) + product) >> 8;
}

// One row of inverted CMYK, as Adobe's programs write it and Pillow takes it, to RGB (libImaging/Convert.c, cmyk2rgb).
void to_rgb(const std::uint8_t* from, std::uint8_t* to, int width) {
    for (int x = 0; x < width; ++x, from += 4, to += 3) {
        const int white = from[3];  // 255 - K of the colours turned back
        for (int c = 0; c < 3; ++c) {
            const int ink = 255 - from[c];
            const int value = white - muldiv255(ink, white);
            to[c] = static_cast<std::uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
        }
    }
}

// Plain C between setjmp and longjmp: no destructor may be jumped over, so the buffers are the caller's.
bool decode(const std::string& data, Failure& failure, cv::Mat& pixels, std::vector<std::uint8_t>& row) {
    jpeg_decompress_struct info;
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = give_up;
    failure.manager.emit_message = [](j_common_ptr, int) {};
    if (setjmp(failure.back) != 0) {
        jpeg_destroy_decompress(&info);
        return false;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(data.data()), data.size());
    jpeg_read_header(&info, TRUE);
    info.out_color_space = JCS_CMYK;
    jpeg_start_decompress(&info);
    row.resize(static_cast<std::size_t>(info.output_width) * 4);
    pixels.create(static_cast<int>(info.output_height), static_cast<int>(info.output_width), CV_8UC3);
    JSAMPROW rows[1] = {row.data()};
    while (info.output_scanline < info.output_height) {
        std::uint8_t* target = pixels.ptr(static_cast<int>(info.output_scanline));
        jpeg_read_scanlines(&info, rows, 1);
        to_rgb(row.data(), target, pixels.cols);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return true;
}

}  // namespace

cv::Mat decode_cmyk_jpeg(const std::string& data, const std::string& name) {
    Failure failure{};
    cv::Mat pixels;
    std::vector<std::uint8_t> row;
    if (!decode(data, failure, pixels, row)) {
        throw InputError(name + " cannot be decoded as JPEG (" + failure.words + "); it is damaged or cut short, copy that file again");
    }
    return pixels;
}

}  // namespace segship
