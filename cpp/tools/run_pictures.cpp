// Pictures to files: reading, inference and writing of several pictures overlap, each on a thread of its own.

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <iostream>
#include <set>
#include <thread>

#include <unistd.h>

#include "errors.hpp"
#include "files.hpp"
#include "inputs.hpp"
#include "journal.hpp"
#include "model_pictures.hpp"
#include "npy.hpp"
#include "picture_groups.hpp"
#include "processor.hpp"
#include "runs.hpp"
#include "summary.hpp"
#include "views2d.hpp"
#include "writers2d.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

constexpr std::size_t MANY = 4;        // from so many pictures on, two inferences in flight gain more than opening both costs
constexpr std::size_t LARGE = 1 << 20;  // pixels of one input from which on one inference fills the processor
constexpr const char* PIPE = "-";

using Files = std::vector<std::string>;

struct Job {
    std::string path;
    std::string name;  // of the results, without suffix
};

int streams_for(const Arguments& arguments, std::size_t inputs, const Json& manifest) {
    if (arguments.streams_given) return arguments.options.streams;
    return inputs >= MANY && processor().cores > 1 && pixels_at_once(manifest) <= LARGE ? 2 : 1;
}

std::vector<Job> jobs_of(const Arguments& arguments) {
    const std::vector<std::string> paths = find_inputs(arguments.inputs, earlier_results(arguments.out));
    if (paths.empty()) {
        throw UsageError("all inputs are results of an earlier run into " + arguments.out + "; choose another folder with -o");
    }
    const std::vector<std::string> names = output_names(paths);
    std::vector<Job> jobs;
    for (std::size_t i = arguments.part_id; i < paths.size(); i += arguments.num_parts) jobs.push_back({paths[i], names[i]});
    return jobs;
}

// Classes that may be written to a file each.
std::size_t classes_of(const Json& manifest) {
    return std::min<std::size_t>(manifest.at("network").at("outputs").at(0).at("channels").get<std::size_t>(), 1024);
}

std::string result_path(const Arguments& arguments, const Job& job) {
    return (fs::path(arguments.out) / (job.name + "." + arguments.format)).string();
}

// All that `write_one` may write: a file for all classes or one for each.
Files files_of(const Arguments& arguments, const Job& job, std::size_t classes) {
    Files wholes{result_path(arguments, job)};
    const auto beside = [&](const char* folder, const char* suffix) {
        wholes.push_back((fs::path(arguments.out) / folder / (job.name + suffix)).string());
    };
    if (arguments.probabilities) beside("probabilities", ".npz");
    if (arguments.probability_images) beside("probabilities", ".png");
    if (arguments.overlay) beside("overlays", ".png");
    for (const char* suffix : {".png", ".npz"}) {
        if (arguments.instances) beside("instances", suffix);
    }
    Files files = wholes;
    for (const std::string& whole : wholes) {
        for (std::size_t k = 0; k < classes; ++k) files.push_back(class_path(whole, k));
    }
    if (!arguments.stages.empty()) files.push_back((fs::path(arguments.stages) / (job.name + ".npz")).string());
    return files;
}

void refuse_overwriting(const Arguments& arguments, const std::vector<Job>& jobs, const Json& manifest) {
    std::set<std::string> sources;
    for (const Job& job : jobs) sources.insert(real_path(job.path));
    const std::size_t classes = classes_of(manifest);
    Arguments real = arguments;
    real.out = real_path(arguments.out);
    if (!arguments.stages.empty()) real.stages = real_path(arguments.stages);
    for (const Job& job : jobs) {
        for (const std::string& path : files_of(real, job, classes)) {
            if (sources.count(path) == 0) continue;
            throw UsageError("the result of " + job.path + " would overwrite the input " + path + "; choose another folder with -o");
        }
    }
}

Keep kept_of(const Arguments& arguments) {
    const OutputOptions& output = arguments.output;
    return {output.needs_picture() || arguments.overlay, output.needs_picture() && output.cutout_style == "rembg"};
}

Run2d run_of(const Arguments& arguments) {
    Run2d run;
    run.batch = arguments.options.batch;
    run.tta = arguments.tta;
    run.tta_ratios = arguments.tta_ratios;
    run.grid = arguments.grid;
    run.stages = !arguments.stages.empty();
    return run;
}

Files write_probabilities(const Arguments& arguments, const Prediction2d& found, const std::string& name) {
    const std::string folder = (fs::path(arguments.out) / "probabilities").string();
    const Array<float> maps = found.probabilities();
    if (arguments.probabilities) {
        Npz npz;
        npz.add("probabilities", maps);
        const std::string path = (fs::path(folder) / (name + ".npz")).string();
        npz.save(path);
        return {path};
    }
    const std::string path = (fs::path(folder) / (name + ".png")).string();
    Files written;
    for (std::size_t k = 0; k < maps.shape[0]; ++k) {
        const Array<float> one({maps.shape[1], maps.shape[2]}, {maps.at(k), maps.at(k) + maps.stride(0)});
        written.push_back(maps.shape[0] == 1 ? path : class_path(path, k));
        write_probability_png(written.back(), one);
    }
    return written;
}

Files write_instances(const Arguments& arguments, const Prediction2d& found, const std::string& name) {
    const Array<std::uint32_t> numbered = found.instances();
    const std::string path = (fs::path(arguments.out) / "instances" / (name + ".png")).string();
    if (std::any_of(numbered.data.begin(), numbered.data.end(), [](std::uint32_t value) { return value > 65'535; })) {
        Npz npz;  // more components than a PNG counts
        npz.add("instances", numbered);
        const std::string wide = fs::path(path).replace_extension(".npz").string();
        npz.save(wide);
        return {wide};
    }
    const bool several = numbered.rank() == 3;
    const std::size_t planes = several ? numbered.shape[0] : 1, size = several ? numbered.stride(0) : numbered.size();
    Files written;
    for (std::size_t k = 0; k < planes; ++k) {
        Array<std::uint16_t> one(Shape(numbered.shape.end() - 2, numbered.shape.end()));
        std::copy_n(numbered.data.begin() + static_cast<std::ptrdiff_t>(k * size), size, one.data.begin());
        written.push_back(several ? class_path(path, k) : path);
        write_bytes(written.back(), encode_png(one));
    }
    return written;
}

Files write_overlay(const Arguments& arguments, const Prediction2d& found, const std::string& name) {
    OutputOptions options = arguments.output;
    options.kind = "overlay";
    options.matting = false;
    const std::string path = (fs::path(arguments.out) / "overlays" / (name + ".png")).string();
    write_bytes(path, render(found, options).encode());
    return {path};
}

Files write_one(const Arguments& arguments, const Prediction2d& found, const Job& job) {
    OutputOptions output = arguments.output;
    output.probabilities = arguments.probabilities && arguments.format == "npz";
    Files written = save(found, result_path(arguments, job), output);
    const auto add = [&](const Files& more) { written.insert(written.end(), more.begin(), more.end()); };
    if ((arguments.probabilities && arguments.format != "npz") || arguments.probability_images) {
        add(write_probabilities(arguments, found.decided(output), job.name));
    }
    if (arguments.overlay) add(write_overlay(arguments, found, job.name));
    if (arguments.instances) add(write_instances(arguments, found.decided(output), job.name));
    if (!arguments.stages.empty()) {
        add({(fs::path(arguments.stages) / (job.name + ".npz")).string()});
        write_stages(found.decided(output), written.back());
    }
    return written;
}

// Every input is done or its failure is noted; an OutputError ends the run, as the next file would fare no better.
class Work {
public:
    Work(const Opened& model, const Arguments& arguments, const std::vector<Job>& jobs, Summary& summary)
        : model_(model), arguments_(arguments), jobs_(jobs), summary_(summary), run_(run_of(arguments)),
          group_(group_size(model, arguments.options.batch, run_)), classes_(classes_of(model.manifest())),
          journal_(arguments.out) {}

    void on_threads(std::size_t count) {
        const std::size_t groups = (jobs_.size() + group_ - 1) / group_;
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < std::min(count, groups); ++i) threads.emplace_back([this] { loop(); });
        for (std::thread& thread : threads) thread.join();
        if (failure_) std::rethrow_exception(failure_);
    }

private:
    const Opened& model_;
    const Arguments& arguments_;
    const std::vector<Job>& jobs_;
    Summary& summary_;
    const Run2d run_;
    const std::size_t group_, classes_;
    Journal journal_;
    std::atomic<std::size_t> next_{0};
    std::atomic<bool> ended_{false};
    std::mutex guard_;
    std::exception_ptr failure_;

    void loop() {
        for (std::size_t i = next_.fetch_add(group_); i < jobs_.size() && !ended_ && !interrupted(); i = next_.fetch_add(group_)) {
            if (group_ == 1) one(i);
            else several(i, std::min(i + group_, jobs_.size()));
        }
    }

    Image read(std::size_t place) const { return read_picture(model_, jobs_[place].path, kept_of(arguments_)); }

    void one(std::size_t place) {
        noting(place, [&] { finish(place, predict_picture(model_, read(place), run_)); });
    }

    void several(std::size_t first, std::size_t last) {
        std::vector<Image> pictures;
        std::vector<std::size_t> places;
        for (std::size_t i = first; i < last; ++i) {
            noting(i, [&] {
                pictures.push_back(read(i));
                places.push_back(i);
            });
        }
        std::vector<GroupAnswer> answers = predict_group(model_, pictures, run_);
        for (std::size_t i = 0; i < answers.size(); ++i) {
            noting(places[i], [&] {
                if (answers[i].failure) std::rethrow_exception(answers[i].failure);
                finish(places[i], *answers[i].found);
            });
        }
    }

    void finish(std::size_t place, const Prediction2d& found) {
        const Files input{jobs_[place].path};
        journal_.claim(input, files_of(arguments_, jobs_[place], classes_));
        const Files written = write_one(arguments_, found, jobs_[place]);
        journal_.add(input, written, found.notes());
        summary_.done(place, jobs_[place].path, found.notes());
    }

    template <typename Step>
    void noting(std::size_t place, const Step& step) {
        const std::string& path = jobs_[place].path;
        try {
            step();
        } catch (const OutputError&) {
            end();
        } catch (const SegshipError& error) {
            summary_.failed(place, path, error.what());
        } catch (const std::bad_alloc&) {
            summary_.failed(place, path, path + " does not fit into this machine's memory; cut it into tiles");
        } catch (const std::exception&) {
            end();
        }
    }

    void end() {
        const std::lock_guard<std::mutex> lock(guard_);
        if (!failure_) failure_ = std::current_exception();
        ended_ = true;
    }
};

// UsageError now for what would fail on every picture.
void check_more(const Arguments& arguments, const Json& manifest) {
    if (arguments.overlay) {
        OutputOptions beside = arguments.output;
        beside.kind = "overlay";
        beside.matting = false;
        check_output(manifest, beside);
    }
    const Json& decision = manifest.at("decode").at("decision");
    const bool undecided = decision.at("rule") == "saliency" && decision.at("threshold").is_null() && !arguments.output.has_threshold();
    if (undecided && (arguments.instances || arguments.output.palette)) {
        throw UsageError("a saliency map is no decision; give a threshold too, --threshold 0.5 for example");
    }
    const auto channels = manifest.at("network").at("outputs").at(0).at("channels").get<std::size_t>();
    if (arguments.output.rgb_mask && decision.at("rule") == "threshold" && channels > 1) {
        throw UsageError("rgb_mask is for packages of one mask; this one writes a mask for each of its classes");
    }
}

// One picture from a file or stdin to stdout; only its bytes are written there.
int through_pipe(const Arguments& arguments, std::unique_ptr<Package> package) {
    if (arguments.out != PIPE) {
        throw UsageError("the image from stdin is written to stdout; say -o - and redirect: -o - > mask.png");
    }
    if (arguments.inputs.size() != 1) throw UsageError("-o - writes one image, so it takes one input: a file, or - for stdin");
    if (arguments.json || arguments.probabilities || arguments.probability_images || arguments.overlay ||
        arguments.instances || !arguments.stages.empty() ||
        arguments.format != "png") {
        throw UsageError("-o - writes one PNG and nothing beside it; name a folder for more");
    }
    if (isatty(STDOUT_FILENO) == 1) throw UsageError("-o - would write a PNG to the terminal; redirect it: -o - > mask.png");
    const bool from_stdin = arguments.inputs[0] == PIPE;
    std::string path = "/dev/stdin";
    if (!from_stdin) {
        const std::vector<std::string> paths = find_inputs(arguments.inputs);
        if (paths.size() != 1) {
            throw UsageError("-o - writes one image, and there are " + std::to_string(paths.size()) + " inputs; name a folder with -o");
        }
        path = paths[0];
    }
    check_output(package->manifest(), arguments.output);
    const std::unique_ptr<Opened> model = open_model(std::move(package), arguments.options);
    const ImageLimits limits{arguments.options.max_pixels, arguments.options.max_bytes};
    const std::string name = from_stdin ? "stdin" : fs::path(path).filename().string();
    const Image picture = read_image_bytes(read_file(path, limits.max_bytes), model->manifest().at("input"), name, limits,
                                           kept_of(arguments));
    const Rendered drawn = render(predict_picture(*model, picture, run_of(arguments)), arguments.output);
    const Bytes bytes = drawn.encode();
    if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size() || std::fflush(stdout) != 0) {
        throw OutputError("stdout cannot be written: " + last_failure());
    }
    for (const std::string& note : drawn.notes) {
        if (!arguments.quiet) std::cerr << "note: " << name << ": " << note << "\n";
    }
    return 0;
}

}  // namespace

void make_output_folder(const std::string& folder) {
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (!failed && fs::is_directory(folder, failed)) return;
    const std::string why = failed ? failed.message() : "a file is in the way";
    throw OutputError("cannot write into " + folder + ": " + why + "; choose another folder with -o");
}

int run_pictures(const Arguments& arguments, std::unique_ptr<Package> package) {
    if (!arguments.for_volumes.empty()) {
        throw UsageError(arguments.for_volumes.front() + " is for packages of volumes, and this one takes pictures");
    }
    const bool piped = arguments.out == PIPE ||
                       std::find(arguments.inputs.begin(), arguments.inputs.end(), PIPE) != arguments.inputs.end();
    if (piped) return through_pipe(arguments, std::move(package));
    const Json& manifest = package->manifest();
    check_output(manifest, arguments.output);
    check_more(arguments, manifest);
    const std::vector<Job> jobs = jobs_of(arguments);
    refuse_overwriting(arguments, jobs, manifest);
    if (!arguments.tta.empty()) augmented(manifest, arguments.tta, arguments.tta_ratios);  // refuses once, not every picture
    Options options = arguments.options;
    options.streams = streams_for(arguments, jobs.size(), manifest);
    Summary summary(arguments, jobs.size(), "images");
    const std::unique_ptr<Opened> model = open_model(std::move(package), options);
    if (arguments.options.precision == "auto" && !arguments.quiet) {
        std::cerr << model->choice.precision << ": " << model->choice.reason << "\n";
    }
    make_output_folder(arguments.out);
    // While one picture is in the engine, others are read and written.
    const std::size_t beside = std::min<std::size_t>(processor().cores, 4);
    const std::size_t threads = std::min(jobs.size(), static_cast<std::size_t>(options.streams) + beside);
    Work(*model, arguments, jobs, summary).on_threads(threads);
    return summary.tell();
}

}  // namespace segship
