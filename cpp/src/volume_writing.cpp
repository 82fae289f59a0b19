// Labels of a volume as files, on the file's own axes and under its own header.

#include <cstdio>
#include <filesystem>

#include "errors.hpp"
#include "files.hpp"
#include "nifti.hpp"
#include "volume_formats.hpp"
#include "volume_itk.hpp"
#include "volume_text.hpp"
#include "volume_view.hpp"
#include "volumes.hpp"

namespace segship {
namespace {

bool is_picture(const Volume& volume) { return volume.geometry && volume.geometry->shape.size() == 2; }

// Labels (z, y, x) on the file's own axes, the last one first: the order in which a file holds them.
LabelMap in_file_order(const LabelMap& labels, const Geometry& geometry) {
    if (geometry.reverse && !geometry.turned) return labels;
    View<std::uint16_t> view = view_of(labels.data.data(), last_three(labels.shape));
    if (geometry.reverse) view = flipped_order(view);
    if (geometry.turned) view = turned_view(view, *geometry.turned);
    view = flipped_order(view);
    LabelMap out(as_shape(view.shape));
    copy_view(view, out.data.data());
    return out;
}

Geometry geometry_of(const Volume& volume, const Shape& shape) {
    if (volume.geometry) return *volume.geometry;
    Geometry out;
    out.shape = {shape[2], shape[1], shape[0]};
    out.spacing = {volume.spacing[2], volume.spacing[1], volume.spacing[0]};
    out.affine = plain_affine(out.spacing);
    return out;
}

}  // namespace

std::vector<std::uint8_t> label_bytes(const LabelMap& labels, int bits, const Volume& volume, const std::string& ending) {
    const std::string suffix = lower(ending);
    const bool tiff = suffix == ".tif" || suffix == ".tiff";
    if (suffix == ".png" || suffix == ".bmp" || (tiff && labels.shape[0] == 1 && is_picture(volume))) {
        if (labels.shape[0] != 1) {
            throw OutputError(volume.name + " has " + std::to_string(labels.shape[0]) + " slices; a " + suffix +
                              " holds one, write .nii.gz");
        }
        return encode_picture(labels, bits, suffix);
    }
    if (tiff) return encode_tiff(labels, bits);
    const bool itk = suffix == ".nrrd" || suffix == ".mha";
    if (suffix != ".nii" && suffix != ".nii.gz" && !itk) {
        throw UsageError("labels of a volume are not written as '" + ending + "'; use .nii.gz");
    }
    const Geometry geometry = geometry_of(volume, labels.shape);
    std::vector<std::size_t> shape = geometry.shape;
    if (shape.size() > 3) shape.resize(3);
    if (itk) return encode_itk(in_file_order(labels, geometry), shape, bits, geometry.affine, geometry.spacing, suffix);
    const auto header = geometry.header.empty() ? new_header(geometry.affine, geometry.spacing) : geometry.header;
    return encode_nifti(in_file_order(labels, geometry), shape, bits, header, suffix == ".nii.gz");
}

void write_file(const std::string& path, const std::vector<std::uint8_t>& content) {
    replacing(path, [&](const std::string& temporary) {
        std::FILE* file = std::fopen(temporary.c_str(), "wb");
        const bool whole = file != nullptr && std::fwrite(content.data(), 1, content.size(), file) == content.size();
        const std::string reason = whole ? "" : last_failure();
        if ((file != nullptr && std::fclose(file) != 0) || !whole) {
            throw OutputError("cannot write " + path + ": " + (reason.empty() ? last_failure() : reason) +
                              "; choose another place with -o or free some room");
        }
    });
}

std::vector<std::string> write_labels(const std::string& path, const LabelMap& labels, int bits, const Volume& volume) {
    const std::string small = lower(path);
    const std::string ending = ends_with(small, ".nii.gz") ? ".nii.gz" : std::filesystem::path(small).extension().string();
    write_file(path, label_bytes(labels, bits, volume, ending));
    std::vector<std::string> out{path};
    if ((ending == ".tif" || ending == ".tiff") && !is_picture(volume)) {
        const std::string beside = spacing_beside(path);
        write_text(beside, "{\"spacing\": [" + number_text(volume.spacing[0]) + ", " + number_text(volume.spacing[1]) + ", " +
                               number_text(volume.spacing[2]) + "]}\n");
        out.push_back(beside);
    }
    return out;
}

}  // namespace segship
