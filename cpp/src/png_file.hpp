#pragma once
// PNG by libpng itself: OpenCV's reader gives the same pixels, but Debian's loads a hundred libraries before it does.

#include <cstdint>
#include <string>
#include <vector>

#include <opencv2/core.hpp>

namespace segship {

// stored: as Pillow has it: grey of 8 or 16 bits (alpha beside 8-bit grey dropped), else RGB or RGBA of 8 bits (the high byte of
// 16), palettes as RGB. bgr and grey: as OpenCV's IMREAD_COLOR and IMREAD_GRAYSCALE. rgba: four planes, transparent colours
// of palettes and of tRNS chunks included.
// unchanged: as OpenCV's IMREAD_UNCHANGED: 8 or 16 bits; one plane, or B, G, R, and alpha where the file has it.
enum class PngPlanes { stored, bgr, grey, rgba, unchanged };

// InputError for damage.
cv::Mat decode_png(const std::string& data, PngPlanes planes, const std::string& name);

// Lossless, of grey of 8 or 16 bits, RGB or RGBA of 8 bits (in that order). `flat`: of few values in large areas, which
// compress best without row filters. Equal pixels give equal bytes.
std::vector<std::uint8_t> encode_png_file(const cv::Mat& pixels, bool flat);

}  // namespace segship
