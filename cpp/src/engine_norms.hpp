#pragma once
// Instance normalisation over many values, summed so that float32 suffices: src/segship/engines/openvino_norms.py in C++.

#include <memory>
#include <string>

#include <openvino/core/model.hpp>

namespace segship {

// Whether an ONNX file names such a node; looks at its beginning alone.
bool has_instance_norm(const std::string& graph);

// Replace the normalisations over at least 2048 values a channel by means taken axis by axis: OpenVINO's kernel adds all
// values one after the other, and over a window of 128^3 voxels the variance is then wrong in its third digit. How many.
std::size_t split_means(const std::shared_ptr<ov::Model>& model);

}  // namespace segship
