#pragma once
// The networks of a package as functions on arrays, static batches filled up: src/segship/inference/members.py in C++.
// How members are averaged is the predictors' part.

#include <list>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "array.hpp"
#include "engine.hpp"
#include "json.hpp"
#include "package.hpp"

namespace segship {

class Members {
public:
    // `options.static_shape` (N, C, ...) compiles for that input shape alone.
    Members(const Package& package, const Json& variant, SessionOptions options);

    // Open the sessions for `batch` inputs at once, so that errors show now.
    void open(std::size_t batch);
    std::size_t size() const { return names_.size(); }
    // One function a member, in the manifest's order; they share what is opened here and must not outlive it.
    // `batch`: the graph of a static variant that is taken for fewer inputs too, so that a tail opens none of its own.
    std::vector<NetworkRun> runs(std::size_t batch = 1);

    // All raw outputs of one member for (N, C, ...); N is cut or filled up to a static batch. Raises EngineError, and
    // PackageError where the graph's outputs are not those that the manifest names.
    std::vector<Array<float>> run(std::size_t member, const Array<float>& x, std::size_t batch = 1);

    // Batch of the compiled graph for `count` inputs: the smallest that holds them, or the largest there is; 0 where the
    // batch is dynamic.
    std::size_t fixed_batch(std::size_t count) const;

private:
    using Sessions = std::vector<std::unique_ptr<Session>>;
    std::shared_ptr<Sessions> sessions(std::size_t count, const Shape& sides);
    Shape shape_for(std::size_t count, const Shape& sides);
    Shape lone_shape(std::size_t count, const Shape& sides);
    std::vector<Array<float>> checked(const Session& session, const Array<float>& x) const;

    const Package& package_;
    const Json& variant_;
    SessionOptions options_;
    std::vector<std::string> names_;
    std::mutex guard_;
    std::list<std::pair<Shape, std::shared_ptr<Sessions>>> opened_;
    std::vector<Shape> lone_shapes_;
};

// (height, width) of the network's input: its window, or what a picture is resized to; empty for a network of no fixed
// size whose pictures keep theirs.
Shape usual_size(const Json& manifest);

}  // namespace segship
