#pragma once
// What an image file says about itself before a pixel is decoded: format, size, frames, depth, rotation, and whether it is
// whole. Decoders differ in what they do with a file that was cut short, and a header may claim more pixels than the machine
// can hold, so the container is walked first. src/segship/inference/containers.py in C++.

#include <cstddef>
#include <string>
#include <vector>

namespace segship {

// Suffixes of the images that folders are searched for, as in Python.
extern const std::vector<std::string> IMAGE_SUFFIXES;

struct Container {
    std::string format;  // PNG, JPEG, TIFF, BMP, WebP, GIF
    std::size_t height = 0;
    std::size_t width = 0;
    bool several = false;  // more than one frame or page
    int bits = 8;          // of a sample
    int colour = 0;        // PNG: its colour type; JPEG, TIFF: samples a pixel
    bool palette = false;  // of colours, in Pillow's sense: a BMP's ramp from black to white is none
    int orientation = 1;   // EXIF's number, 1 (upright) to 8
    int photometric = -1;  // TIFF: how samples mean colours, 2 RGB, 5 CMYK, 6 YCbCr, 8 Lab
    int compression = 1;   // TIFF: 1 none
    int extra = -1;        // TIFF: what the samples beside colours or grey mean, 1 and 2 alpha
    bool spare = false;    // TIFF, BMP: there is no alpha, whatever a fourth sample is
    bool misread = false;  // OpenCV reads the file as it is to other values than Pillow
};

// Read the header of an encoded image. InputError for an empty, unknown, damaged or truncated file, and for kinds that are
// not read here (HEIC, AVIF).
Container inspect_container(const std::string& data, const std::string& name);

// The EXIF orientation in a TIFF structure (EXIF is one): 1 where none is said.
int exif_orientation(const std::string& tiff);

}  // namespace segship
