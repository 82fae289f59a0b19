#pragma once
// JPEGs of four components as Pillow reads them; OpenCV rounds their way to RGB otherwise.

#include <string>

#include <opencv2/core.hpp>

namespace segship {

// RGB (H, W, 3) of a CMYK or YCCK JPEG. Raises InputError for damage.
cv::Mat decode_cmyk_jpeg(const std::string& data, const std::string& name);

}  // namespace segship
