#include "engine_norms.hpp"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <numeric>
#include <vector>

#include <openvino/op/add.hpp>
#include <openvino/op/constant.hpp>
#include <openvino/op/divide.hpp>
#include <openvino/op/multiply.hpp>
#include <openvino/op/mvn.hpp>
#include <openvino/op/reduce_l2.hpp>
#include <openvino/op/reduce_mean.hpp>
#include <openvino/op/reshape.hpp>
#include <openvino/op/sqrt.hpp>
#include <openvino/op/subtract.hpp>

namespace segship {

namespace {

constexpr std::int64_t LEAST_VALUES = 1 << 11;       // of one channel; below, the kernel's own sums are good to 1e-4
constexpr std::size_t NODES_STAND_BEFORE = 1 << 20;  // bytes of an ONNX file: its weights come after its nodes

namespace op = ov::op;
using Node = ov::Output<ov::Node>;

Node integers(const std::vector<std::int64_t>& values) {
    return op::v0::Constant::create(ov::element::i64, ov::Shape{values.size()}, values);
}

// Over all axes behind the channel, of known sizes, with the epsilon inside the root.
bool is_large(const op::v6::MVN& node) {
    const ov::PartialShape shape = node.get_input_partial_shape(0);
    if (shape.rank().is_dynamic() || !node.get_normalize_variance()) return false;
    if (node.get_eps_mode() != op::MVNEpsMode::INSIDE_SQRT) return false;
    const std::int64_t rank = shape.rank().get_length();
    const auto axes = ov::as_type_ptr<op::v0::Constant>(node.get_input_node_shared_ptr(1));
    if (!axes || rank < 4) return false;
    std::vector<std::int64_t> over = axes->cast_vector<std::int64_t>();
    for (std::int64_t& axis : over) axis = (axis % rank + rank) % rank;
    std::sort(over.begin(), over.end());
    std::vector<std::int64_t> behind(static_cast<std::size_t>(rank - 2));
    std::iota(behind.begin(), behind.end(), 2);
    if (over != behind) return false;
    std::int64_t values = 1;
    for (const std::int64_t axis : over) {
        const ov::Dimension& side = shape[static_cast<std::size_t>(axis)];
        if (side.is_dynamic()) return false;
        values *= side.get_length();
    }
    return values >= LEAST_VALUES;
}

// The mean of one value for each row, over all axes between the channel and the last, which is 1: axis by axis, so that no
// sum has more terms than a side. The reshapes keep OpenVINO from joining the steps; what they move is small.
Node mean(Node rows, const std::vector<std::int64_t>& sides) {
    const auto count = static_cast<std::int64_t>(sides.size());
    for (std::int64_t kept = count - 1; kept > 0; --kept) {
        std::vector<std::int64_t> shape(static_cast<std::size_t>(2 + count - kept), 1);
        shape[0] = shape[1] = 0;
        shape.insert(shape.end(), sides.begin(), sides.begin() + kept);  // the next axis to go stands last
        const auto turned = std::make_shared<op::v1::Reshape>(rows, integers(shape), true);
        rows = std::make_shared<op::v1::ReduceMean>(turned, integers({count + 1}), true);
    }
    return rows;
}

Node number(float value) {
    return op::v0::Constant::create(ov::element::f32, ov::Shape{}, {value});
}

void replace(const std::shared_ptr<op::v6::MVN>& node) {
    const Node x = node->input_value(0);
    const ov::PartialShape shape = x.get_partial_shape();
    std::vector<std::int64_t> sides;
    for (std::size_t axis = 2; axis < shape.size(); ++axis) sides.push_back(shape[axis].get_length());
    const Node last = integers({static_cast<std::int64_t>(sides.size()) + 1});
    const Node row_means = std::make_shared<op::v1::ReduceMean>(x, last, true);
    const Node centred = std::make_shared<op::v1::Subtract>(x, mean(row_means, sides));
    // Of each row; squares of the whole map are never written down.
    const Node length = std::make_shared<op::v4::ReduceL2>(centred, last, true);
    const Node squares = std::make_shared<op::v1::Multiply>(length, length);
    const Node variance =
        std::make_shared<op::v1::Divide>(mean(squares, sides), number(static_cast<float>(sides.back())));
    const Node root = std::make_shared<op::v0::Sqrt>(std::make_shared<op::v1::Add>(variance, number(node->get_eps())));
    const auto out = std::make_shared<op::v1::Divide>(centred, root);
    out->set_friendly_name(node->get_friendly_name());
    for (ov::Input<ov::Node> target : node->output(0).get_target_inputs()) target.replace_source_output(out->output(0));
}

}  // namespace

bool has_instance_norm(const std::string& graph) {
    std::ifstream file(graph, std::ios::binary);
    std::string beginning(NODES_STAND_BEFORE, '\0');
    file.read(beginning.data(), static_cast<std::streamsize>(beginning.size()));
    beginning.resize(static_cast<std::size_t>(std::max<std::streamsize>(file.gcount(), 0)));
    return beginning.find("InstanceNormalization") != std::string::npos;
}

std::size_t split_means(const std::shared_ptr<ov::Model>& model) {
    std::vector<std::shared_ptr<op::v6::MVN>> found;
    for (const auto& node : model->get_ordered_ops()) {
        const auto norm = ov::as_type_ptr<op::v6::MVN>(node);
        if (norm && is_large(*norm)) found.push_back(norm);
    }
    for (const auto& norm : found) replace(norm);
    if (!found.empty()) model->validate_nodes_and_infer_types();
    return found.size();
}

}  // namespace segship
