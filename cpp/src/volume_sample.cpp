// A case in numpy's .npz: the form of a package's golden sample (src/segship/inference/volumes.py, sample_volume).

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include <zip.h>

#include "errors.hpp"
#include "volume_formats.hpp"
#include "volumes.hpp"

namespace segship {
namespace {

constexpr std::size_t kHeader = std::size_t{1} << 16;  // more than the header of any .npy

struct Close {
    void operator()(zip_t* archive) const { zip_discard(archive); }
    void operator()(zip_file_t* member) const { zip_fclose(member); }
};

InputError no_sample(const std::string& name, const std::string& why) {
    return InputError(name + " is no sample of a case (" + why + "); it holds channels and spacing, as numpy.savez writes them");
}

class Sample {
public:
    Sample(const std::string& path, const VolumeLimits& limits, std::string name) : limits_(limits), name_(std::move(name)) {
        int code = 0;
        archive_.reset(zip_open(path.c_str(), ZIP_RDONLY, &code));
        if (!archive_) throw no_sample(name_, "it is no zip file");
    }

    bool has(const char* entry) const { return zip_name_locate(archive_.get(), entry, 0) >= 0; }

    // At most `most` bytes of an entry, unpacked.
    std::vector<std::uint8_t> bytes(const char* entry, std::size_t most) const {
        zip_stat_t about;
        zip_stat_init(&about);
        if (zip_stat(archive_.get(), entry, 0, &about) != 0 || (about.valid & ZIP_STAT_SIZE) == 0) {
            throw no_sample(name_, std::string(entry) + " is missing");
        }
        if (about.size > most) throw no_sample(name_, std::string(entry) + " is larger than any real one");
        const std::unique_ptr<zip_file_t, Close> member(zip_fopen(archive_.get(), entry, 0));
        std::vector<std::uint8_t> out(about.size);
        if (!member || zip_fread(member.get(), out.data(), out.size()) != static_cast<zip_int64_t>(out.size())) {
            throw no_sample(name_, std::string(entry) + " cannot be unpacked");
        }
        return out;
    }

    Array<float> numbers(const char* entry) const {
        const std::size_t most = std::min(limits_.max_bytes, 8 * limits_.max_pixels + kHeader);
        const std::vector<std::uint8_t> data = bytes(entry, most);
        MemorySource source(data.data(), data.size());
        return read_array(source, limits_, name_);
    }

    Spacing spacing() const {
        const std::vector<std::uint8_t> data = bytes("spacing.npy", kHeader);
        const std::string text(data.begin(), data.end());
        Spacing out{};
        if (text.find("'<f8'") == std::string::npos || text.find("(3,)") == std::string::npos || data.size() < sizeof out) {
            throw no_sample(name_, "its spacing is not three numbers of float64");
        }
        std::memcpy(out.data(), data.data() + data.size() - sizeof out, sizeof out);
        return out;
    }

private:
    VolumeLimits limits_;
    std::string name_;
    std::unique_ptr<zip_t, Close> archive_;
};

LabelMap as_labels(const Array<float>& values, const std::string& name) {
    LabelMap out(values.shape);
    for (std::size_t i = 0; i < values.size(); ++i) {
        const float value = values.data[i];
        if (!(value >= 0 && value <= 65535) || value != std::floor(value)) {
            throw no_sample(name, "the labels of its previous stage are no whole numbers");
        }
        out.data[i] = static_cast<std::uint16_t>(value);
    }
    return out;
}

}  // namespace

Volume read_sample(const std::string& path, const VolumeLimits& limits, const std::string& name) {
    const Sample sample(path, limits, name.empty() ? path : name);
    Volume volume = volume_from_array(sample.numbers("channels.npy"), sample.spacing(), name);
    if (sample.has("previous.npy")) volume.previous = as_labels(sample.numbers("previous.npy"), name);
    return volume;
}

}  // namespace segship
