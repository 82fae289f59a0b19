#pragma once
// manifest.json, checked: src/segship/manifest/ in C++. The fields are those of docs/manifest.schema.json.

#include <cstddef>
#include <string>

#include "json.hpp"

namespace segship {

constexpr int MANIFEST_VERSION = 1;

// The manifest of a package, every field there. PackageTooNew for a later version, else PackageError naming the first
// bad field.
Json parse_manifest(const std::string& text);

// JSON text of at most `depth` levels. PackageError("<name> is not JSON (...)") for what is none.
Json parse_json(const std::string& text, const std::string& name, std::size_t depth = 64);

// The variant of a precision; null where the package has none.
const Json* find_variant(const Json& manifest, const std::string& precision);

// "fp32, int8"
std::string variant_names(const Json& manifest);

}  // namespace segship
