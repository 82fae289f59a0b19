// The files of one volume's answer: labels in the case's geometry, probabilities in nnU-Net v2's form
// (src/segship/inference/volume_files.py).

#include <cmath>
#include <filesystem>

#include "decode2d.hpp"
#include "errors.hpp"
#include "files.hpp"
#include "npy.hpp"
#include "orientation.hpp"
#include "plain_pickle.hpp"
#include "predict_volume.hpp"
#include "volume_view.hpp"
#include "volumes.hpp"

namespace segship {
namespace {

const char* const kSuffixes[] = {".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".bmp", ".tif", ".tiff"};

// Of the case as it was read, where its axes were turned; none where they stayed the file's.
std::optional<Affine> turned_affine_of(const Geometry& geometry) {
    if (!geometry.turned) return std::nullopt;
    std::vector<std::size_t> sides(3);
    for (std::size_t axis = 0; axis < 3; ++axis) sides[axis] = geometry.shape[(*geometry.turned)[axis].axis];
    return multiply(geometry.affine, inverse(undo_turn(*geometry.turned, sides)));
}

Array<double> as_array(const Affine& affine) {
    Array<double> out({4, 4});
    for (std::size_t i = 0; i < 4; ++i) std::copy(affine[i].begin(), affine[i].end(), out.data.begin() + static_cast<std::ptrdiff_t>(4 * i));
    return out;
}

void write_shape(Pickle& out, const Shape3& shape) {
    out.tuple([&] {
        for (const std::size_t side : shape) out.number(side);
    });
}

void write_nibabel(Pickle& out, const Geometry& geometry) {
    const auto turned = turned_affine_of(geometry);
    out.text("nibabel_stuff");
    out.dict([&] {
        out.text("original_affine");
        out.array(as_array(geometry.affine));
        if (turned) {
            out.text("reoriented_affine");
            out.array(as_array(*turned));
        }
    });
}

void write_sitk(Pickle& out, const Geometry& geometry) {
    const auto turned = turned_affine_of(geometry);
    Affine lps = turned.value_or(geometry.affine);
    for (std::size_t i = 0; i < 2; ++i) {
        for (double& value : lps[i]) value = -value;
    }
    double lengths[3];
    for (std::size_t k = 0; k < 3; ++k) {
        lengths[k] = std::sqrt(lps[0][k] * lps[0][k] + lps[1][k] * lps[1][k] + lps[2][k] * lps[2][k]);
        if (lengths[k] == 0) lengths[k] = 1;
    }
    out.text("sitk_stuff");
    out.dict([&] {
        out.text("spacing");
        out.tuple([&] {
            for (const double length : lengths) out.number(length);
        });
        out.text("origin");
        out.tuple([&] {
            for (std::size_t i = 0; i < 3; ++i) out.number(lps[i][3]);
        });
        out.text("direction");
        out.tuple([&] {
            for (std::size_t row = 0; row < 3; ++row) {
                for (std::size_t i = 0; i < 3; ++i) out.number(lps[row][i] / lengths[i]);
            }
        });
        if (turned) {
            out.text("original_orientation");
            out.text(directions(geometry.affine));
        }
    });
}

// What nnU-Net v2 pickles beside probabilities: builtin types and numpy arrays only.
std::string properties_of(const VolumePrediction& found, const Json& manifest) {
    const Moved *cropped = nullptr, *turned = nullptr;
    for (const Moved& step : found.frame.moved) {
        if (!cropped && step.kind == Moved::Kind::crop) cropped = &step;
        if (!turned && step.kind == Moved::Kind::transpose) turned = &step;
    }
    const Shape3 whole = cropped ? cropped->before : turned ? turned->after : found.frame.shape;
    const Shape3 inside = cropped ? cropped->after : whole, start = cropped ? cropped->start : Shape3{0, 0, 0};
    const auto reader = field<std::string>(manifest.at("input"), "reader");
    Pickle out;
    out.dict([&] {
        out.text("spacing");
        out.list([&] {
            for (const double length : found.frame.spacing) out.number(length);
        });
        out.text("shape_before_cropping");
        write_shape(out, whole);
        out.text("bbox_used_for_cropping");
        out.list([&] {
            for (std::size_t i = 0; i < 3; ++i) {
                out.list([&] {
                    out.number(start[i]);
                    out.number(start[i] + inside[i]);
                });
            }
        });
        out.text("shape_after_cropping_and_before_resampling");
        write_shape(out, inside);
        const auto& geometry = found.volume.geometry;
        if (!geometry || reader == "image-2d" || reader == "tiff-3d") return;
        if (reader.rfind("nibabel", 0) == 0) {
            write_nibabel(out, *geometry);
        } else {
            write_sitk(out, *geometry);
        }
    });
    return std::move(out).finished();
}

void check_probabilities(const VolumePrediction& found) {
    if (found.probabilities.data.empty()) throw UsageError("probabilities were not computed; ask for them when predicting");
}

std::vector<std::string> save_npz(const VolumePrediction& found, const Json& manifest, const std::string& path) {
    Npz file;
    file.add_labels("labels", found.labels, found.label_bits == 8);
    const Array<double> spacing({3}, std::vector<double>(found.frame.spacing.begin(), found.frame.spacing.end()));
    file.add("spacing", spacing);
    std::vector<std::string> names;
    for (const auto& label : class_labels(manifest)) names.push_back(field<std::string>(label, "name"));
    file.add_texts("classes", names);
    if (!found.probabilities.data.empty()) file.add("probabilities", found.probabilities);
    file.save(path);
    return {path};
}

}  // namespace

std::vector<std::string> save_volume(const VolumePrediction& found, const Json& manifest, const std::string& path) {
    const std::string small = lower(path);
    if (ends_with(small, ".npz")) return save_npz(found, manifest, path);
    for (const char* suffix : kSuffixes) {
        if (ends_with(small, suffix)) return write_labels(path, found.labels, found.label_bits, found.volume);
    }
    throw OutputError(std::filesystem::path(path).filename().string() +
                      ": labels of a volume are kept as .nii.gz, .nii, .nrrd, .mha, .png, .bmp, .tif, .tiff or .npz");
}

std::vector<std::string> write_case(const VolumePrediction& found, const Json& manifest, const std::string& folder,
                                    const std::string& name, const std::string& ending, bool with_probabilities) {
    const std::filesystem::path place(folder);
    auto files = write_labels((place / (name + ending)).string(), found.labels, found.label_bits, found.volume);
    if (!with_probabilities) return files;
    check_probabilities(found);
    Npz npz;
    npz.add("probabilities", found.probabilities);
    files.push_back((place / (name + ".npz")).string());
    npz.save(files.back());
    files.push_back((place / (name + ".pkl")).string());
    write_text(files.back(), properties_of(found, manifest));
    return files;
}

}  // namespace segship
