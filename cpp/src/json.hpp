#pragma once
// Fields of the manifest, checked where they are used: a manifest is outside data, even in a package with good hashes.

#include <string>

#include <nlohmann/json.hpp>

#include "errors.hpp"

namespace segship {

using Json = nlohmann::json;

// The value of `name`; PackageError when it is absent or of another type.
template <typename T>
T field(const Json& step, const char* name) {
    if (!step.is_object() || !step.contains(name)) {
        throw PackageError(std::string("the manifest lacks the field '") + name + "'; export the network again");
    }
    try {
        return step.at(name).get<T>();
    } catch (const nlohmann::json::exception&) {
        throw PackageError(std::string("the manifest's field '") + name + "' is of another type than expected; export again");
    }
}

// The value of `name`, or `otherwise` when it is absent or null.
template <typename T>
T field_or(const Json& step, const char* name, T otherwise) {
    if (!step.is_object() || !step.contains(name) || step.at(name).is_null()) return otherwise;
    return field<T>(step, name);
}

}  // namespace segship
