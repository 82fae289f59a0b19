#include "networks.hpp"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>

#include "errors.hpp"

namespace segship {

namespace {

constexpr std::size_t SHAPES_KEPT = 8;           // opened graphs of a static variant, one a batch and size
constexpr std::size_t LONE_OPENED = 3;           // graphs opened for one large size each, at most
constexpr std::size_t PIXELS_AT_ONCE = 1 << 20;  // that share a batch in packages that take several sizes

Shape up_to_multiples(Shape sides, const Json& manifest) {
    const auto multiples = manifest.at("network").at("size_multiple").get<std::vector<std::size_t>>();
    for (std::size_t i = 0; i < sides.size() && i < multiples.size(); ++i) {
        sides[i] = (sides[i] + multiples[i] - 1) / multiples[i] * multiples[i];
    }
    return sides;
}

// Rows `first` up to `last` of the first axis, the last one repeated until there are `size`.
Array<float> filled(const Array<float>& x, std::size_t first, std::size_t last, std::size_t size) {
    Shape shape = x.shape;
    shape[0] = size;
    Array<float> part(shape);
    const std::size_t row = x.stride(0);
    for (std::size_t i = 0; i < size; ++i) {
        const float* from = x.at(std::min(first + i, last - 1));
        std::copy(from, from + row, part.at(i));
    }
    return part;
}

void put_rows(Array<float>& whole, const Array<float>& part, std::size_t first, std::size_t count) {
    std::copy(part.data.begin(), part.data.begin() + static_cast<std::ptrdiff_t>(count * part.stride(0)), whole.at(first));
}

std::string show(const Shape& shape) {
    std::string text;
    for (const std::size_t side : shape) text += (text.empty() ? "" : ", ") + std::to_string(side);
    return "(" + text + ")";
}

}  // namespace

Shape usual_size(const Json& manifest) {
    if (manifest.at("input").at("kind") != "image") return {};
    const Json& tiling = manifest.at("tiling");
    if (!tiling.is_null()) return up_to_multiples(tiling.at("window").get<Shape>(), manifest);
    const Json& steps = manifest.at("preprocess");
    for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
        const std::string name = step->at("step").get<std::string>();
        if (name == "resize_by_factor") return {};
        if (name == "resize") {
            return up_to_multiples({field<std::size_t>(*step, "height"), field<std::size_t>(*step, "width")}, manifest);
        }
        if (name == "resize_keep_ratio") {
            const Shape sides{field<std::size_t>(*step, "short_side"), field<std::size_t>(*step, "long_side")};
            return up_to_multiples(sides, manifest);
        }
    }
    return {};
}

Members::Members(const Package& package, const Json& variant, SessionOptions options)
    : package_(package), variant_(variant), options_(std::move(options)),
      names_(package.manifest().at("network").at("members").get<std::vector<std::string>>()) {}

std::size_t Members::fixed_batch(std::size_t count) const {
    if (!options_.static_shape.empty()) return options_.static_shape[0];
    if (variant_.at("shapes") == "dynamic") return 0;
    const auto batches = variant_.at("batches").get<std::vector<std::size_t>>();
    if (batches.empty()) throw PackageError("a static variant names no batch sizes; compile it again");
    std::size_t fitting = 0;
    for (const std::size_t size : batches) {
        if (size >= count && (fitting == 0 || size < fitting)) fitting = size;
    }
    return fitting != 0 ? fitting : *std::max_element(batches.begin(), batches.end());
}

void Members::open(std::size_t batch) {
    sessions(batch, {});
}

// The one input shape that the graph for `count` inputs is opened for; empty: any shape.
Shape Members::shape_for(std::size_t count, const Shape& sides) {
    if (!options_.static_shape.empty()) return options_.static_shape;
    const std::size_t size = fixed_batch(count);
    if (size == 0) return lone_shape(count, sides);
    const Json& manifest = package_.manifest();
    const Json& network = manifest.at("network");
    Shape chosen = sides;
    if (chosen.empty()) chosen = network.at("size").is_null() ? usual_size(manifest) : network.at("size").get<Shape>();
    if (chosen.empty()) {
        throw PackageError("package '" + field<std::string>(manifest, "name") +
                           "' has static variants but no fixed input size; compile it again");
    }
    Shape shape{size, network.at("input_channels").get<std::size_t>()};
    shape.insert(shape.end(), chosen.begin(), chosen.end());
    return shape;
}

// (1, C, h, w) of a picture so large that it shares no batch; empty for others, and after LONE_OPENED of them. An engine
// that is told the one shape it will see plans its memory ahead: a street scene then takes a third to a half less of it.
// Opening a graph costs seconds, so a folder whose large pictures all differ soon runs on the graph of any size.
Shape Members::lone_shape(std::size_t count, const Shape& sides) {
    const Json& manifest = package_.manifest();
    if (!manifest.at("network").at("size").is_null() || manifest.at("input").at("kind") != "image") return {};
    if (!sides.empty() && count > 1) return {};
    const Shape chosen = sides.empty() ? usual_size(manifest) : sides;
    if (chosen.empty() || 2 * elements(chosen) <= PIXELS_AT_ONCE) return {};
    Shape shape{1, manifest.at("network").at("input_channels").get<std::size_t>()};
    shape.insert(shape.end(), chosen.begin(), chosen.end());
    const auto is_same = [&](const auto& entry) { return entry.first == shape; };
    if (std::any_of(opened_.begin(), opened_.end(), is_same)) return shape;
    if (lone_shapes_.size() == LONE_OPENED) return {};
    for (const Shape& earlier : lone_shapes_) opened_.remove_if([&](const auto& entry) { return entry.first == earlier; });
    lone_shapes_.push_back(shape);
    return shape;
}

std::shared_ptr<Members::Sessions> Members::sessions(std::size_t count, const Shape& sides) {
    const std::lock_guard<std::mutex> lock(guard_);
    SessionOptions options = options_;
    options.static_shape = shape_for(count, sides);
    for (const auto& [shape, found] : opened_) {
        if (shape == options.static_shape) return found;
    }
    while (opened_.size() >= SHAPES_KEPT) opened_.pop_front();  // who still uses it keeps it alive
    auto made = std::make_shared<Sessions>();
    for (const std::string& name : names_) {
        options.graph_sha256 = variant_.at("sha256").at(name).get<std::string>();
        made->push_back(std::make_unique<Session>(package_.graph_path(options.precision, name), options));
    }
    opened_.emplace_back(options.static_shape, made);
    return made;
}

std::vector<NetworkRun> Members::runs(std::size_t batch) {
    std::vector<NetworkRun> found;
    for (std::size_t i = 0; i < names_.size(); ++i) {
        found.push_back([this, i, batch](const Array<float>& x) { return run(i, x, batch); });
    }
    return found;
}

std::vector<Array<float>> Members::run(std::size_t member, const Array<float>& x, std::size_t batch) {
    if (x.rank() < 3 || x.shape[0] == 0) throw EngineError("openvino: the network takes batches, got " + show(x.shape));
    const std::size_t count = x.shape[0];
    const std::size_t wanted = std::max(count, batch);
    const std::shared_ptr<Sessions> opened = sessions(wanted, Shape(x.shape.begin() + 2, x.shape.end()));
    const Session& session = *opened->at(member);
    const std::size_t size = fixed_batch(wanted);
    if (size == 0 || size == count) return checked(session, x);
    std::vector<Array<float>> whole;
    for (std::size_t first = 0; first < count; first += size) {
        const std::size_t last = std::min(first + size, count);
        const std::vector<Array<float>> part = checked(session, filled(x, first, last, size));
        for (std::size_t i = 0; i < part.size(); ++i) {
            if (whole.size() <= i) {
                Shape shape = part[i].shape;
                shape[0] = count;
                whole.emplace_back(shape);
            }
            put_rows(whole[i], part[i], first, last - first);
        }
    }
    return whole;
}

std::vector<Array<float>> Members::checked(const Session& session, const Array<float>& x) const {
    std::vector<Array<float>> outputs = session.run(x);
    const Json& named = package_.manifest().at("network").at("outputs");
    if (outputs.size() != named.size()) {
        throw PackageError("the graph gives " + std::to_string(outputs.size()) + " outputs, the manifest names " +
                           std::to_string(named.size()) + "; export the package again");
    }
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const auto stride = named[i].at("stride").get<std::size_t>();
        Shape expected{x.shape[0], named[i].at("channels").get<std::size_t>()};
        for (std::size_t axis = 2; axis < x.rank(); ++axis) expected.push_back((x.shape[axis] + stride - 1) / stride);
        if (outputs[i].shape == expected) continue;
        throw PackageError("the graph's output '" + named[i].at("name").get<std::string>() + "' has shape " +
                           show(outputs[i].shape) + " where the manifest says " + show(expected) +
                           "; export the package again");
    }
    return outputs;
}

}  // namespace segship
