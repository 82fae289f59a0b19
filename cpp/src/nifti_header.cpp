#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <type_traits>

#include <nifti2_io.h>

#include "errors.hpp"
#include "nifti.hpp"

namespace segship {
namespace {

constexpr std::size_t kFirst = 348, kSecond = 540;  // sizeof_hdr of NIfTI-1 and NIfTI-2
const char* const kCopyAgain = "it is damaged or cut short, copy or download that file again";

// A header that nibabel refuses, with nibabel's words; the caller knows the file's name.
struct Damaged {
    std::string why;
};

// The fields that are read, of either version.
struct Fields {
    std::int64_t dim[8];
    double pixdim[8];
    double written[3];  // pixdim[1..3] before anything is mended
    int datatype;
    double vox_offset;
    double slope, intercept;
    int qform_code, sform_code, units;
    double quatern[3], qoffset[3];
    double srow[3][4];
    std::string magic;
    unsigned char eol[4];
    std::int64_t glmin;
    bool second;
};

std::uint32_t little(const std::uint8_t* bytes) {
    return bytes[0] | (std::uint32_t{bytes[1]} << 8) | (std::uint32_t{bytes[2]} << 16) | (std::uint32_t{bytes[3]} << 24);
}

std::uint32_t big(const std::uint8_t* bytes) {
    return bytes[3] | (std::uint32_t{bytes[2]} << 8) | (std::uint32_t{bytes[1]} << 16) | (std::uint32_t{bytes[0]} << 24);
}

// 348 or 540 where the block begins with that in either byte order.
std::optional<std::size_t> header_size(const std::vector<std::uint8_t>& block) {
    if (block.size() < 4) return std::nullopt;
    for (const std::size_t size : {kFirst, kSecond}) {
        if (little(block.data()) == size || big(block.data()) == size) return size;
    }
    return std::nullopt;
}

// nibabel's guess: of 1 to 7 axes the order is this machine's; of none the size at the block's start says; else the other.
template <typename Header>
bool is_swapped(const Header& header, const std::vector<std::uint8_t>& block) {
    if (header.dim[0] == 0) return big(block.data()) == sizeof(Header);
    return header.dim[0] < 1 || header.dim[0] > 7;
}

template <typename Header>
Header native(const std::vector<std::uint8_t>& block, void (*swap)(Header*), bool& swapped) {
    Header header;
    std::memcpy(&header, block.data(), sizeof header);
    swapped = is_swapped(header, block);
    if (swapped) swap(&header);
    return header;
}

template <typename Header>
void copy_common(const Header& header, Fields& out) {
    for (int i = 0; i < 8; ++i) {
        out.dim[i] = header.dim[i];
        out.pixdim[i] = static_cast<double>(header.pixdim[i]);
    }
    out.datatype = header.datatype;
    out.vox_offset = static_cast<double>(header.vox_offset);
    out.slope = static_cast<double>(header.scl_slope);
    out.intercept = static_cast<double>(header.scl_inter);
    out.qform_code = header.qform_code;
    out.sform_code = header.sform_code;
    out.units = header.xyzt_units;
    const double quatern[3] = {header.quatern_b, header.quatern_c, header.quatern_d};
    const double qoffset[3] = {header.qoffset_x, header.qoffset_y, header.qoffset_z};
    for (int i = 0; i < 3; ++i) {
        out.written[i] = out.pixdim[i + 1];
        out.quatern[i] = quatern[i];
        out.qoffset[i] = qoffset[i];
    }
    for (int i = 0; i < 4; ++i) {
        out.srow[0][i] = header.srow_x[i];
        out.srow[1][i] = header.srow_y[i];
        out.srow[2][i] = header.srow_z[i];
    }
    std::size_t length = 4;
    while (length > 0 && header.magic[length - 1] == '\0') --length;
    out.magic.assign(header.magic, length);
}

Fields read_fields(const std::vector<std::uint8_t>& block, bool& swapped) {
    Fields out{};
    if (block.size() == kFirst) {
        const auto header = native<nifti_1_header>(block, nifti_swap_as_nifti1, swapped);
        copy_common(header, out);
        out.units = static_cast<unsigned char>(header.xyzt_units);
        out.glmin = header.glmin;
        out.second = false;
    } else {
        const auto header = native<nifti_2_header>(block, nifti_swap_as_nifti2, swapped);
        copy_common(header, out);
        std::memcpy(out.eol, header.magic + 4, 4);
        out.second = true;
    }
    return out;
}

// Bytes a voxel of what holds one real number; 0 for colours and complex numbers. Raises Damaged for no known type.
std::size_t item_size(int datatype) {
    switch (datatype) {
        case DT_UINT8: case DT_INT8: return 1;
        case DT_INT16: case DT_UINT16: return 2;
        case DT_INT32: case DT_UINT32: case DT_FLOAT32: return 4;
        case DT_INT64: case DT_UINT64: case DT_FLOAT64: return 8;
        case DT_COMPLEX64: case DT_COMPLEX128: case DT_RGB24: case DT_RGBA32: return 0;
        case 0: case 1: case 255: case DT_FLOAT128: case DT_COMPLEX256:
            throw Damaged{"data code " + std::to_string(datatype) + " not supported"};
        default: throw Damaged{"data code " + std::to_string(datatype) + " not recognized"};
    }
}

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text) {
        const auto byte = static_cast<unsigned char>(c);
        char buffer[8];
        std::snprintf(buffer, sizeof buffer, byte < 32 || byte > 126 ? "\\x%02x" : "%c", byte);
        out += buffer;
    }
    return out;
}

// What nibabel refuses, in its order, and what it mends.
void check_and_mend(Fields& f) {
    item_size(f.datatype);
    for (int i = 1; i <= 3; ++i) {
        if (f.pixdim[i] == 0) f.pixdim[i] = 1;
        f.pixdim[i] = std::abs(f.pixdim[i]);
    }
    if (f.pixdim[0] != 1 && f.pixdim[0] != -1) f.pixdim[0] = 1;
    const std::string single = f.second ? "n+2" : "n+1", pair = f.second ? "ni2" : "ni1";
    if (f.magic != single && f.magic != pair) throw Damaged{"magic string '" + escaped(f.magic) + "' is not valid"};
    const double least = f.second ? 544 : 352;
    if (f.magic == single && f.vox_offset != 0 && f.vox_offset < least) {
        throw Damaged{"vox offset " + general_text(std::trunc(f.vox_offset)) + " too low for single file nifti1"};
    }
    if (f.qform_code < 0 || f.qform_code > 5) f.qform_code = 0;
    if (f.sform_code < 0 || f.sform_code > 5) f.sform_code = 0;
    const unsigned char right[4] = {13, 10, 26, 10}, none[4] = {0, 0, 0, 0};
    if (f.second && std::memcmp(f.eol, right, 4) != 0 && std::memcmp(f.eol, none, 4) != 0) {
        throw Damaged{"EOL check not 0 or 13, 10, 26, 10; data may be corrupted by EOL conversion"};
    }
}

std::vector<std::int64_t> data_shape(const Fields& f) {
    const std::int64_t axes = std::clamp<std::int64_t>(f.dim[0], 0, 7);
    if (axes == 0) return {0};
    std::vector<std::int64_t> shape(f.dim + 1, f.dim + 1 + axes);
    if (f.second || shape.size() < 3) return shape;
    if (shape[0] == -1 && shape[1] == 1 && shape[2] == 1) {  // FreeSurfer's long vectors
        if (f.glmin == 0) throw Damaged{"-1 in dim[1] but 0 in glmin; inconsistent freesurfer type header?"};
        shape[0] = f.glmin;
    } else if (shape[0] == 27307 && shape[1] == 1 && shape[2] == 6) {  // and its ico7 surface
        shape[0] = 163842;
        shape[2] = 1;
    }
    return shape;
}

Affine identity() {
    Affine out{};
    for (std::size_t i = 0; i < 4; ++i) out[i][i] = 1;
    return out;
}

Affine quaternion_affine(const Fields& f) {
    const double *q = f.quatern, *d = f.pixdim;
    const double rest = 1.0 - (q[0] * q[0] + q[1] * q[1] + q[2] * q[2]);
    const double threshold = 3 * (f.second ? 2.220446049250313e-16 : 1.1920928955078125e-07);
    if (rest < 0 && std::abs(rest) >= threshold) {
        char buffer[64];
        std::snprintf(buffer, sizeof buffer, "%e", rest);
        throw Damaged{std::string("w2 should be positive, but is ") + buffer};
    }
    const nifti_dmat44 matrix =
        nifti_quatern_to_dmat44(q[0], q[1], q[2], f.qoffset[0], f.qoffset[1], f.qoffset[2], d[1], d[2], d[3], d[0]);
    Affine out = identity();
    for (std::size_t i = 0; i < 3; ++i) {
        for (std::size_t k = 0; k < 4; ++k) out[i][k] = matrix.m[i][k];
        if (!std::isfinite(d[i + 1]) || !std::isfinite(q[i])) out[0][0] = std::nan("");
    }
    return out;
}

// Of a file that says nothing: the first axis to the left, the middle of the image at 0.
Affine base_affine(const Fields& f) {
    Affine out = identity();
    const auto axes = static_cast<std::size_t>(std::clamp<std::int64_t>(f.dim[0], 0, 3));
    for (std::size_t i = 0; i < 3; ++i) {
        double zoom = i < axes ? f.pixdim[i + 1] : 1;
        const double side = i < axes ? static_cast<double>(f.dim[i + 1]) : 1;
        if (i == 0) zoom = -zoom;
        out[i][i] = zoom;
        out[i][3] = -((side - 1) / 2.0) * zoom;
    }
    return out;
}

Affine best_affine(const Fields& f) {
    if (f.sform_code != 0) {
        Affine out = identity();
        for (std::size_t i = 0; i < 3; ++i) std::copy(f.srow[i], f.srow[i] + 4, out[i].begin());
        return out;
    }
    return f.qform_code != 0 ? quaternion_affine(f) : base_affine(f);
}

double unit_in_mm(int units) {
    const int space = ((units % 8) + 8) % 8, time = units - space;
    if (space > 3) throw Damaged{std::to_string(space)};
    if (time < 0 || time > 48) throw Damaged{std::to_string(time)};
    return space == 1 ? 1000.0 : space == 3 ? 0.001 : 1.0;
}

std::size_t voxel_offset(const Fields& f) {
    if (std::isnan(f.vox_offset)) throw Damaged{"cannot convert float NaN to integer"};
    if (std::isinf(f.vox_offset)) throw Damaged{"cannot convert float infinity to integer"};
    const double least = f.second ? 544 : 352, most = 4611686018427387904.0;  // 2^62
    return static_cast<std::size_t>(std::clamp(f.vox_offset, least, most));
}

bool right_angles(const Affine& affine) {
    double unit[3][3];
    for (std::size_t k = 0; k < 3; ++k) {
        double length = 0;
        for (std::size_t i = 0; i < 3; ++i) length += affine[i][k] * affine[i][k];
        length = std::max(std::sqrt(length), 1e-12);
        for (std::size_t i = 0; i < 3; ++i) unit[i][k] = affine[i][k] / length;
    }
    for (std::size_t a = 0; a < 3; ++a) {
        for (std::size_t b = 0; b < 3; ++b) {
            double product = a == b ? -1 : 0;
            for (std::size_t i = 0; i < 3; ++i) product += unit[i][a] * unit[i][b];
            if (!(std::abs(product) < 1e-3)) return false;
        }
    }
    return true;
}

bool finite(const Affine& affine) {
    return std::all_of(affine.begin(), affine.end(), [](const auto& row) {
        return std::all_of(row.begin(), row.end(), [](double value) { return std::isfinite(value); });
    });
}

void check_grid(const std::vector<std::int64_t>& shape, const Affine& affine, const Fields& f, const std::string& name) {
    if (shape.size() < 2 || *std::min_element(shape.begin(), shape.end()) < 1 || !finite(affine)) {
        throw InputError(name + " declares a grid of " + tuple_text(shape) + " voxels; " + kCopyAgain);
    }
    for (std::size_t i = 0; i < std::min<std::size_t>(3, shape.size()); ++i) {
        if (f.written[i] != 0 || shape[i] == 1) continue;  // nibabel would make it 1
        std::string sizes;
        for (std::size_t k = 0; k < 3; ++k) sizes += (k ? " x " : "") + general_text(f.written[k]);
        throw InputError(name + " has voxels of " + sizes +
                         " mm; the spacing must be positive, correct the file's header");
    }
}

}  // namespace

NiftiHeader parse_header(const std::vector<std::uint8_t>& first, const std::string& name) {
    const auto size = header_size(first);
    if (!size || first.size() < *size) {
        throw InputError(name + " is no NIfTI file: " +
                         (first.empty() ? "empty" : "its first bytes are no header"));
    }
    NiftiHeader out;
    out.block.assign(first.begin(), first.begin() + static_cast<std::ptrdiff_t>(*size));
    Fields f{};
    std::vector<std::int64_t> shape;
    try {
        f = read_fields(out.block, out.swapped);
        check_and_mend(f);
        shape = data_shape(f);
        out.slope = f.slope;
        out.intercept = f.intercept;
        if (f.slope == 0 || !std::isfinite(f.slope)) {
            out.slope = 1;
            out.intercept = 0;
        } else if (!std::isfinite(f.intercept)) {
            throw Damaged{"Valid slope but invalid intercept " + number_text(f.intercept)};
        }
        out.datatype = f.datatype;
        out.affine = best_affine(f);
        out.unit_mm = unit_in_mm(f.units);
        out.offset = voxel_offset(f);
    } catch (const Damaged& error) {
        throw InputError(name + " has a damaged NIfTI header (" + error.why + "); " + kCopyAgain);
    }
    if (f.magic != "n+1" && f.magic != "n+2") {
        throw InputError(name + " keeps its voxels in another file (.img); convert the pair to one .nii.gz");
    }
    out.itemsize = item_size(out.datatype);
    if (out.itemsize == 0) {
        const bool complex = out.datatype == DT_COMPLEX64 || out.datatype == DT_COMPLEX128;
        throw InputError(name + " holds " + (complex ? "complex numbers" : "colours") +
                         "; this package reads one number a voxel");
    }
    while (shape.size() > 3 && shape.back() == 1) shape.pop_back();
    check_grid(shape, out.affine, f, name);
    out.shape.assign(shape.begin(), shape.end());
    out.zooms.assign(f.pixdim + 1, f.pixdim + 1 + shape.size());
    out.orthonormal = right_angles(out.affine);
    return out;
}

// ----------------------------------------------------------------------------------------------------- writing

namespace {

template <typename Header>
std::vector<std::uint8_t> relabelled(const std::vector<std::uint8_t>& block, const std::vector<std::size_t>& shape,
                                     int bits, void (*swap)(Header*)) {
    bool swapped = false;
    Header header = native<Header>(block, swap, swapped);
    std::fill(header.dim, header.dim + 8, 1);
    header.dim[0] = static_cast<std::remove_reference_t<decltype(header.dim[0])>>(shape.size());
    for (std::size_t i = 0; i < shape.size() && i < 7; ++i) {
        header.dim[i + 1] = static_cast<std::remove_reference_t<decltype(header.dim[0])>>(shape[i]);
    }
    header.datatype = bits == 8 ? DT_UINT8 : DT_UINT16;
    header.bitpix = static_cast<short>(bits);
    header.vox_offset = sizeof(Header) + 4;
    header.scl_slope = 1;
    header.scl_inter = 0;
    header.cal_min = header.cal_max = 0;  // how to show the brightness of the image
    if (swapped) swap(&header);
    std::vector<std::uint8_t> out(sizeof header);
    std::memcpy(out.data(), &header, sizeof header);
    return out;
}

}  // namespace

std::vector<std::uint8_t> labels_header(const std::vector<std::uint8_t>& block, const std::vector<std::size_t>& shape,
                                        int bits) {
    if (block.size() == kFirst) return relabelled<nifti_1_header>(block, shape, bits, nifti_swap_as_nifti1);
    return relabelled<nifti_2_header>(block, shape, bits, nifti_swap_as_nifti2);
}

std::vector<std::uint8_t> new_header(const Affine& affine, const std::vector<double>& zooms) {
    nifti_1_header header{};
    header.sizeof_hdr = static_cast<int>(kFirst);
    header.regular = 'r';
    header.dim[0] = static_cast<short>(zooms.size());
    std::fill(header.dim + 1, header.dim + 8, short{1});
    std::fill(header.pixdim, header.pixdim + 8, 1.0F);
    nifti_dmat44 matrix{};
    for (std::size_t i = 0; i < 4; ++i) std::copy(affine[i].begin(), affine[i].end(), matrix.m[i]);
    double q[3], offset[3], sides[3], factor = 1;
    nifti_dmat44_to_quatern(matrix, q, q + 1, q + 2, offset, offset + 1, offset + 2, sides, sides + 1, sides + 2, &factor);
    header.quatern_b = static_cast<float>(q[0]);
    header.quatern_c = static_cast<float>(q[1]);
    header.quatern_d = static_cast<float>(q[2]);
    header.qoffset_x = static_cast<float>(offset[0]);
    header.qoffset_y = static_cast<float>(offset[1]);
    header.qoffset_z = static_cast<float>(offset[2]);
    header.pixdim[0] = static_cast<float>(factor);
    for (std::size_t i = 0; i < 3; ++i) header.pixdim[i + 1] = static_cast<float>(sides[i]);
    for (std::size_t i = 0; i < zooms.size() && i < 7; ++i) header.pixdim[i + 1] = static_cast<float>(zooms[i]);
    header.qform_code = header.sform_code = NIFTI_XFORM_SCANNER_ANAT;
    for (std::size_t i = 0; i < 4; ++i) {
        header.srow_x[i] = static_cast<float>(affine[0][i]);
        header.srow_y[i] = static_cast<float>(affine[1][i]);
        header.srow_z[i] = static_cast<float>(affine[2][i]);
    }
    header.xyzt_units = NIFTI_UNITS_MM;
    std::memcpy(header.magic, "n+1", 4);
    std::vector<std::uint8_t> out(sizeof header);
    std::memcpy(out.data(), &header, sizeof header);
    return out;
}

}  // namespace segship
