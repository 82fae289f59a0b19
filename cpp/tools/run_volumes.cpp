// Cases of volumes to label files: the next case is read and the last one written while one runs.

#include <algorithm>
#include <filesystem>
#include <future>
#include <iostream>
#include <optional>
#include <set>

#include "errors.hpp"
#include "inputs.hpp"
#include "journal.hpp"
#include "model_volumes.hpp"
#include "runs.hpp"
#include "summary.hpp"
#include "volume_cases.hpp"
#include "volume_formats.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

// Exceptions of one case, in words; those that end the whole run pass through.
template <typename Make>
auto caught(Summary& summary, std::size_t place, const Case& one, const Make& make) -> decltype(std::optional(make())) {
    try {
        return make();
    } catch (const OutputError&) {
        throw;
    } catch (const SegshipError& error) {
        summary.failed(place, one.files.front(), error.what());
    } catch (const std::bad_alloc&) {
        summary.failed(place, one.files.front(), one.name + " does not fit into this machine's memory; use fewer classes, "
                                                            "folds or a larger machine");
    }
    return std::nullopt;
}

class Cases {
public:
    Cases(const Opened& model, const Arguments& arguments, const std::vector<Case>& cases, Summary& summary)
        : model_(model), arguments_(arguments), cases_(cases), summary_(summary),
          ending_(field<std::string>(model.manifest().at("input"), "file_ending")), journal_(arguments.out) {}

    // Three cases are in memory at most: one that is read, one that runs, one that is written.
    void run() {
        std::future<std::optional<Volume>> reading;
        std::future<void> writing;
        if (!cases_.empty()) reading = read(0);
        for (std::size_t i = 0; i < cases_.size() && !interrupted(); ++i) {
            std::optional<Volume> volume = reading.get();
            if (i + 1 < cases_.size()) reading = read(i + 1);
            std::optional<VolumePrediction> found;
            if (volume) found = caught(summary_, i, cases_[i], [&] { return predict(i, std::move(*volume)); });
            volume.reset();
            if (writing.valid()) writing.get();
            if (found) writing = write(i, std::move(*found));
        }
        if (writing.valid()) writing.get();
    }

private:
    const Opened& model_;
    const Arguments& arguments_;
    const std::vector<Case>& cases_;
    Summary& summary_;
    std::string ending_;
    Journal journal_;

    std::string stages_of(const std::string& name) const { return (fs::path(arguments_.stages) / (name + ".npz")).string(); }

    // All that `write` may write.
    std::vector<std::string> files_of(const std::string& name) const {
        const std::string labels = (fs::path(arguments_.out) / (name + ending_)).string();
        std::vector<std::string> files{labels, spacing_beside(labels)};
        for (const char* suffix : {".npz", ".pkl"}) files.push_back((fs::path(arguments_.out) / (name + suffix)).string());
        if (!arguments_.stages.empty()) files.push_back(stages_of(name));
        return files;
    }

    std::future<std::optional<Volume>> read(std::size_t place) {
        return std::async(std::launch::async, [this, place] {
            const Case& one = cases_[place];
            return caught(summary_, place, one, [&] { return read_case(model_, one.files, one.name); });
        });
    }

    VolumePrediction predict(std::size_t place, Volume volume) {
        VolumeAsk ask;
        ask.probabilities = arguments_.probabilities;
        ask.stages = !arguments_.stages.empty();
        ask.half_sums = arguments_.half_sums;
        if (!arguments_.previous_labels.empty()) {
            ask.previous_labels = (fs::path(arguments_.previous_labels) / (cases_[place].name + ending_)).string();
            if (!fs::is_regular_file(ask.previous_labels)) {
                throw InputError(ask.previous_labels + " is missing: the first stage's labels of " + cases_[place].name);
            }
        }
        ask.progress = [&](std::size_t done, std::size_t total) {
            if (interrupted()) throw Interrupted{};
            summary_.progress(cases_[place].name, done, total);
        };
        return predict_case(model_, std::move(volume), ask);
    }

    std::future<void> write(std::size_t place, VolumePrediction found) {
        const auto kept = std::make_shared<VolumePrediction>(std::move(found));
        return std::async(std::launch::async, [this, place, kept] {
            const Case& one = cases_[place];
            const auto written = caught(summary_, place, one, [&] {
                journal_.claim(one.files, files_of(one.name));
                auto files = write_case(*kept, model_.manifest(), arguments_.out, one.name, ending_, arguments_.probabilities);
                if (!arguments_.stages.empty()) {
                    files.push_back(stages_of(one.name));
                    write_stages(*kept, files.back());
                }
                journal_.add(one.files, files, kept->notes);
                return true;
            });
            if (!written) return;
            std::vector<std::string> notes = kept->notes;
            summary_.done(place, one.files.front(), notes);
        });
    }
};

void refuse_overwriting(const std::vector<Case>& cases, const std::string& out, const std::string& ending) {
    std::set<std::string> sources;
    for (const Case& one : cases) {
        for (const std::string& file : one.files) sources.insert(real_path(file));
    }
    for (const Case& one : cases) {
        const std::string result = (fs::path(out) / (one.name + ending)).string();
        if (sources.count(real_path(result)) == 0) continue;
        throw UsageError("the labels of " + one.name + " would overwrite the input " + result + "; choose another -o");
    }
}

void check_previous(const Arguments& arguments, const Json& manifest) {
    const bool continues = !manifest.at("previous_stage").is_null();
    const std::string name = field<std::string>(manifest, "name");
    if (!arguments.options.previous_stage.empty()) {
        if (!continues) throw UsageError("package '" + name + "' continues no other; leave out --previous-stage");
        if (!fs::exists(arguments.options.previous_stage)) {
            throw UsageError("there is no package " + arguments.options.previous_stage + "; --previous-stage names the first stage's");
        }
    }
    if (arguments.previous_labels.empty()) return;
    if (!continues) throw UsageError("package '" + name + "' continues no other; leave out --prev-stage-predictions");
    if (!fs::is_directory(arguments.previous_labels)) {
        throw UsageError("there is no folder " + arguments.previous_labels +
                         "; --prev-stage-predictions names the first stage's results");
    }
}

}  // namespace

int run_volumes(const Arguments& arguments, std::unique_ptr<Package> package) {
    if (!arguments.for_pictures.empty()) {
        throw UsageError(arguments.for_pictures.front() + " is for packages of pictures, and this one takes volumes");
    }
    if (arguments.out == "-" || std::find(arguments.inputs.begin(), arguments.inputs.end(), "-") != arguments.inputs.end()) {
        throw UsageError("volumes are read from files and written into a folder; name both instead of -");
    }
    const Json& manifest = package->manifest();
    check_previous(arguments, manifest);
    FoundCases found = find_cases(arguments.inputs, manifest);
    std::vector<Case> cases;
    for (std::size_t i = arguments.part_id; i < found.cases.size(); i += arguments.num_parts) cases.push_back(found.cases[i]);
    refuse_overwriting(cases, arguments.out, field<std::string>(manifest.at("input"), "file_ending"));
    Summary summary(arguments, cases.size(), "cases");
    Options options = arguments.options;
    if (!arguments.batch_given) options.batch = 1;
    const std::unique_ptr<Opened> model = open_model(std::move(package), options);
    if (options.precision == "auto" && !arguments.quiet) {
        std::cerr << model->choice.precision << ": " << model->choice.reason << "\n";
    }
    make_output_folder(arguments.out);
    for (const std::string& note : found.notes) {
        if (!arguments.quiet) std::cerr << "WARNING: " << note << "\n";
    }
    for (const std::string& problem : found.problems) {
        if (arguments.part_id == 0) summary.failed(0, problem, problem);
    }
    try {
        Cases(*model, arguments, cases, summary).run();
    } catch (const Interrupted&) {
    }
    return summary.tell();
}

}  // namespace segship
