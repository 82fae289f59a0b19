#pragma once
// cv::imdecode, imreadmulti and imencode without the start-up of OpenCV's codecs: PNG and JPEG go through libpng and libjpeg
// with the same results, other formats through libsegship_codecs.so, which is loaded when first needed.

#include <cstdint>
#include <string>
#include <vector>

#include <opencv2/core.hpp>

namespace segship::codecs {

// As cv::imdecode; EXIF rotation is never applied to PNG and JPEG. Empty for what cannot be decoded; cv::Exception as
// OpenCV's; InputError where the library of the other formats is not there.
cv::Mat imdecode(const cv::Mat& bytes, int flags);

// As cv::imreadmulti.
bool imreadmulti(const std::string& path, std::vector<cv::Mat>& pages, int flags);

// As cv::imwritemulti.
bool imwritemulti(const std::string& path, const std::vector<cv::Mat>& pages, const std::vector<int>& parameters = {});

// As cv::imencode. Of a PNG the parameters are not looked at: fast compression, filtered as its content needs.
bool imencode(const std::string& suffix, const cv::Mat& pixels, std::vector<std::uint8_t>& out,
              const std::vector<int>& parameters = {});

}  // namespace segship::codecs
