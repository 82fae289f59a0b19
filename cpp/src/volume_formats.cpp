#include "volume_formats.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>

#include <opencv2/imgcodecs.hpp>  // names of its options
#include <sys/stat.h>
#include <unistd.h>

#include "codecs.hpp"
#include "containers.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "json.hpp"
#include "png_file.hpp"
#include "volume_text.hpp"

namespace segship {
namespace {

const char* const kCopyAgain = "it is damaged or cut short, copy or download that file again";

using Bytes = std::vector<std::uint8_t>;

// What a TIFF's tags say of its numbers.
struct TiffAbout {
    std::size_t height = 0, width = 0, pages = 0;
    int bits = 1;
    int sample_format = 1;  // 1 unsigned, 2 signed, 3 float
};

// The tags of a TIFF's first page, and how many pages follow. Big files (BigTIFF) are left to the decoder.
class TiffHeader {
public:
    explicit TiffHeader(const std::string& data) : data_(data), little_(data[0] == 'I') {}

    TiffAbout about() const {
        TiffAbout out;
        std::size_t at = number(4, 4);
        while (at != 0 && out.pages < 1'000'000) {
            if (at + 2 > data_.size()) break;
            const std::size_t entries = number(at, 2);
            if (at + 2 + entries * 12 + 4 > data_.size()) break;
            if (out.pages == 0) first_page(at, entries, out);
            ++out.pages;
            const std::size_t next = number(at + 2 + entries * 12, 4);
            if (next <= at) break;  // pages lie in order; a loop would have no end
            at = next;
        }
        return out;
    }

private:
    void first_page(std::size_t at, std::size_t entries, TiffAbout& out) const {
        for (std::size_t i = 0; i < entries; ++i) {
            const std::size_t entry = at + 2 + i * 12, tag = number(entry, 2);
            if (tag == 256) out.width = value(entry);
            if (tag == 257) out.height = value(entry);
            if (tag == 258) out.bits = static_cast<int>(value(entry));
            if (tag == 339) out.sample_format = static_cast<int>(value(entry));
        }
    }

    // The first value of a tag: short or long, in place or where the tag points.
    std::size_t value(std::size_t entry) const {
        const std::size_t kind = number(entry + 2, 2), size = kind == 3 ? 2 : 4;
        const bool inside = number(entry + 4, 4) * size <= 4;
        return number(inside ? entry + 8 : number(entry + 8, 4), size);
    }

    std::size_t number(std::size_t at, std::size_t size) const {
        if (at > data_.size() || size > data_.size() - at) return 0;
        std::size_t out = 0;
        for (std::size_t i = 0; i < size; ++i) {
            const std::size_t byte = static_cast<unsigned char>(data_[at + i]);
            out |= byte << (8 * (little_ ? i : size - 1 - i));
        }
        return out;
    }

    const std::string& data_;
    bool little_;
};

bool is_classic_tiff(const std::string& data) {
    return data.size() >= 8 && (data.compare(0, 4, std::string("II*\0", 4)) == 0 || data.compare(0, 4, std::string("MM\0*", 4)) == 0);
}

// Big files (BigTIFF) are left to the decoder.
TiffAbout about_tiff(const std::string& data) {
    return is_classic_tiff(data) ? TiffHeader(data).about() : TiffAbout{0, 0, 0, 8, 1};
}

void check_tiff(const TiffAbout& known, const std::string& name) {
    const bool offered = known.bits == 8 || known.bits == 16 || (known.sample_format == 3 && (known.bits == 32 || known.bits == 64));
    if (!offered) {
        throw InputError(name + " holds numbers of " + std::to_string(known.bits) +
                         " bits of a kind that is not read here; save it as 8 or 16 bits or as float");
    }
}

cv::Mat decoded(const std::string& data, const std::string& name) {
    if (data.size() > 0x7FFFFFFF) throw InputError(name + " is larger than 2 GB; give a smaller file");
    cv::Mat out;
    try {
        out = codecs::imdecode(cv::Mat(1, static_cast<int>(data.size()), CV_8U, const_cast<char*>(data.data())), cv::IMREAD_UNCHANGED);
    } catch (const cv::Exception& error) {
        throw InputError(name + " cannot be decoded (" + error.err + "); " + kCopyAgain);
    }
    if (out.empty()) throw InputError(name + " cannot be decoded; " + kCopyAgain);
    return out;
}

std::vector<cv::Mat> decoded_pages(const std::string& path, const std::string& name) {
    std::vector<cv::Mat> out;
    bool done = false;
    try {
        done = codecs::imreadmulti(path, out, cv::IMREAD_UNCHANGED);
    } catch (const cv::Exception& error) {
        throw InputError(name + " cannot be read as TIFF (" + error.err + "); " + kCopyAgain);
    }
    if (!done || out.empty() || std::any_of(out.begin(), out.end(), [](const cv::Mat& m) { return m.empty(); })) {
        throw InputError(name + " cannot be read as TIFF; " + kCopyAgain);
    }
    return out;
}

// One channel of a decoded picture as float; `signed_numbers` reads the same bits as signed.
void take_channel(const cv::Mat& from, int channel, bool signed_numbers, float* into) {
    cv::Mat one;
    cv::extractChannel(from, one, channel);
    int depth = one.depth();
    if (signed_numbers && depth == CV_8U) depth = CV_8S;
    if (signed_numbers && depth == CV_16U) depth = CV_16S;
    const cv::Mat seen(one.rows, one.cols, depth, one.data, one.step);
    cv::Mat target(one.rows, one.cols, CV_32F, into);
    seen.convertTo(target, CV_32F);
}

}  // namespace

Array<float> read_picture(const std::string& path, const VolumeLimits& limits, const std::string& name) {
    const std::string data = read_file(path, limits.max_bytes);
    const Container known = inspect_container(data, name);
    const Wide pixels = times(known.height, known.width);
    if (pixels > limits.max_pixels) {
        throw InputError(name + " has " + grouped(pixels) + " pixels, the limit is " + grouped(limits.max_pixels) +
                         "; cut it, or raise --max-pixels");
    }
    const bool png = known.format == "PNG";
    int sample_format = 1;
    if (known.format == "TIFF") {
        const TiffAbout numbers = about_tiff(data);
        check_tiff(numbers, name);
        sample_format = numbers.sample_format;
    }
    const bool grey_with_alpha = png && known.colour == 4;
    const cv::Mat picture = png ? decode_png(data, PngPlanes::stored, name) : decoded(data, name);
    const int count = picture.channels();
    if (grey_with_alpha || (count != 1 && count != 3 && count != 4)) {
        throw InputError(name + " has the shape (" + std::to_string(picture.rows) + ", " + std::to_string(picture.cols) + ", " +
                         std::to_string(grey_with_alpha ? 2 : count) + "); give a grey picture, RGB or RGBA");
    }
    const auto rows = static_cast<std::size_t>(picture.rows), columns = static_cast<std::size_t>(picture.cols);
    Array<float> out({static_cast<std::size_t>(count), 1, rows, columns});
    for (int channel = 0; channel < count; ++channel) {
        const int from = png || count == 1 || channel == 3 ? channel : 2 - channel;  // OpenCV has blue first
        take_channel(picture, from, sample_format == 2, out.at(static_cast<std::size_t>(channel)));
    }
    if (png && known.bits == 1 && known.colour == 0) {  // one bit is true or false, not black or white
        for (float& value : out.data) value = value != 0 ? 1.0F : 0.0F;
    }
    return out;
}

Array<float> read_tiff3d(const std::string& path, const VolumeLimits& limits, const std::string& name) {
    const std::string data = read_file(path, limits.max_bytes);
    if (inspect_container(data, name).format != "TIFF") {
        throw InputError(name + " cannot be read as TIFF (not a TIFF file); " + kCopyAgain);
    }
    const TiffAbout known = about_tiff(data);
    const Wide voxels = times(times(known.height, known.width), known.pages);
    if (voxels > limits.max_pixels) {
        throw InputError(name + " has " + grouped(voxels) + " voxels, the limit is " + grouped(limits.max_pixels) +
                         "; crop it, or raise --max-pixels");
    }
    check_tiff(known, name);
    const std::vector<cv::Mat> pages = decoded_pages(path, name);
    const cv::Mat& first = pages.front();
    if (pages.size() < 2 || first.channels() != 1) {
        const int axes = (pages.size() > 1 ? 3 : 2) + (first.channels() > 1 ? 1 : 0);
        throw InputError(name + " has " + std::to_string(axes) +
                         " axes or colours; this package reads TIFF files of three (z, y, x), one page a slice");
    }
    Array<float> out({pages.size(), static_cast<std::size_t>(first.rows), static_cast<std::size_t>(first.cols)});
    for (std::size_t z = 0; z < pages.size(); ++z) {
        if (pages[z].size() != first.size() || pages[z].type() != first.type()) {
            throw InputError(name + " has pages of different sizes; give a TIFF of three axes");
        }
        take_channel(pages[z], 0, known.sample_format == 2, out.at(z));
    }
    return out;
}

// ----------------------------------------------------------------------------------------------------- writing

namespace {

cv::Mat page_of(const LabelMap& labels, std::size_t first, std::size_t rows, std::size_t columns, int bits) {
    const cv::Mat wide(static_cast<int>(rows), static_cast<int>(columns), CV_16U,
                       const_cast<std::uint16_t*>(labels.data.data() + first));
    cv::Mat out;
    wide.convertTo(out, bits == 8 ? CV_8U : CV_16U);
    return out;
}

const std::vector<int> kTiffZip{cv::IMWRITE_TIFF_COMPRESSION, 8};

}  // namespace

Bytes encode_picture(const LabelMap& labels, int bits, const std::string& suffix) {
    if (suffix == ".bmp" && bits != 8) throw OutputError("a .bmp holds labels up to 255; write .png or .tif");
    const std::size_t rows = labels.shape[labels.rank() - 2], columns = labels.shape[labels.rank() - 1];
    std::vector<int> parameters;
    if (suffix == ".png") parameters = {cv::IMWRITE_PNG_COMPRESSION, 1};
    if (suffix == ".tif" || suffix == ".tiff") parameters = kTiffZip;
    Bytes out;
    try {
        if (codecs::imencode(suffix, page_of(labels, 0, rows, columns, bits), out, parameters)) return out;
    } catch (const cv::Exception&) {
    }
    throw OutputError("labels cannot be written as " + suffix + "; write .png");
}

Bytes encode_tiff(const LabelMap& labels, int bits) {
    std::vector<cv::Mat> pages;
    const std::size_t rows = labels.shape[1], columns = labels.shape[2];
    for (std::size_t z = 0; z < labels.shape[0]; ++z) pages.push_back(page_of(labels, z * rows * columns, rows, columns, bits));
    char folder[] = "/tmp/segship-XXXXXX";  // OpenCV writes several pages to a file only
    if (mkdtemp(folder) == nullptr) throw OutputError("a temporary folder cannot be made; check the space in /tmp");
    const std::string path = std::string(folder) + "/labels.tif";
    bool done = false;
    try {
        done = codecs::imwritemulti(path, pages, kTiffZip);
    } catch (const cv::Exception&) {
    }
    std::ifstream stream(path, std::ios::binary);
    Bytes out((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
    std::remove(path.c_str());
    rmdir(folder);
    if (!done || out.empty()) throw OutputError("labels cannot be written as .tif; write .nii.gz");
    return out;
}

// ------------------------------------------------------------------------------------------------ spacing

std::string spacing_beside(const std::string& path) {
    const auto slash = path.find_last_of('/'), dot = path.find_last_of('.');
    std::string stem = dot == std::string::npos || (slash != std::string::npos && dot < slash) ? path : path.substr(0, dot);
    if (stem.size() > 5 && stem[stem.size() - 5] == '_' &&
        std::all_of(stem.end() - 4, stem.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        stem.resize(stem.size() - 5);
    }
    return stem + ".json";
}

std::optional<Spacing> read_spacing(const std::string& path) {
    const std::string file = spacing_beside(path);
    struct stat found {};
    if (stat(file.c_str(), &found) != 0 || !S_ISREG(found.st_mode)) return std::nullopt;
    try {
        std::ifstream stream(file, std::ios::binary);
        const Json values = Json::parse(stream).at("spacing");
        if (!values.is_array() || values.size() != 3) throw InputError("");
        return Spacing{values[0].get<double>(), values[1].get<double>(), values[2].get<double>()};
    } catch (const std::exception&) {
        throw InputError(file + " does not hold {\"spacing\": [z, y, x]} in millimetres; correct it");
    }
}

}  // namespace segship
