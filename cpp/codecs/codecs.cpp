// OpenCV's readers and writers of pictures as a library of their own: Debian's libopencv_imgcodecs brings GDAL and a hundred
// more libraries, and PNG, JPEG and NIfTI need none of them. src/codecs.cpp loads this one when first needed.

#include <string>
#include <vector>

#include <opencv2/imgcodecs.hpp>

extern "C" {

cv::Mat* segship_imdecode(const cv::Mat& bytes, int flags) {
    return new cv::Mat(cv::imdecode(bytes, flags));
}

bool segship_imreadmulti(const std::string& path, std::vector<cv::Mat>& pages, int flags) {
    return cv::imreadmulti(path, pages, flags);
}

bool segship_imwritemulti(const std::string& path, const std::vector<cv::Mat>& pages, const std::vector<int>& parameters) {
    return cv::imwritemulti(path, pages, parameters);
}

bool segship_imencode(const std::string& suffix, const cv::Mat& pixels, std::vector<unsigned char>& out,
                      const std::vector<int>& parameters) {
    return cv::imencode(suffix, pixels, out, parameters);
}
}
