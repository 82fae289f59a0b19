#pragma once
// Pictures out of pictures and masks: cutouts, composites, overlays. Arrays are uint8, colours RGB.
// The array functions of src/segship/inference/{cutout,writers}.py in C++.

#include <array>
#include <cstdint>
#include <map>
#include <vector>

#include "array.hpp"
#include "options2d.hpp"

namespace segship {

using Color = std::array<std::uint8_t, 3>;

// (H, W, 4): the colours untouched, the mask as alpha.
Array<std::uint8_t> put_alpha(const Array<std::uint8_t>& rgb, const Array<std::uint8_t>& alpha);
// (H, W, 3): the colours alone.
Array<std::uint8_t> without_alpha(const Array<std::uint8_t>& rgba);
// (H, W, 4): every plane, alpha too, times mask / 255, rounded (danielgatis/rembg: bg.py, naive_cutout).
Array<std::uint8_t> premultiplied(const Array<std::uint8_t>& rgba, const Array<std::uint8_t>& mask);
// (H, W, 4): straight RGBA laid over the options' background, as Pillow's alpha_composite rounds.
Array<std::uint8_t> over(const Array<std::uint8_t>& rgba, const OutputOptions& options);

// Each label in its colour, numbers without one black.
Array<std::uint8_t> colored(const Array<std::uint16_t>& labels, const std::map<int, Color>& colors);
// Labels as other numbers; those that are not named stay.
Array<std::uint16_t> renumbered(const Array<std::uint16_t>& labels, const std::map<int, int>& numbers);
// The picture with each mask of (K, H, W) tinted in its colour and outlined.
Array<std::uint8_t> draw_overlay(const Array<std::uint8_t>& rgb, const Array<std::uint8_t>& masks,
                                 const std::vector<Color>& colors);
// The picture mixed half and half with every class's colour, rounded down.
Array<std::uint8_t> blend_labels(const Array<std::uint8_t>& rgb, const Array<std::uint16_t>& labels,
                                 const std::map<int, Color>& colors);
// The picture tinted as strongly as a map (H, W) says, outlined at half.
Array<std::uint8_t> draw_heat(const Array<std::uint8_t>& rgb, const Array<std::uint8_t>& levels, Color color);

}  // namespace segship
