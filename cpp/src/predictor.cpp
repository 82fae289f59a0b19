// The public API over pictures and volumes: which of both a package takes stands in its manifest.

#include <memory>
#include <utility>

#include "average2d.hpp"
#include "model_pictures.hpp"
#include "model_volumes.hpp"
#include "segship/segship.hpp"
#include "writers2d.hpp"

namespace segship {

class Model::Inner {
public:
    std::unique_ptr<Opened> opened;

    Prediction picture(const Image& image, const Ask& ask) const;
    Prediction volume(Volume read, const Ask& ask, const Progress& progress) const;
};

namespace {

// Where a case does not fit into memory, said as every other failure is.
template <typename Work>
auto within_memory(const Work& work) {
    try {
        return work();
    } catch (const std::bad_alloc&) {
        throw InputError("the case does not fit into this machine's memory; cut it into tiles, or use a larger machine");
    }
}

}  // namespace

Prediction Model::Inner::picture(const Image& image, const Ask& ask) const {
    Run2d run;
    run.batch = opened->options.batch;
    run.stages = ask.stages;
    Prediction2d found = predict_picture(*opened, image, run);
    Prediction answer;
    fill_prediction(answer, found, ask);
    found.stages.clear();
    const auto kept = std::make_shared<const Prediction2d>(std::move(found));
    answer.save_ = [kept](const std::string& path) { return segship::save(*kept, path); };
    return answer;
}

Prediction Model::Inner::volume(Volume read, const Ask& ask, const Progress& progress) const {
    VolumeAsk wanted;
    wanted.probabilities = ask.probabilities;
    wanted.stages = ask.stages;
    wanted.progress = progress;
    VolumePrediction found = predict_case(*opened, std::move(read), wanted);
    auto kept = std::make_shared<VolumePrediction>();
    kept->name = found.name;
    kept->labels = found.labels;
    kept->masks = found.masks;
    kept->label_bits = found.label_bits;
    kept->volume = std::move(found.volume);
    kept->frame = std::move(found.frame);
    Prediction answer;
    answer.save_ = [kept, about = opened->manifest()](const std::string& path) { return save_volume(*kept, about, path); };
    fill_prediction(answer, std::move(found));
    return answer;
}

std::vector<std::string> Prediction::save(const std::string& path) const {
    if (!save_) throw UsageError("this prediction is empty; only what Model::predict returned can be saved");
    return save_(path);
}

Model::Model(const std::string& package, const Options& options) : inner_(std::make_unique<Inner>()) {
    inner_->opened = open_model(package, options);
}

Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Prediction Model::predict(const std::string& file, const Ask& ask) const {
    const Opened& model = *inner_->opened;
    if (model.takes_volumes()) return predict(std::vector<std::string>{file}, ask);
    return within_memory([&] { return inner_->picture(read_picture(model, file), ask); });
}

Prediction Model::predict(const std::vector<std::string>& files, const Ask& ask, const Progress& progress) const {
    const Opened& model = *inner_->opened;
    if (!model.takes_volumes() && files.size() == 1) return predict(files[0], ask);
    return within_memory([&] { return inner_->volume(read_case(model, files), ask, progress); });
}

Prediction Model::predict(const PictureArray& picture, const Ask& ask) const {
    const Opened& model = *inner_->opened;
    if (model.takes_volumes()) throw UsageError("this package takes volumes; give a VolumeArray or files");
    return within_memory([&] {
        const ImageLimits limits{model.options.max_pixels, model.options.max_bytes};
        return inner_->picture(image_from_array(picture, model.manifest().at("input"), "array", limits), ask);
    });
}

Prediction Model::predict(const VolumeArray& volume, const Ask& ask, const Progress& progress) const {
    const Opened& model = *inner_->opened;
    if (!model.takes_volumes()) throw UsageError("this package takes pictures; give a PictureArray or a file");
    return within_memory([&] {
        return inner_->volume(volume_from_array(volume.values, volume.spacing_zyx), ask, progress);
    });
}

std::vector<Stage> Model::trace(const std::string& file) const {
    Ask ask;
    ask.stages = true;
    return predict(file, ask).stages;
}

std::vector<Array<float>> Model::network(const Array<float>& x) const {
    return within_memory([&] { return run_members(inner_->opened->networks(), x, inner_->opened->manifest()); });
}

const std::string& Model::manifest() const {
    return inner_->opened->package->manifest_text();
}

bool Model::takes_volumes() const {
    return inner_->opened->takes_volumes();
}

const std::string& Model::precision() const {
    return inner_->opened->choice.precision;
}

const std::string& Model::why() const {
    return inner_->opened->choice.reason;
}

}  // namespace segship
