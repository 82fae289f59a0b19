#pragma once
// The manifest's preprocessing steps for pictures, and their way back: src/segship/inference/preprocess.py in C++.
//
// `prepare` runs the whole chain for one picture. Steps that change the geometry leave a record (`GridStep`), so that
// whatever the network answers can be put back onto the picture's own grid.

#include <cstddef>
#include <string>
#include <vector>

#include "array.hpp"
#include "image.hpp"
#include "json.hpp"
#include "resize.hpp"

namespace segship {

enum class GridMove { resize, pad, crop, mirror };

// What one step did to the grid; the offset is where the picture starts.
struct GridStep {
    GridMove kind = GridMove::resize;
    Size before;
    Size after;
    Size offset;
};

// Where a network input came from: all that is needed to put an answer back onto the picture's own grid.
struct Frame {
    std::string name;
    Size original;
    Size prepared;
    std::vector<GridStep> geometry;
    std::vector<std::string> notes;
};

// The network's input for one picture, (C, h, w), and the way back.
struct Prepared {
    Array<float> x;
    Frame frame;
};

// Run the manifest's steps over one picture. InputError when the result does not fit the network, PackageError for a
// step that only volumes have.
Prepared prepare(const Image& picture, const Json& manifest);

// InputError unless (C, h, w) fits the network's channels, fixed size and size multiples.
void check_input_shape(const Shape& shape, const Json& manifest, const std::string& name);

// (height, width) that a resizing step gives a picture of `size`.
Size resized_size(Size size, const Json& step);

// Whether an output on `grid` is brought to the network's input size before it travels on (decode.restore_path).
bool by_input_size(Size grid, const Frame& frame, const std::string& path);

// Put (K, h, w) planes on the network's output grid back onto the picture's own grid: padding is cut off, resizes are
// undone with `method`, what was cropped away comes back as zeros.
Array<float> restore(const Array<float>& planes, const Frame& frame, const std::string& method,
                     const std::string& path = "direct");
Array<std::uint8_t> restore(const Array<std::uint8_t>& planes, const Frame& frame, const std::string& method,
                            const std::string& path = "direct");
Array<std::uint16_t> restore(const Array<std::uint16_t>& planes, const Frame& frame, const std::string& method,
                             const std::string& path = "direct");

}  // namespace segship
