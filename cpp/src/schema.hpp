#pragma once
// The JSON Schema that Python writes of its manifest (docs/manifest.schema.json), applied: one contract for both
// languages. Only the keywords that stand in it are known; CMake puts the file's text into the library.

#include <string>

#include "json.hpp"

namespace segship {

// docs/manifest.schema.json as it was when the library was built.
extern const char* const MANIFEST_SCHEMA;

// Check `value` and fill in the schema's defaults, so that manifests of older versions have every field. Whole numbers
// written as 3.0 become integers. PackageError naming the first bad field, as "manifest.json: decode.threshold: ...".
void check_schema(Json& value, const Json& schema);

// "<where>: <what>; the package was not written by segship 1.x or was edited by hand"
PackageError manifest_error(const std::string& where, const std::string& what);

}  // namespace segship
