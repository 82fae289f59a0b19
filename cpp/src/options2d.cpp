#include "options2d.hpp"

#include <algorithm>
#include <cctype>
#include <map>
#include <sstream>
#include <vector>

#include "errors.hpp"

namespace segship {
namespace {

using Rgba = std::array<std::uint8_t, 4>;

const std::map<std::string, Rgba> NAMED = {
    {"transparent", {0, 0, 0, 0}},    {"black", {0, 0, 0, 255}},        {"white", {255, 255, 255, 255}},
    {"red", {255, 0, 0, 255}},        {"lime", {0, 255, 0, 255}},       {"green", {0, 128, 0, 255}},
    {"blue", {0, 0, 255, 255}},       {"yellow", {255, 255, 0, 255}},   {"cyan", {0, 255, 255, 255}},
    {"aqua", {0, 255, 255, 255}},     {"magenta", {255, 0, 255, 255}},  {"fuchsia", {255, 0, 255, 255}},
    {"gray", {128, 128, 128, 255}},   {"grey", {128, 128, 128, 255}},   {"silver", {192, 192, 192, 255}},
    {"maroon", {128, 0, 0, 255}},     {"olive", {128, 128, 0, 255}},    {"purple", {128, 0, 128, 255}},
    {"teal", {0, 128, 128, 255}},     {"navy", {0, 0, 128, 255}},       {"orange", {255, 165, 0, 255}},
};

[[noreturn]] void refuse(const std::string& text) {
    throw UsageError("the background '" + text + "' is no colour (white, #rrggbb, r,g,b or r,g,b,a)");
}

Rgba from_hex(const std::string& text) {
    std::string digits = text.substr(1);
    if (!std::all_of(digits.begin(), digits.end(), [](unsigned char c) { return std::isxdigit(c) != 0; })) refuse(text);
    if (digits.size() == 3 || digits.size() == 4) {
        std::string wide;
        for (char digit : digits) wide += {digit, digit};
        digits = wide;
    }
    if (digits.size() != 6 && digits.size() != 8) refuse(text);
    Rgba found{0, 0, 0, 255};
    for (std::size_t i = 0; i < digits.size() / 2; ++i) {
        found[i] = static_cast<std::uint8_t>(std::stoi(digits.substr(2 * i, 2), nullptr, 16));
    }
    return found;
}

Rgba from_numbers(const std::string& text) {
    std::vector<int> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, ',');) {
        part.erase(std::remove_if(part.begin(), part.end(), [](unsigned char c) { return std::isspace(c) != 0; }), part.end());
        const bool number = !part.empty() && part.size() <= 3 &&
                            std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
        if (!number) refuse(text);
        parts.push_back(std::stoi(part));
    }
    if (parts.size() < 3 || parts.size() > 4) refuse(text);
    if (*std::max_element(parts.begin(), parts.end()) > 255) {
        throw UsageError("a colour's parts lie in 0..255, got " + text);
    }
    Rgba found{0, 0, 0, 255};
    for (std::size_t i = 0; i < std::min(parts.size(), found.size()); ++i) found[i] = static_cast<std::uint8_t>(parts[i]);
    return found;
}

}  // namespace

Rgba parse_color(const std::string& text) {
    std::string lowered;
    for (unsigned char c : text) {
        if (std::isspace(c) == 0) lowered += static_cast<char>(std::tolower(c));
    }
    if (const auto named = NAMED.find(lowered); named != NAMED.end()) return named->second;
    if (!lowered.empty() && lowered[0] == '#') return from_hex(lowered);
    return from_numbers(lowered);
}

void check_options(const OutputOptions& options) {
    const std::vector<std::string> kinds{"mask", "ids", "color", "cityscapes", "cutout", "composite", "overlay"};
    if (std::find(kinds.begin(), kinds.end(), options.kind) == kinds.end()) {
        throw UsageError("the kind of output is one of mask, ids, color, cityscapes, cutout, composite, overlay, not '" +
                         options.kind + "'");
    }
    if (options.cutout_style != "straight" && options.cutout_style != "rembg") {
        throw UsageError("cutout_style is one of straight, rembg, not '" + options.cutout_style + "'");
    }
    for (int level : {options.foreground_threshold, options.background_threshold}) {
        if (level < 0 || level > 255) {
            throw UsageError("matting's thresholds are mask levels of 0..255, got " + std::to_string(level));
        }
    }
    if (options.erode < 0) {
        throw UsageError("erode is a number of pixels, 0 or more, got " + std::to_string(options.erode));
    }
    if (options.threshold > 1) throw UsageError("threshold lies in 0..1, got " + std::to_string(options.threshold));
}

}  // namespace segship
