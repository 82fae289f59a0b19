#pragma once
// Run a .segship package from C++: pictures and volumes in, labels on their own grid out, from the manifest alone.
//
//     segship::Options options;
//     options.precision = "int8";
//     segship::Model model("nuclei.segship", options);
//     segship::Prediction result = model.predict("cell.png");
//     result.labels;                          // (H, W) ids, on the picture's own grid
//     result.save("cell_mask.png");
//
// Every failure is a segship::SegshipError (errors.hpp): one line, what is wrong and what to do next.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "segship/array.hpp"
#include "segship/errors.hpp"

namespace segship {

// How a package is opened. The names and meanings are those of segship.load and of the command line.
struct Options {
    // fp32, fp16, bf16, int8, int16, one of their aliases, or auto: the fastest variant whose recorded loss is small and
    // that this processor computes in.
    std::string precision = "fp32";
    // Of the engine; 0 is its own choice.
    int threads = 0;
    // How many inferences may be in flight at once.
    int streams = 1;
    // Pictures, or windows of one, that go through the network at once.
    std::size_t batch = 1;
    // Where compiled networks are kept; empty: $SEGSHIP_CACHE_DIR, else the user's cache folder.
    std::string cache_dir;
    // Decoded pictures beyond this are refused before a pixel is read, files beyond that before they are opened.
    std::size_t max_pixels = 250'000'000;
    std::size_t max_bytes = std::size_t{1} << 30;

    // Of volumes only.
    bool mirror = true;              // test-time mirroring where the manifest has it
    std::vector<int> mirror_axes;    // along these alone, of the manifest's; used where `some_mirror_axes` says so
    bool some_mirror_axes = false;
    double step_size = 0;            // window step as a part of the window; 0: the manifest's
    std::vector<std::string> folds;  // ensemble members by name or number; empty: all
    bool postprocess = true;         // the package's own component rules
    std::string previous_stage;      // package of a cascade's first stage; empty: beside this one
};

// What is computed besides the decision.
struct Ask {
    bool probabilities = false;
    bool stages = false;
};

// Told while a volume is under way: windows done, windows altogether.
using Progress = std::function<void(std::size_t, std::size_t)>;

// A picture from memory: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16 or float32, RGB(A).
using PictureArray = std::variant<Array<std::uint8_t>, Array<std::uint16_t>, Array<float>>;

// A volume from memory: (C, z, y, x), or (z, y, x) of one channel, with its spacing in millimetres.
struct VolumeArray {
    Array<float> values;
    std::array<double, 3> spacing_zyx{1.0, 1.0, 1.0};
};

class Model;

// The answer for one case, on the case's own grid. Which fields are filled depends on what the package decides.
class Prediction {
public:
    std::string name;
    // (H, W) or (z, y, x) ids. Where independent classes overlap the later one stands on top. Empty for a saliency map
    // that the package sets no threshold for.
    Array<std::uint16_t> labels;
    // (K, ...) 0 or 1, one mask a class; filled where classes are independent of each other.
    Array<std::uint8_t> masks;
    // (H, W) of 0..1; filled for saliency maps.
    Array<float> saliency;
    // (K, ...) of 0..1, where asked for.
    Array<float> probabilities;
    // "read", "preprocessed", "network", "decoded", where asked for.
    std::vector<Stage> stages;
    // What a user should know about this case.
    std::vector<std::string> notes;

    // Write the decision as `segship predict` does: .png (one class: 0/255; several independent classes: a folder each),
    // .npz, or a volume's own file ending with the input's geometry. Returns the files written. Raises OutputError.
    std::vector<std::string> save(const std::string& path) const;

private:
    friend class Model;
    // How this kind of case is written.
    std::function<std::vector<std::string>(const std::string&)> save_;
};

// A package opened on OpenVINO: opened once, used for any number of cases, from up to `streams` threads at once.
class Model {
public:
    // Opens the package and compiles its network, so that errors show now.
    // Raises PackageMissing, PackageTampered, PackageTooNew, PackageError, PrecisionMissing, EngineError, UsageError.
    explicit Model(const std::string& package, const Options& options = {});
    ~Model();
    Model(Model&&) noexcept;
    Model& operator=(Model&&) noexcept;

    // One picture, or one case of a volume: its file, or one file a channel. Raises InputError.
    Prediction predict(const std::string& file, const Ask& ask = {}) const;
    Prediction predict(const std::vector<std::string>& files, const Ask& ask = {}, const Progress& progress = {}) const;
    Prediction predict(const PictureArray& picture, const Ask& ask = {}) const;
    Prediction predict(const VolumeArray& volume, const Ask& ask = {}, const Progress& progress = {}) const;

    // The stages of one picture or volume: "read", "preprocessed", "network", "decoded".
    std::vector<Stage> trace(const std::string& file) const;

    // The bare network: preprocessed (N, C, [d,] h, w) in, all raw outputs out, members averaged as the manifest says.
    std::vector<Array<float>> network(const Array<float>& x) const;

    // The package's manifest.json, as text.
    const std::string& manifest() const;
    bool takes_volumes() const;
    // Which precision runs, and why.
    const std::string& precision() const;
    const std::string& why() const;

private:
    class Inner;
    std::unique_ptr<Inner> inner_;
};

}  // namespace segship
