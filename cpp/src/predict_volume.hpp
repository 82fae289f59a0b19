#pragma once
// Volumes from file to labels, by the manifest alone: what src/segship/inference/volume_predictor.py does.
//
//     Volume volume = read_volume(files, manifest, limits, name);                    (volumes.hpp)
//     VolumePrediction found = predict_volume(std::move(volume), manifest, members, options);
//     save_volume(found, manifest, "liver.nii.gz");  or  write_case(found, manifest, folder, "liver", ".nii.gz", true);
//
// A cascade's second stage needs `previous`, the labels of its first on the case's own grid: whoever opens packages
// runs the first one (manifest field previous_stage) on the same Volume and gives its labels here.

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "array.hpp"
#include "json.hpp"
#include "volume.hpp"

namespace segship {

// What the user may change about the windows; unset: as the manifest says.
struct TileOptions {
    std::optional<double> step_size;              // step as a part of the window, 0 < step <= 1
    bool mirror = true;                           // test-time mirroring where the manifest has it
    std::optional<std::vector<int>> mirror_axes;  // mirror along these alone, of the manifest's
    std::size_t batch = 0;                        // windows through the network at once; 0: by their size
    bool crop_remainder = false;                  // leave short remainders out as MLPerf does
    bool half_sums = false;                       // sum in float16 as nnU-Net v2 does, to reproduce its files
};

using WindowProgress = std::function<void(std::size_t done, std::size_t total)>;

struct VolumeOptions {
    TileOptions tiles;
    bool probabilities = false;  // compute (K, z, y, x) float32 on the case's own grid
    bool stages = false;         // keep "read", "preprocessed", "network", "decoded"
    bool postprocess = true;     // apply the package's own component rules
    WindowProgress progress;     // told windows done and windows of the case; may be empty
};

// The answer for one case. Arrays are (z, y, x) on the case's own grid.
struct VolumePrediction {
    std::string name;
    LabelMap labels;
    Array<std::uint8_t> masks;   // (K, z, y, x) 0 or 1, of independent classes only
    Array<float> probabilities;  // (K, z, y, x), where asked for
    std::vector<Stage> stages;
    std::vector<std::string> notes;
    bool constant_output = false;  // the network answered the same everywhere
    int label_bits = 8;            // how labels are written: 16 where ids go beyond 255
    Volume volume;                 // spacing and geometry for writing; its channels are empty
    VolumeFrame frame;
};

// `members` are the networks chosen, one function an ensemble member: (N, C, *window) to raw logits (N, K, *window)
// as the first output; any N (a static batch is filled up behind it). Raises InputError, PackageError, EngineError.
VolumePrediction predict_volume(Volume volume, const Json& manifest, const std::vector<NetworkRun>& members,
                                const VolumeOptions& options = {}, const LabelMap* previous = nullptr);

// (1, C, *window) where windows are so large that each goes through the network alone, else empty: an engine that is
// told the one shape it will see plans its memory ahead.
Shape lone_window(const Json& manifest);

// Write the labels; the suffix chooses the form (.nii.gz .nii .png .bmp .tif .tiff .npz). A TIFF of three axes gets its
// spacing in a json beside it. Returns the files written. Raises OutputError.
std::vector<std::string> save_volume(const VolumePrediction& found, const Json& manifest, const std::string& path);

// `<name><ending>` in a folder, with probabilities (computed before) also `<name>.npz` and `<name>.pkl` in nnU-Net v2's form.
std::vector<std::string> write_case(const VolumePrediction& found, const Json& manifest, const std::string& folder,
                                    const std::string& name, const std::string& ending, bool probabilities);

}  // namespace segship
