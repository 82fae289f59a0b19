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
};

namespace {

Prediction answer_of(Prediction2d found, const Ask& ask, std::function<std::vector<std::string>(const std::string&)>& save) {
    Prediction answer;
    fill_prediction(answer, found, ask);
    found.stages.clear();
    const auto kept = std::make_shared<const Prediction2d>(std::move(found));
    save = [kept](const std::string& path) { return segship::save(*kept, path); };
    return answer;
}

Prediction answer_of(VolumePrediction found, const Json& manifest,
                     std::function<std::vector<std::string>(const std::string&)>& save) {
    auto kept = std::make_shared<VolumePrediction>();
    kept->name = found.name;
    kept->labels = found.labels;
    kept->masks = found.masks;
    kept->label_bits = found.label_bits;
    kept->volume = std::move(found.volume);
    kept->frame = std::move(found.frame);
    const auto about = std::make_shared<const Json>(manifest);
    save = [kept, about](const std::string& path) { return save_volume(*kept, *about, path); };
    Prediction answer;
    fill_prediction(answer, std::move(found));
    return answer;
}

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
    return within_memory([&] {
        Run2d run;
        run.batch = model.options.batch;
        run.stages = ask.stages;
        std::function<std::vector<std::string>(const std::string&)> save;
        Prediction answer = answer_of(predict_picture(model, read_picture(model, file), run), ask, save);
        answer.save_ = std::move(save);
        return answer;
    });
}

Prediction Model::predict(const std::vector<std::string>& files, const Ask& ask, const Progress& progress) const {
    const Opened& model = *inner_->opened;
    if (!model.takes_volumes() && files.size() == 1) return predict(files[0], ask);
    return within_memory([&] {
        VolumeAsk wanted;
        wanted.probabilities = ask.probabilities;
        wanted.stages = ask.stages;
        wanted.progress = progress;
        std::function<std::vector<std::string>(const std::string&)> save;
        Prediction answer = answer_of(predict_case(model, read_case(model, files), wanted), model.manifest(), save);
        answer.save_ = std::move(save);
        return answer;
    });
}

Prediction Model::predict(const PictureArray& picture, const Ask& ask) const {
    const Opened& model = *inner_->opened;
    if (model.takes_volumes()) throw UsageError("this package takes volumes; give a VolumeArray or files");
    return within_memory([&] {
        Run2d run;
        run.batch = model.options.batch;
        run.stages = ask.stages;
        const ImageLimits limits{model.options.max_pixels, model.options.max_bytes};
        const Image image = image_from_array(picture, model.manifest().at("input"), "array", limits);
        std::function<std::vector<std::string>(const std::string&)> save;
        Prediction answer = answer_of(predict_picture(model, image, run), ask, save);
        answer.save_ = std::move(save);
        return answer;
    });
}

Prediction Model::predict(const VolumeArray& volume, const Ask& ask, const Progress& progress) const {
    const Opened& model = *inner_->opened;
    if (!model.takes_volumes()) throw UsageError("this package takes pictures; give a PictureArray or a file");
    return within_memory([&] {
        VolumeAsk wanted;
        wanted.probabilities = ask.probabilities;
        wanted.stages = ask.stages;
        wanted.progress = progress;
        std::function<std::vector<std::string>(const std::string&)> save;
        Volume read = volume_from_array(volume.values, volume.spacing_zyx);
        Prediction answer = answer_of(predict_case(model, std::move(read), wanted), model.manifest(), save);
        answer.save_ = std::move(save);
        return answer;
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
