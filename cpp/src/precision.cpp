#include "precision.hpp"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <optional>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "manifest.hpp"

namespace segship {

namespace {

const char* const PRECISIONS[] = {"fp32", "fp16", "bf16", "int8", "int16"};
const std::pair<const char*, const char*> ALIASES[] = {
    {"force_float32", "fp32"},        {"force_float16", "fp16"},         {"qint8_mixed_float16", "int8"},
    {"qint8_mixed_float32", "int8"},  {"qint16_mixed_float32", "int16"}, {"qint16_mixed_float16", "int16"},
    {"float32", "fp32"},              {"float16", "fp16"},               {"bfloat16", "bf16"},
    {"half", "fp16"},
};
const char* const FASTEST_FIRST[] = {"int8", "bf16", "fp16"};

std::string number(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

struct Loss {
    double value;
    std::string words;
};

// What a variant loses of the package's own metric, at most, and how that is known; nothing where it is not.
std::optional<Loss> known_loss(const Json& manifest, const Json& variant) {
    const Json& drop = variant.at("drop");
    if (!drop.is_null()) {
        const double loss = field<double>(drop, "drop");
        return Loss{loss, "loses " + number("%.4f", loss) + " " + field<std::string>(drop, "metric") + " on " +
                              std::to_string(field<long long>(drop, "cases")) + " cases"};
    }
    const Json& fidelity = variant.at("fidelity");
    if (fidelity.is_null() || manifest.at("metric").at("name") != "MAE") return std::nullopt;
    // The distance of two maps is the most that their MAE against anything can differ by.
    const double value = field<double>(fidelity, "value");
    return Loss{value, "masks differ from fp32's by " + number("%.4f", value) + " on " +
                           std::to_string(field<long long>(fidelity, "pictures")) + " pictures"};
}

Choice automatic(const Json& manifest, double max_drop) {
    const std::vector<std::string> native = native_precisions();
    std::string passed_over;
    const auto note = [&](const std::string& words) { passed_over += (passed_over.empty() ? "" : "; ") + words; };
    for (const std::string precision : FASTEST_FIRST) {
        const Json* variant = find_variant(manifest, precision);
        if (variant == nullptr) continue;
        const std::optional<Loss> loss = known_loss(manifest, *variant);
        if (precision == "fp16") {
            note("fp16: no faster than fp32 on a cpu");
        } else if (std::find(native.begin(), native.end(), precision) == native.end()) {
            note(precision + ": this cpu does not compute in it");
        } else if (!loss) {
            note(precision + ": its accuracy was never measured");
        } else if (loss->value > max_drop) {
            note(precision + ": " + loss->words + ", allowed " + number("%g", max_drop));
        } else {
            return {precision, "fastest within budget: " + loss->words + ", allowed " + number("%g", max_drop)};
        }
    }
    if (find_variant(manifest, "int16") != nullptr) note("int16: for accuracy and file size, not faster than fp32");
    return {"fp32", passed_over.empty() ? "the package has no faster variant" : passed_over};
}

}  // namespace

std::string canonical_precision(const std::string& name) {
    std::string found = name;
    std::transform(found.begin(), found.end(), found.begin(), [](unsigned char c) { return std::tolower(c); });
    std::string aliases;
    for (const auto& [alias, meant] : ALIASES) {
        if (found == alias) return meant;
        aliases += (aliases.empty() ? "" : ", ") + std::string(alias);
    }
    std::string names;
    for (const std::string one : PRECISIONS) {
        if (found == one) return found;
        names += (names.empty() ? "" : ", ") + one;
    }
    if (found == "auto") return found;
    throw UsageError("no precision is called '" + name + "'; there are " + names + " and auto (aliases: " + aliases + ")");
}

Choice choose_precision(const Json& manifest, const std::string& wanted, double max_drop) {
    const std::string precision = canonical_precision(wanted);
    if (precision == "auto") return automatic(manifest, max_drop);
    if (find_variant(manifest, precision) == nullptr) {
        throw PrecisionMissing("package '" + field<std::string>(manifest, "name") + "' has no " + precision +
                               " variant (it has " + variant_names(manifest) + "); make one with `segship compile --precision " +
                               precision + "`");
    }
    return {precision, "asked for"};
}

}  // namespace segship
