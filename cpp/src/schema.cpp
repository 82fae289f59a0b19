#include "schema.hpp"

#include <cmath>
#include <cstdint>
#include <map>
#include <mutex>
#include <regex>
#include <vector>

namespace segship {

namespace {

// Whole numbers beyond this are no size of anything.
constexpr double LARGEST = 9.0e15;

std::string join(const std::string& where, const std::string& part) {
    return where.empty() ? part : where + "." + part;
}

// Compiled once each: the same few patterns stand at many fields.
bool matches(const std::string& text, const std::string& pattern) {
    static std::map<std::string, std::regex> known;
    static std::mutex guard;
    const std::lock_guard<std::mutex> lock(guard);
    auto found = known.find(pattern);
    if (found == known.end()) found = known.emplace(pattern, std::regex(pattern)).first;
    return std::regex_search(text, found->second);
}

class Checker {
public:
    explicit Checker(const Json& schema) : root_(schema) {}

    void check(Json& value, const Json& given, const std::string& where) const {
        const Json& schema = resolved(given);
        if (schema.contains("discriminator")) return check_tagged(value, schema, where);
        if (schema.contains("anyOf")) return check_any(value, schema.at("anyOf"), where);
        if (schema.contains("const") && value != schema.at("const")) {
            throw manifest_error(where, "Input should be " + schema.at("const").dump());
        }
        if (schema.contains("enum")) check_enum(value, schema.at("enum"), where);
        if (schema.contains("type")) check_type(value, schema, where);
    }

private:
    const Json& root_;

    const Json& resolved(const Json& schema) const {
        const Json* found = &schema;
        for (int depth = 0; found->contains("$ref") && depth < 8; ++depth) {
            const std::string target = found->at("$ref").get<std::string>();  // "#/$defs/Name"
            found = &root_.at("$defs").at(target.substr(target.rfind('/') + 1));
        }
        return *found;
    }

    void check_tagged(Json& value, const Json& schema, const std::string& where) const {
        const Json& rule = schema.at("discriminator");
        const std::string name = rule.at("propertyName").get<std::string>();
        if (!value.is_object() || !value.contains(name) || !value.at(name).is_string()) {
            throw manifest_error(where, "Unable to extract tag using discriminator '" + name + "'");
        }
        const std::string tag = value.at(name).get<std::string>();
        if (!rule.at("mapping").contains(tag)) {
            throw manifest_error(where, "Input tag '" + tag.substr(0, 60) + "' found using '" + name +
                                            "' does not match any of the expected tags");
        }
        check(value, Json{{"$ref", rule.at("mapping").at(tag)}}, join(where, tag));
    }

    void check_any(Json& value, const Json& branches, const std::string& where) const {
        std::string first;
        for (const Json& branch : branches) {
            try {
                Json copy = value;
                check(copy, branch, where);
                value = std::move(copy);
                return;
            } catch (const PackageError& error) {
                if (first.empty()) first = error.what();
            }
        }
        throw PackageError(first);
    }

    static void check_enum(const Json& value, const Json& allowed, const std::string& where) {
        for (const Json& one : allowed) {
            if (value == one) return;
        }
        std::string names;
        for (const Json& one : allowed) names += (names.empty() ? "" : ", ") + one.dump();
        throw manifest_error(where, "Input should be one of " + names);
    }

    void check_type(Json& value, const Json& schema, const std::string& where) const {
        const std::string type = schema.at("type").get<std::string>();
        if (type == "object") return check_object(value, schema, where);
        if (type == "array") return check_array(value, schema, where);
        if (type == "string") return check_string(value, schema, where);
        if (type == "integer") return check_integer(value, schema, where);
        if (type == "number") return check_number(value, schema, where);
        if (type == "boolean" && !value.is_boolean()) throw manifest_error(where, "Input should be a valid boolean");
        if (type == "null" && !value.is_null()) throw manifest_error(where, "Input should be null");
    }

    void check_object(Json& value, const Json& schema, const std::string& where) const {
        if (!value.is_object()) throw manifest_error(where, "Input should be an object");
        static const Json nothing = Json::object();
        const Json& properties = schema.contains("properties") ? schema.at("properties") : nothing;
        for (const Json& name : schema.value("required", Json::array())) {
            const std::string key = name.get<std::string>();
            if (!value.contains(key)) throw manifest_error(join(where, key), "Field required");
        }
        for (auto& [key, item] : value.items()) {
            const std::string inner = join(where, key.substr(0, 60));
            if (properties.contains(key)) {
                check(item, properties.at(key), inner);
            } else if (schema.contains("additionalProperties")) {
                const Json& rest = schema.at("additionalProperties");
                if (rest.is_boolean() && !rest.get<bool>()) throw manifest_error(inner, "Extra inputs are not permitted");
                if (rest.is_object()) check(item, rest, inner);
            }
        }
        for (const auto& [key, about] : properties.items()) {
            if (!value.contains(key) && about.contains("default")) value[key] = about.at("default");
        }
    }

    void check_array(Json& value, const Json& schema, const std::string& where) const {
        if (!value.is_array()) throw manifest_error(where, "Input should be a valid tuple");
        const std::size_t size = value.size();
        if (schema.contains("minItems") && size < schema.at("minItems").get<std::size_t>()) {
            throw manifest_error(where, "Tuple should have at least " + schema.at("minItems").dump() + " items, not " +
                                            std::to_string(size));
        }
        if (schema.contains("maxItems") && size > schema.at("maxItems").get<std::size_t>()) {
            throw manifest_error(where, "Tuple should have at most " + schema.at("maxItems").dump() + " items, not " +
                                            std::to_string(size));
        }
        static const Json none = Json::array();
        const Json& first = schema.contains("prefixItems") ? schema.at("prefixItems") : none;
        for (std::size_t i = 0; i < size; ++i) {
            const std::string inner = join(where, std::to_string(i));
            if (i < first.size()) {
                check(value[i], first[i], inner);
            } else if (schema.contains("items")) {
                check(value[i], schema.at("items"), inner);
            }
        }
    }

    static void check_string(const Json& value, const Json& schema, const std::string& where) {
        if (!value.is_string()) throw manifest_error(where, "Input should be a valid string");
        const std::string& text = value.get_ref<const std::string&>();
        if (schema.contains("maxLength") && text.size() > schema.at("maxLength").get<std::size_t>()) {
            throw manifest_error(where, "String should have at most " + schema.at("maxLength").dump() + " characters");
        }
        if (!schema.contains("pattern")) return;
        const std::string pattern = schema.at("pattern").get<std::string>();
        // Long texts match none of the patterns, and std::regex goes a level deeper for each character.
        if (text.size() > 300 || !matches(text, pattern)) {
            throw manifest_error(where, "String should match pattern '" + pattern + "'");
        }
    }

    static void check_integer(Json& value, const Json& schema, const std::string& where) {
        if (value.is_number_float() && std::abs(value.get<double>()) <= LARGEST &&
            value.get<double>() == std::floor(value.get<double>())) {
            value = static_cast<std::int64_t>(value.get<double>());
        }
        if (!value.is_number_integer()) throw manifest_error(where, "Input should be a valid integer");
        check_bounds(value.get<double>(), schema, where);
    }

    static void check_number(const Json& value, const Json& schema, const std::string& where) {
        if (!value.is_number()) throw manifest_error(where, "Input should be a valid number");
        if (!std::isfinite(value.get<double>())) throw manifest_error(where, "Input should be a finite number");
        check_bounds(value.get<double>(), schema, where);
    }

    static void check_bounds(double number, const Json& schema, const std::string& where) {
        const auto bound = [&](const char* name) { return schema.contains(name) ? schema.at(name).get<double>() : 0.0; };
        if (schema.contains("minimum") && number < bound("minimum")) {
            throw manifest_error(where, "Input should be greater than or equal to " + schema.at("minimum").dump());
        }
        if (schema.contains("exclusiveMinimum") && number <= bound("exclusiveMinimum")) {
            throw manifest_error(where, "Input should be greater than " + schema.at("exclusiveMinimum").dump());
        }
        if (schema.contains("maximum") && number > bound("maximum")) {
            throw manifest_error(where, "Input should be less than or equal to " + schema.at("maximum").dump());
        }
        if (schema.at("type") == "integer" && std::abs(number) > LARGEST) {
            throw manifest_error(where, "Input should be a number of sensible size");
        }
    }
};

}  // namespace

PackageError manifest_error(const std::string& where, const std::string& what) {
    return PackageError("manifest.json: " + (where.empty() ? "manifest" : where) + ": " + what +
                        "; the package was not written by segship 1.x or was edited by hand");
}

void check_schema(Json& value, const Json& schema) {
    Checker(schema).check(value, schema, "");
}

}  // namespace segship
