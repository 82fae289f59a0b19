#include "picture_groups.hpp"

#include <algorithm>
#include <map>
#include <utility>

#include "average2d.hpp"
#include "errors.hpp"

namespace segship {

namespace {

constexpr std::size_t PIXELS_AT_ONCE = 1 << 20;  // that share a batch in packages that take several sizes

// (N, C, h, w) of the prepared pictures at `places`.
Array<float> stacked(const std::vector<Prepared>& prepared, const std::vector<std::size_t>& places) {
    Shape shape = prepared[places[0]].x.shape;
    shape.insert(shape.begin(), places.size());
    Array<float> batch(shape);
    for (std::size_t i = 0; i < places.size(); ++i) {
        const Array<float>& x = prepared[places[i]].x;
        std::copy(x.data.begin(), x.data.end(), batch.at(i));
    }
    return batch;
}

Array<float> row(const Array<float>& whole, std::size_t index) {
    return {Shape(whole.shape.begin() + 1, whole.shape.end()), {whole.at(index), whole.at(index) + whole.stride(0)}};
}

Prediction2d finished(const Image& picture, Prepared prepared, std::vector<Array<float>> outputs, const Json& manifest,
                      const Run2d& run) {
    Prediction2d found = decode(std::move(outputs), prepared.frame, manifest, averages_probabilities(manifest), run.grid);
    found.colors = picture.colors;
    found.alpha = picture.alpha;
    if (run.stages) {
        found.stages.push_back({"read", as_floats(picture.pixels)});
        found.stages.push_back({"preprocessed", std::move(prepared.x)});
        found.stages.push_back({"network", found.outputs[0]});
        found.stages.push_back({"decoded", found.decoded()});
    }
    return found;
}

}  // namespace

std::size_t group_size(const Opened& model, std::size_t batch, const Run2d& run) {
    const Json& manifest = model.manifest();
    if (!run.tta.empty() || !manifest.at("tiling").is_null()) return 1;
    const std::size_t fixed = model.members->fixed_batch(batch);
    if (fixed != 0) return fixed;
    const std::size_t pixels = pixels_at_once(manifest);
    return pixels == 0 ? batch : std::max<std::size_t>(1, std::min(batch, PIXELS_AT_ONCE / pixels));
}

std::vector<GroupAnswer> predict_group(const Opened& model, const std::vector<Image>& pictures, const Run2d& run) {
    const Json& manifest = model.manifest();
    std::vector<GroupAnswer> answers(pictures.size());
    std::vector<Prepared> prepared(pictures.size());
    std::map<Shape, std::vector<std::size_t>> by_shape;
    for (std::size_t i = 0; i < pictures.size(); ++i) {
        try {
            prepared[i] = prepare(pictures[i], manifest);
            by_shape[prepared[i].x.shape].push_back(i);
        } catch (...) {
            answers[i].failure = std::current_exception();
        }
    }
    const std::vector<NetworkRun> members = model.networks();
    for (const auto& [shape, places] : by_shape) {
        try {
            const std::vector<Array<float>> outputs = run_members(members, stacked(prepared, places), manifest);
            for (std::size_t i = 0; i < places.size(); ++i) {
                const std::size_t place = places[i];
                std::vector<Array<float>> own;
                for (const Array<float>& output : outputs) own.push_back(row(output, i));
                try {
                    answers[place].found =
                        finished(pictures[place], std::move(prepared[place]), std::move(own), manifest, run);
                } catch (...) {
                    answers[place].failure = std::current_exception();
                }
            }
        } catch (...) {
            for (const std::size_t place : places) answers[place].failure = std::current_exception();
        }
    }
    return answers;
}

}  // namespace segship
