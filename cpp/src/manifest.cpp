#include "manifest.hpp"

#include <algorithm>
#include <set>
#include <vector>

#include "schema.hpp"

namespace segship {

namespace {

// Brackets open at once, outside strings: what a recursive walk over the value would cost.
std::size_t deepest(const std::string& text) {
    std::size_t depth = 0, most = 0;
    bool quoted = false;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (quoted) {
            if (c == '\\') ++i;
            if (c == '"') quoted = false;
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            most = std::max(most, ++depth);
        } else if ((c == ']' || c == '}') && depth > 0) {
            --depth;
        }
    }
    return most;
}

PackageError value_error(const std::string& where, const std::string& what) {
    return manifest_error(where, "Value error, " + what);
}

std::size_t spatial_axes(const Json& manifest) {
    return manifest.at("network").at("layout").get<std::string>().size() - 2;
}

void check_network(const Json& network) {
    const std::string layout = network.at("layout").get<std::string>();
    const std::size_t axes = layout.size() - 2;
    const Json& size = network.at("size");
    if (network.at("size_multiple").size() != axes || (!size.is_null() && size.size() != axes)) {
        throw value_error("network", layout + " has " + std::to_string(axes) +
                                         " spatial axes; size and size_multiple must match");
    }
}

void check_tiling(const Json& tiling) {
    const std::size_t axes = tiling.at("window").size();
    if (tiling.at("step").size() != axes) {
        throw value_error("tiling", "window and step must have one entry per axis each");
    }
    if (tiling.at("weighting") != "uniform" && tiling.at("gaussian_sigma_scale").is_null()) {
        throw value_error("tiling", "a Gaussian weighting needs gaussian_sigma_scale");
    }
    for (const Json& axis : tiling.at("mirror_axes")) {
        if (axis.get<long long>() < 0 || axis.get<long long>() >= static_cast<long long>(axes)) {
            throw value_error("tiling", "mirror axes are 0 to " + std::to_string(axes - 1));
        }
    }
}

void check_steps(const Json& steps) {
    for (std::size_t i = 0; i < steps.size(); ++i) {
        if (steps[i].at("step") == "normalize" && steps[i].at("subtract").size() != steps[i].at("multiply").size()) {
            throw value_error("preprocess." + std::to_string(i) + ".normalize",
                              "subtract and multiply must have one entry per channel each");
        }
        if (steps[i].at("step") != "transpose") continue;
        std::vector<int> axes = steps[i].at("axes").get<std::vector<int>>();
        std::sort(axes.begin(), axes.end());
        if (axes != std::vector<int>{0, 1, 2}) {
            throw value_error("preprocess." + std::to_string(i) + ".transpose", "axes must be 0, 1 and 2 in some order");
        }
    }
}

void check_together(const Json& manifest) {
    const std::string kind = manifest.at("input").at("kind").get<std::string>();
    const std::string layout = manifest.at("network").at("layout").get<std::string>();
    if (kind == "image" && layout != "NCHW") {
        throw value_error("", "image input cannot feed a network of layout " + layout);
    }
    const auto channels = manifest.at("network").at("input_channels").get<std::size_t>();
    if (manifest.at("input").at("channels").size() > channels) {
        throw value_error("", "the input has more channels than the network takes");
    }
    const Json& tiling = manifest.at("tiling");
    if (!tiling.is_null() && tiling.at("window").size() != spatial_axes(manifest)) {
        throw value_error("", "the tiling window must have one entry per spatial axis");
    }
}

std::set<std::string> keys(const Json& object) {
    std::set<std::string> found;
    for (const auto& [key, value] : object.items()) found.insert(key);
    return found;
}

void check_variants(const Json& manifest) {
    std::set<std::string> precisions;
    for (const Json& variant : manifest.at("variants")) {
        if (!precisions.insert(variant.at("precision").get<std::string>()).second) {
            throw value_error("", "two variants have the same precision");
        }
    }
    if (precisions.count("fp32") == 0) throw value_error("", "the fp32 variant is missing; every package has one");
    const auto names = manifest.at("network").at("members").get<std::vector<std::string>>();
    const std::set<std::string> members(names.begin(), names.end());
    for (const Json& variant : manifest.at("variants")) {
        if (keys(variant.at("graphs")) != members || keys(variant.at("sha256")) != members) {
            throw value_error("", "variant " + variant.at("precision").get<std::string>() +
                                      " must name one graph and one hash for each ensemble member");
        }
    }
}

}  // namespace

Json parse_json(const std::string& text, const std::string& name, std::size_t depth) {
    const auto refused = [&](const std::string& why) {
        return PackageError(name + " is not JSON (" + why + "); the package is damaged, export it again");
    };
    if (deepest(text) > depth) throw refused("nested too deeply");
    try {
        return Json::parse(text);
    } catch (const Json::exception& error) {
        // "[json.exception.parse_error.101] parse error at line 1, column 2: ...": the words behind the number.
        const std::string words = error.what();
        const std::size_t end = words.find("] ");
        throw refused(end == std::string::npos ? words : words.substr(end + 2, 120));
    }
}

Json parse_manifest(const std::string& text) {
    static const Json schema = Json::parse(MANIFEST_SCHEMA);
    Json manifest = parse_json(text, "manifest.json");
    if (manifest.is_object() && manifest.contains("manifest_version")) {
        const Json& version = manifest.at("manifest_version");
        if (version.is_number_integer() && version.get<double>() > MANIFEST_VERSION) {
            throw PackageTooNew("the package has manifest version " + version.dump() + ", this segship reads up to " +
                                std::to_string(MANIFEST_VERSION) + "; update with `pip install -U segship`");
        }
    }
    check_schema(manifest, schema);
    check_steps(manifest.at("preprocess"));
    check_network(manifest.at("network"));
    if (!manifest.at("tiling").is_null()) check_tiling(manifest.at("tiling"));
    check_together(manifest);
    check_variants(manifest);
    return manifest;
}

const Json* find_variant(const Json& manifest, const std::string& precision) {
    for (const Json& variant : manifest.at("variants")) {
        if (variant.at("precision") == precision) return &variant;
    }
    return nullptr;
}

std::string variant_names(const Json& manifest) {
    std::string names;
    for (const Json& variant : manifest.at("variants")) {
        names += (names.empty() ? "" : ", ") + variant.at("precision").get<std::string>();
    }
    return names;
}

}  // namespace segship
