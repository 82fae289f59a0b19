#pragma once
// Alpha as fine as hair, and the object's colours without the old background's: src/segship/inference/matting.py in C++.
//
// The trimap's rules are those of danielgatis/rembg (bg.py, alpha_matting_cutout); the methods are Levin, Lischinski and
// Weiss, "A closed-form solution to natural image matting" (2008), and Germer et al., "Fast multi-level foreground
// estimation" (2020), with the constants of pymatting/pymatting.

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "array.hpp"

namespace segship {

// Why no alpha can be estimated; the mask itself is used then.
struct MattingFailed : std::runtime_error {
    explicit MattingFailed(const std::string& message) : std::runtime_error(message) {}
};

// Above this alpha is solved on a reduced picture: the system of equations takes half a kilobyte a pixel.
constexpr std::size_t MATTING_MAX_PIXELS = 4'000'000;

// (H, W): 255 sure object, 0 sure background, 128 to be estimated. Sure areas are those of the mask strictly above
// `foreground` and strictly below `background`, each eroded by a square of side `erode` (0: a cross of 3).
Array<std::uint8_t> trimap(const Array<std::uint8_t>& mask, int foreground, int background, int erode);

// (H, W) alpha of 0..1 for a picture (H, W, 3) and a trimap. MattingFailed where it cannot be solved.
Array<double> estimate_alpha(const Array<std::uint8_t>& rgb, const Array<std::uint8_t>& known);
// (H, W, 4): the object's own colours, estimated too, and its alpha; x 255 truncated.
Array<std::uint8_t> estimate_cutout(const Array<std::uint8_t>& rgb, const Array<std::uint8_t>& known);

// Alpha that follows the picture's colour lines between what is known: values of 1 and 0 stay, the others are solved.
// `rgb` (H, W, 3) of 0..1, `known` as above.
Array<double> solve_alpha(const Array<double>& rgb, const Array<std::uint8_t>& known);
// (H, W, 3) colours of the object where it is mixed with what lies behind.
Array<float> estimate_foreground(const Array<float>& rgb, const Array<float>& alpha);

}  // namespace segship
