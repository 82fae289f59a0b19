#include "volumes.hpp"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "errors.hpp"
#include "nifti.hpp"
#include "orientation.hpp"
#include "volume_cases.hpp"
#include "volume_formats.hpp"
#include "volume_itk.hpp"
#include "volume_text.hpp"
#include "volume_view.hpp"

namespace segship {
namespace {

bool is_nifti(const std::string& lower_name) { return ends_with(lower_name, ".nii") || ends_with(lower_name, ".nii.gz"); }

// ------------------------------------------------------------------------------------------------- turning

struct Reader {
    std::string name;          // of the manifest
    std::string orientation;   // to turn to, or empty
    bool itk = false;

    explicit Reader(const Json& manifest) {
        const Json& spec = manifest.at("input");
        name = field<std::string>(spec, "reader");
        itk = name.rfind("simpleitk", 0) == 0;
        orientation = field_or<std::string>(spec, "orientation", ends_with(name, "-reorient") ? "RAS" : "");
    }
};

std::vector<double> turned_zooms(const Geometry& geometry, const Orientation& there, const Reader& reader) {
    std::vector<double> zooms(3);
    if (reader.name == "nibabel-reorient") {
        // nibabel writes a new header then, whose voxel sizes come from the affine
        const Affine affine = turned_affine(geometry.affine, there, geometry.shape);
        for (std::size_t k = 0; k < 3; ++k) {
            double sum = 0;
            for (std::size_t i = 0; i < 3; ++i) sum += affine[i][k] * affine[i][k];
            zooms[k] = static_cast<double>(static_cast<float>(std::sqrt(sum)));
        }
        return zooms;
    }
    for (std::size_t axis = 0; axis < 3; ++axis) zooms[there[axis].axis] = geometry.spacing[axis];
    return zooms;
}

// (C, z, y, x) in the file's directions to those the manifest asks for, and to the reader's order of axes.
Volume turned(Array<float> channels, Geometry geometry, const Reader& reader, const std::string& name) {
    Volume out;
    out.name = name;
    std::vector<double> zooms = geometry.spacing;
    std::optional<Orientation> there;
    if (!reader.orientation.empty()) {
        const auto have = io_orientation(geometry.affine);
        if (!have) throw InputError(name + ": the header does not say where its axes point; correct its affine");
        const Orientation wanted = orientation_of(reader.orientation);
        const Orientation turn = transform_between(*have, wanted);
        if (!is_identity(turn)) {
            there = turn;
            zooms = turned_zooms(geometry, turn, reader);
            geometry.turned = transform_between(wanted, *have);
        }
    }
    if (there || !geometry.reverse) {
        const Shape3 shape = last_three(channels.shape);
        const std::size_t count_channels = channels.shape[0], voxels = count(shape);
        const auto arranged = [&](const float* data) {
            View<float> view = flipped_order(view_of(data, shape));  // the file's own axes
            if (there) view = turned_view(view, *there);
            return geometry.reverse ? flipped_order(view) : view;
        };
        Array<float> moved(as_shape(count_channels, arranged(channels.data.data()).shape));
        for (std::size_t c = 0; c < count_channels; ++c) {
            copy_view(arranged(channels.data.data() + c * voxels), moved.data.data() + c * voxels);
        }
        channels = std::move(moved);
    }
    out.spacing = geometry.reverse ? Spacing{zooms[2], zooms[1], zooms[0]} : Spacing{zooms[0], zooms[1], zooms[2]};
    out.channels = std::move(channels);
    out.geometry = std::move(geometry);
    return out;
}

// ------------------------------------------------------------------------------------------------- reading

Shape with_channel(const Shape& shape) {
    Shape out{1};
    out.insert(out.end(), shape.begin(), shape.end());
    return out;
}

// A 2D file as one slice, so far from the next that no resampling joins them.
Volume flat(Array<float> values, Geometry geometry, const Reader& reader, const std::string& name) {
    if (!reader.orientation.empty()) {
        throw InputError(name + " has two axes; it cannot be turned to " + reader.orientation + ", give a volume");
    }
    Volume out;
    const auto& zooms = geometry.spacing;
    out.spacing = {std::max(zooms[0], zooms[1]) * 999, zooms[1], zooms[0]};
    out.name = name;
    values.shape = with_channel(with_channel(values.shape));
    out.channels = std::move(values);
    out.geometry = std::move(geometry);
    return out;
}

Volume read_nifti_file(const std::string& path, const std::string& name, const Reader& reader, const VolumeLimits& limits) {
    FileSource source(path, limits.max_bytes);
    NiftiFile file = read_nifti(source, limits, name);
    const std::size_t axes = file.header.shape.size();
    if (axes > (reader.itk ? 4 : 3) || (axes == 2 && !reader.itk)) {
        throw InputError(name + " has " + std::to_string(axes) + " axes; this package reads NIfTI files of three" +
                         (reader.itk ? " or four" : ""));
    }
    Geometry geometry;
    geometry.affine = file.header.affine;
    geometry.spacing = file.header.zooms;
    if (reader.itk) {
        for (double& zoom : geometry.spacing) zoom *= file.header.unit_mm;
        for (std::size_t i = 0; i < 3; ++i) {
            for (double& value : geometry.affine[i]) value *= file.header.unit_mm;
        }
    }
    geometry.shape = file.header.shape;
    geometry.shape.resize(std::min<std::size_t>(3, axes));
    geometry.spacing.resize(std::min<std::size_t>(3, axes));
    geometry.header = std::move(file.header.block);
    geometry.reverse = reader.name != "nibabel-stored";
    Volume out;
    if (axes == 2) {
        out = flat(std::move(file.values), std::move(geometry), reader, name);
    } else {
        if (axes == 3) file.values.shape = with_channel(file.values.shape);
        out = turned(std::move(file.values), std::move(geometry), reader, name);
    }
    if (reader.itk && !file.header.orthonormal) {
        out.notes.push_back("the axes are not at right angles; SimpleITK refuses such files");
    }
    return out;
}

Volume read_itk_file(const std::string& path, const std::string& name, const Reader& reader, const VolumeLimits& limits) {
    ItkFile file = read_itk(path, limits, name);
    Geometry geometry;
    geometry.affine = file.affine;
    geometry.shape = file.shape;
    geometry.spacing = file.spacing;
    geometry.shape.resize(std::min<std::size_t>(3, file.shape.size()));
    geometry.spacing.resize(geometry.shape.size());
    if (file.shape.size() == 2) return flat(std::move(file.values), std::move(geometry), reader, name);
    if (file.shape.size() == 3) file.values.shape = with_channel(file.values.shape);
    return turned(std::move(file.values), std::move(geometry), reader, name);
}

Volume read_picture_file(const std::string& path, const std::string& name, const VolumeLimits& limits) {
    Volume out;
    out.channels = read_picture(path, limits, name);
    out.spacing = {kPictureSpacing[0], kPictureSpacing[1], kPictureSpacing[2]};
    out.name = name;
    Geometry geometry;
    geometry.shape = {out.channels.shape[3], out.channels.shape[2]};
    geometry.spacing = {out.spacing[2], out.spacing[1], out.spacing[0]};
    geometry.affine = plain_affine(geometry.spacing);
    out.geometry = geometry;
    return out;
}

Volume read_tiff_file(const std::string& path, const std::string& name, const VolumeLimits& limits) {
    Volume out;
    out.channels = read_tiff3d(path, limits, name);
    const auto found = read_spacing(path);
    if (!found) {
        const std::string beside = std::filesystem::path(spacing_beside(path)).filename().string();
        out.notes.push_back("no " + beside + " with its spacing; 1 mm is assumed");
    }
    out.spacing = found.value_or(Spacing{1, 1, 1});
    out.name = name;
    Geometry geometry;
    geometry.shape = {out.channels.shape[2], out.channels.shape[1], out.channels.shape[0]};
    geometry.spacing = {out.spacing[2], out.spacing[1], out.spacing[0]};
    geometry.affine = plain_affine(geometry.spacing);
    out.geometry = geometry;
    out.channels.shape = with_channel(out.channels.shape);
    return out;
}

Volume read_one(const std::string& path, const Reader& reader, const VolumeLimits& limits) {
    const std::string name = std::filesystem::path(path).filename().string(), small = lower(name);
    if (reader.name == "tiff-3d") return read_tiff_file(path, name, limits);
    if (reader.name == "image-2d") return read_picture_file(path, name, limits);
    if (reader.name == "nibabel-stored" && ends_with(small, ".npy")) {
        Volume out = volume_from_array(read_prepared(path, limits, name), {1, 1, 1}, name);
        out.prepared = true;
        return out;
    }
    if (is_nifti(small)) return read_nifti_file(path, name, reader, limits);
    if (reader.itk && (ends_with(small, ".nrrd") || ends_with(small, ".mha"))) return read_itk_file(path, name, reader, limits);
    if (reader.itk && ends_with(small, ".gipl")) {
        throw InputError(name + " is a GIPL volume, which the C++ runner does not read; predict it with `segship predict`");
    }
    throw InputError(name + " does not end in .nii, .nii.gz" + (reader.itk ? ", .nrrd, .mha" : "") + ", which this package reads");
}

// ------------------------------------------------------------------------------------------ channels as a case

bool close(double a, double b, double atol) { return std::abs(a - b) <= atol + 1e-5 * std::abs(b); }

std::string rounded_text(const Spacing& spacing) {
    Spacing rounded{};
    for (std::size_t i = 0; i < 3; ++i) rounded[i] = std::nearbyint(spacing[i] * 1e4) / 1e4;
    return tuple_text(rounded);
}

bool same_place(const Volume& a, const Volume& b) {
    if (!a.geometry || !b.geometry) return true;
    for (std::size_t i = 0; i < 4; ++i) {
        for (std::size_t k = 0; k < 4; ++k) {
            if (!close(a.geometry->affine[i][k], b.geometry->affine[i][k], 1e-3)) return false;
        }
    }
    return true;
}

void check_same_grid(const Volume& part, const Volume& first) {
    bool same = part.shape() == first.shape();
    for (std::size_t i = 0; i < 3; ++i) same = same && close(part.spacing[i], first.spacing[i], 1e-8);
    if (same) return;
    throw InputError(part.name + " has " + tuple_text(part.shape()) + " voxels of " + rounded_text(part.spacing) + " mm, " +
                     first.name + " has " + tuple_text(first.shape()) + " of " + rounded_text(first.spacing) +
                     " mm; the channels of a case lie on one grid");
}

void add_note(std::vector<std::string>& notes, const std::string& note) {
    if (std::find(notes.begin(), notes.end(), note) == notes.end()) notes.push_back(note);
}

}  // namespace

Volume read_volume(const std::vector<std::string>& files, const Json& manifest, const VolumeLimits& limits,
                   const std::string& name) {
    if (files.empty()) throw InputError("a case has no file; give a file, or one file a channel");
    const Json& spec = manifest.at("input");
    const Reader reader(manifest);
    Volume out = read_one(files[0], reader, limits);
    bool moved = false;
    for (std::size_t i = 1; i < files.size(); ++i) {
        Volume part = read_one(files[i], reader, limits);
        check_same_grid(part, out);
        moved = moved || !same_place(part, out);
        for (const auto& note : part.notes) add_note(out.notes, note);
        if (i == 1) out.channels.data.reserve(out.channels.size() + part.channels.size() * (files.size() - 1));
        out.channels.data.insert(out.channels.data.end(), part.channels.data.begin(), part.channels.data.end());
        out.channels.shape[0] += part.channels.shape[0];
    }
    if (moved) {
        add_note(out.notes, "the channels' files disagree about where the case lies in space; the first one's place is kept");
    }
    const std::string ending = field<std::string>(spec, "file_ending"), folder_file = field_or<std::string>(spec, "folder_file", "");
    out.name = name.empty() ? case_name(files[0], ending, folder_file) : name;
    return out;
}

Volume volume_from_array(Array<float> array, const Spacing& spacing, const std::string& name) {
    if (array.rank() == 3) array.shape = with_channel(array.shape);
    if (array.rank() != 4) {
        throw InputError(name + " has shape " + tuple_text(array.shape) + "; give numbers as (C, z, y, x) or (z, y, x)");
    }
    Volume out;
    out.channels = std::move(array);
    out.spacing = spacing;
    out.name = name;
    return out;
}

LabelMap read_labels(const std::string& file, const Json& manifest, const VolumeLimits& limits) {
    const Volume volume = read_volume({file}, manifest, limits);
    LabelMap out(as_shape(volume.shape()));
    bool whole = volume.channels.shape[0] == 1;
    for (std::size_t i = 0; i < out.size() && whole; ++i) {
        const float value = volume.channels.data[i];
        whole = value >= 0 && value <= 65535 && value == std::floor(value);
        out.data[i] = whole ? static_cast<std::uint16_t>(value) : std::uint16_t{0};
    }
    if (!whole) {
        const std::string name = std::filesystem::path(file).filename().string();
        throw InputError(name + " does not hold whole numbers, one a voxel; give a label file");
    }
    return out;
}

}  // namespace segship
