#include "views2d.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "errors.hpp"

namespace segship {
namespace {

constexpr std::size_t PIXELS_AT_ONCE = std::size_t{1} << 20;

bool is_resizing(const Json& step) {
    const auto name = field<std::string>(step, "step");
    return name == "resize" || name == "resize_keep_ratio" || name == "resize_by_factor";
}

// The place of the first step that resizes; the number of steps where pictures keep their size.
std::size_t resizing(const Json& steps) {
    const auto found = std::find_if(steps.begin(), steps.end(), is_resizing);
    return static_cast<std::size_t>(std::distance(steps.begin(), found));
}

// The same manifest with another resizing in the place of its own, or in front where it has none.
Json with_resize(const Json& manifest, const Json& resize, bool mirror) {
    const Json& old = manifest.at("preprocess");
    const std::size_t place = resizing(old);
    const bool none = place == old.size();
    Json steps = Json::array();
    const auto add_new = [&] {
        steps.push_back(resize);
        if (mirror) steps.push_back(Json{{"step", "mirror"}});
    };
    if (none) add_new();
    for (std::size_t i = 0; i < old.size(); ++i) {
        if (i == place) {
            add_new();
        } else {
            steps.push_back(old[i]);
        }
    }
    Json out = manifest;
    out["preprocess"] = std::move(steps);
    return out;
}

std::string method_of(const Json& steps) {
    const std::size_t place = resizing(steps);
    return place == steps.size() ? "opencv:linear" : field<std::string>(steps[place], "method");
}

Json scaled(const Json& steps, const std::string& kind, double ratio) {
    const std::size_t place = resizing(steps);
    if (kind == "0.x" && place < steps.size() && field<std::string>(steps[place], "step") != "resize_by_factor") {
        Json step = steps[place];
        const bool fits = field<std::string>(step, "step") == "resize_keep_ratio";
        for (const char* side : {fits ? "long_side" : "height", fits ? "short_side" : "width"}) {
            step[side] = std::max(1, static_cast<int>(field<double>(step, side) * ratio));
        }
        return step;
    }
    return Json{{"step", "resize_by_factor"}, {"factor", ratio}, {"keep_ratio", true}, {"method", method_of(steps)}};
}

std::string joined(const std::vector<double>& values) {
    std::string text;
    for (double value : values) text += (text.empty() ? "" : ", ") + Json(value).dump();
    return text;
}

std::vector<double> chosen_ratios(const Json& augmentation, const std::vector<double>& given) {
    const auto chosen = given.empty() ? field<std::vector<double>>(augmentation, "ratios") : given;
    const bool fits = std::all_of(chosen.begin(), chosen.end(), [](double r) { return r > 0 && r <= 16; });
    if (!fits) throw UsageError("--tta-ratios are factors above 0 and at most 16, not " + joined(chosen));
    return chosen;
}

}  // namespace

std::vector<Json> augmented(const Json& manifest, const std::string& kind, const std::vector<double>& ratios) {
    const auto name = field<std::string>(manifest, "name");
    if (kind != "1.x" && kind != "0.x") throw UsageError("--tta is 1.x or 0.x, not '" + kind + "'");
    if (!manifest.contains("augmentation") || manifest.at("augmentation").is_null()) {
        throw UsageError("package '" + name + "' has no test-time augmentation of pictures; leave --tta out");
    }
    const auto size = field_or<std::vector<std::size_t>>(field<Json>(manifest, "network"), "size", {});
    if (!size.empty()) {
        throw UsageError("package '" + name + "' takes " + std::to_string(size.at(0)) + "x" + std::to_string(size.at(1)) +
                         " alone, and --tta needs several sizes; export without --input-size");
    }
    const Json& augmentation = manifest.at("augmentation");
    const bool mirror = field<bool>(augmentation, "mirror");
    std::vector<Json> views;
    for (double ratio : chosen_ratios(augmentation, ratios)) {
        const Json step = scaled(manifest.at("preprocess"), kind, ratio);
        views.push_back(with_resize(manifest, step, false));
        if (mirror) views.push_back(with_resize(manifest, step, true));
    }
    return views;
}

Json check_recipe(const Json& manifest) {
    const Json& network = manifest.at("network");
    const auto size = field_or<std::vector<std::size_t>>(network, "check_size", {});
    if (size.size() != 2 || (network.contains("size") && !network.at("size").is_null())) return manifest;
    const Json& steps = manifest.at("preprocess");
    const std::size_t least = std::min(size[0], size[1]);
    const Json fit{{"step", "resize_keep_ratio"}, {"long_side", std::max(size[0], size[1])}, {"short_side", least},
                   {"method", method_of(steps)}};
    Json small = with_resize(manifest, fit, false);
    if (!manifest.contains("tiling") || manifest.at("tiling").is_null()) return small;
    double share = 1.0;
    const std::size_t place = resizing(steps);
    if (place < steps.size() && field<std::string>(steps[place], "step") != "resize_by_factor") {
        const bool fits = field<std::string>(steps[place], "step") == "resize_keep_ratio";
        const auto sides = fits ? std::pair{"short_side", "long_side"} : std::pair{"height", "width"};
        const double shorter = std::min(field<double>(steps[place], sides.first), field<double>(steps[place], sides.second));
        share = std::min(1.0, static_cast<double>(least) / shorter);
    }
    const auto multiples = field<std::vector<std::size_t>>(network, "size_multiple");
    Json& tiling = small["tiling"];
    for (std::size_t axis = 0; axis < 2; ++axis) {
        const std::size_t multiple = std::max<std::size_t>(1, multiples.at(axis));
        const auto side = static_cast<std::size_t>(field<std::vector<double>>(tiling, "window").at(axis) * share);
        tiling["window"][axis] = std::max(multiple, (side + multiple - 1) / multiple * multiple);
        tiling["step"][axis] = std::max(1.0, std::trunc(field<std::vector<double>>(tiling, "step").at(axis) * share));
    }
    return small;
}

std::size_t affordable_batch(std::size_t batch, std::size_t pixels) {
    return pixels == 0 ? batch : std::max<std::size_t>(1, std::min(batch, PIXELS_AT_ONCE / pixels));
}

}  // namespace segship
