#pragma once
// JPEG by libjpeg itself: OpenCV's reader gives the same pixels, but Debian's loads a hundred libraries before it does, and
// pictures of four components come out of it otherwise than out of Pillow.

#include <string>

#include <opencv2/core.hpp>

namespace segship {

// rgb: grey as (H, W, 1), colours as RGB, CMYK and YCCK as RGB by Pillow's rules. bgr: three planes. grey: one.
enum class JpegPlanes { rgb, bgr, grey };

// uint8 pixels, not rotated. InputError for damage.
cv::Mat decode_jpeg(const std::string& data, JpegPlanes planes, const std::string& name);

}  // namespace segship
