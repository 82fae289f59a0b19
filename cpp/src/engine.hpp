#pragma once
// OpenVINO on a processor: src/segship/engines/openvino.py in C++. The working precision is always set and read back:
// left alone, OpenVINO computes an fp32 graph in bf16 on processors that have it.

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "array.hpp"

namespace segship {

struct SessionOptions {
    std::string precision = "fp32";
    int threads = 0;  // 0: the engine's own choice
    int streams = 1;  // how many `run` calls may be in flight at once; one more waits
    std::string cache_dir;
    Shape static_shape;        // compile for exactly this input shape; empty: as the graph says
    std::string graph_sha256;  // of the graph file, just checked
};

// A compiled graph with one infer request for each stream.
class Session {
public:
    // Raises EngineError, PrecisionMissing.
    Session(const std::string& graph, const SessionOptions& options);
    ~Session();

    // (N, C, ...) float32 in, one float32 array per graph output; from up to `streams` threads at once. EngineError.
    std::vector<Array<float>> run(const Array<float>& x) const;

private:
    struct Inner;
    std::unique_ptr<Inner> inner_;
};

// OpenVINO's version, as "2026.4.1".
std::string engine_version();

// Precisions that this processor itself computes in, as OpenVINO and the processor tell.
std::vector<std::string> native_precisions();

}  // namespace segship
