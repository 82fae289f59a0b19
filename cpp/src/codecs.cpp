#include "codecs.hpp"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <mutex>

#include <dlfcn.h>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

#include "errors.hpp"
#include "jpeg_file.hpp"
#include "png_file.hpp"

namespace segship::codecs {

namespace {

constexpr const char* LIBRARY = "libsegship_codecs.so";

struct Functions {
    cv::Mat* (*decode)(const cv::Mat&, int);
    bool (*read_pages)(const std::string&, std::vector<cv::Mat>&, int);
    bool (*write_pages)(const std::string&, const std::vector<cv::Mat>&, const std::vector<int>&);
    bool (*encode)(const std::string&, const cv::Mat&, std::vector<unsigned char>&, const std::vector<int>&);
};

// Beside this very code, in ../lib of it, or wherever the system finds libraries.
void* opened_library() {
    Dl_info here{};
    if (dladdr(reinterpret_cast<const void*>(&opened_library), &here) != 0 && here.dli_fname != nullptr) {
        const std::filesystem::path folder = std::filesystem::absolute(here.dli_fname).parent_path();
        for (const auto& path : {folder / LIBRARY, folder.parent_path() / "lib" / LIBRARY}) {
            if (void* found = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
        }
    }
    if (void* found = dlopen(SEGSHIP_CODECS_BUILT, RTLD_NOW | RTLD_LOCAL)) return found;
    return dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
}

const Functions& functions() {
    static const Functions found = [] {
        void* library = opened_library();
        if (library == nullptr) {
            throw InputError(std::string("pictures other than PNG and JPEG take ") + LIBRARY +
                             ", which is not beside the program; build it again, or save the picture as PNG");
        }
        const auto symbol = [&](const char* name) { return dlsym(library, name); };
        return Functions{reinterpret_cast<decltype(Functions::decode)>(symbol("segship_imdecode")),
                         reinterpret_cast<decltype(Functions::read_pages)>(symbol("segship_imreadmulti")),
                         reinterpret_cast<decltype(Functions::write_pages)>(symbol("segship_imwritemulti")),
                         reinterpret_cast<decltype(Functions::encode)>(symbol("segship_imencode"))};
    }();
    return found;
}

bool begins(const cv::Mat& bytes, const std::string& magic) {
    if (bytes.total() < magic.size()) return false;
    return std::equal(magic.begin(), magic.end(), reinterpret_cast<const char*>(bytes.data));
}

// The number of components in a JPEG's frame; 0 where there is none. Four are left to OpenCV, which has rules of its own.
int jpeg_components(const std::string& data) {
    for (std::size_t at = 2; at + 9 < data.size();) {
        const auto byte = [&](std::size_t place) { return static_cast<unsigned char>(data[place]); };
        if (byte(at) != 0xFF) return 0;
        const int marker = byte(at + 1);
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) return byte(at + 9);
        if (marker == 0xFF) ++at;
        else if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) at += 2;
        else at += 2 + static_cast<std::size_t>(byte(at + 2)) * 256 + byte(at + 3);
    }
    return 0;
}

cv::Mat decode_here(const std::string& data, bool png, int flags) {
    const bool unchanged = flags == cv::IMREAD_UNCHANGED;
    const bool colour = !unchanged && (flags & cv::IMREAD_COLOR) != 0;
    try {
        if (png) {
            return decode_png(data, unchanged ? PngPlanes::unchanged : colour ? PngPlanes::bgr : PngPlanes::grey, "it");
        }
        if (!unchanged) return decode_jpeg(data, colour ? JpegPlanes::bgr : JpegPlanes::grey, "it");
        cv::Mat pixels = decode_jpeg(data, JpegPlanes::rgb, "it");
        if (pixels.channels() == 3) cv::cvtColor(pixels, pixels, cv::COLOR_RGB2BGR);
        return pixels;
    } catch (const InputError&) {
        return {};
    }
}

// Whether most neighbours in a row are equal: labels and masks, which compress best without row filters.
bool is_flat(const cv::Mat& pixels) {
    std::size_t equal = 0, looked = 0;
    const std::size_t size = pixels.elemSize();
    const int step = std::max(1, pixels.rows / 64);
    for (int y = 0; y < pixels.rows; y += step) {
        const std::uint8_t* row = pixels.ptr(y);
        for (int x = 1; x < pixels.cols; ++x, ++looked) {
            equal += std::equal(row + static_cast<std::size_t>(x) * size, row + (static_cast<std::size_t>(x) + 1) * size,
                                row + (static_cast<std::size_t>(x) - 1) * size);
        }
    }
    return equal * 4 >= looked * 3;
}

}  // namespace

cv::Mat imdecode(const cv::Mat& bytes, int flags) {
    const bool png = begins(bytes, "\x89PNG"), jpeg = begins(bytes, "\xff\xd8\xff");
    const int own = cv::IMREAD_IGNORE_ORIENTATION;
    const bool simple = flags == cv::IMREAD_UNCHANGED || (flags | own) == (cv::IMREAD_COLOR | own) ||
                        (flags | own) == (cv::IMREAD_GRAYSCALE | own);
    if (simple && (png || jpeg)) {
        const std::string data(reinterpret_cast<const char*>(bytes.data), bytes.total());
        if (png || jpeg_components(data) != 4) return decode_here(data, png, flags);
    }
    const std::unique_ptr<cv::Mat> found(functions().decode(bytes, flags));
    return *found;
}

bool imreadmulti(const std::string& path, std::vector<cv::Mat>& pages, int flags) {
    return functions().read_pages(path, pages, flags);
}

bool imwritemulti(const std::string& path, const std::vector<cv::Mat>& pages, const std::vector<int>& parameters) {
    return functions().write_pages(path, pages, parameters);
}

bool imencode(const std::string& suffix, const cv::Mat& pixels, std::vector<std::uint8_t>& out,
              const std::vector<int>& parameters) {
    if (suffix != ".png") return functions().encode(suffix, pixels, out, parameters);
    cv::Mat ordered = pixels;
    if (pixels.channels() == 3) cv::cvtColor(pixels, ordered, cv::COLOR_BGR2RGB);
    if (pixels.channels() == 4) cv::cvtColor(pixels, ordered, cv::COLOR_BGRA2RGBA);
    out = encode_png_file(ordered, is_flat(ordered));
    return true;
}

}  // namespace segship::codecs
