#include "arguments.hpp"

#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <map>
#include <cstdio>
#include <utility>

#include "errors.hpp"
#include "images.hpp"

namespace segship {

const char* const HELP =
    "segship-run PACKAGE INPUT... -o OUT [options]\n"
    "\n"
    "Predict pictures (files, folders, patterns) or cases of volumes with a .segship package; the results have the names\n"
    "that `segship predict` gives them. One picture through a pipe: segship-run net.segship - -o - < photo.jpg > mask.png\n"
    "\n"
    "  -o, --out FOLDER           where results go; - writes one picture's result to stdout\n"
    "  -i, --input FILE           a further file, folder or pattern\n"
    "  --precision NAME           fp32 (default), fp16, bf16, int8, int16 or auto\n"
    "  --threads N                of the engine [its own choice]\n"
    "  --streams N                inferences in flight at once [2 for many pictures, else 1]\n"
    "  --batch N                  pictures, or windows of one, that go through the network at once [1]\n"
    "  --cache-dir FOLDER         where compiled networks are kept\n"
    "  --save-probabilities       also float32 probabilities (npz)\n"
    "  --save-stages FOLDER       what stands between the stages, one npz an input\n"
    "  --num-parts N --part-id K  do only every N-th input, beginning with number K from 0\n"
    "  --json                     the result as JSON on stdout\n"
    "  -q, --quiet                no progress, no summary: warnings and errors only\n"
    "\n"
    "Pictures:\n"
    "  --output KIND              mask (default), ids, color, cityscapes, cutout, composite, overlay\n"
    "  --background COLOR|FILE    of composites\n"
    "  --threshold T              decide at this value, 0 to 1\n"
    "  --clean-mask --rgb-mask --palette --cutout-style straight|rembg --format png|npz --grid input|network\n"
    "  --matting --foreground-threshold N --background-threshold N --erode N   hair-fine edges; slow\n"
    "  --probability-images --overlay --instances   also these pictures\n"
    "  --tta [1.x|0.x] --tta-ratios A,B,...   average several sizes and mirrorings\n"
    "  --max-pixels N --max-bytes N           refuse larger pictures\n"
    "\n"
    "Volumes:\n"
    "  --disable-tta              no mirroring\n"
    "  --folds 0,1                these ensemble members alone\n"
    "  --step-size S              window step as a part of the window\n"
    "  --postprocessing auto|none the package's own component rules\n"
    "  --compat fp16-accumulators sum in float16, as nnU-Net does\n"
    "  --previous-stage PACKAGE   a cascade's first stage [beside this one]\n"
    "  --prev-stage-predictions FOLDER   its labels, made before\n"
    "\n"
    "Exit codes: 0 done; 1 the work, or some of it, failed; 2 unusable arguments; 3 a package was changed.\n";

namespace {

using Words = std::vector<std::string>;

// "-" is stdin or stdout, "-1" would be a number: neither is an option.
bool is_option(const std::string& word) {
    return word.size() > 1 && word[0] == '-' && !(word[1] >= '0' && word[1] <= '9');
}

long long whole(const std::string& name, const std::string& text, long long least, long long most) {
    char* end = nullptr;
    errno = 0;
    const long long value = std::strtoll(text.c_str(), &end, 10);
    if (text.empty() || *end != '\0' || errno != 0 || value < least || value > most) {
        throw UsageError(name + " takes a whole number of " + std::to_string(least) + " to " + std::to_string(most) +
                         ", not '" + text + "'");
    }
    return value;
}

double real(const std::string& name, const std::string& text) {
    char* end = nullptr;
    const double value = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != '\0' || !std::isfinite(value)) throw UsageError(name + " takes a number, not '" + text + "'");
    return value;
}

std::string one_of(const std::string& name, const std::string& text, const Words& allowed) {
    std::string names;
    for (const std::string& one : allowed) {
        if (text == one) return text;
        names += (names.empty() ? "" : ", ") + one;
    }
    throw UsageError(name + " is one of " + names + ", not '" + text + "'");
}

Words split(const std::string& text) {
    Words parts;
    std::string part;
    for (const char c : text + ",") {
        if (c != ',' && c != ' ') part += c;
        else if (!part.empty()) parts.push_back(std::exchange(part, ""));
    }
    return parts;
}

class Parser {
public:
    explicit Parser(const Words& words) : words_(words) { name_options(); }

    Arguments parse() {
        Words places;
        while (at_ < words_.size()) {
            const std::string word = words_[at_++];
            if (word == "--") {
                while (at_ < words_.size()) places.push_back(words_[at_++]);
            } else if (is_option(word)) {
                option(word);
            } else {
                places.push_back(word);
            }
        }
        if (found_.help || found_.version) return found_;
        if (places.empty()) throw UsageError("name a package and inputs: segship-run PACKAGE INPUT... -o OUT (--help says more)");
        found_.package = places.front();
        found_.inputs.insert(found_.inputs.begin(), places.begin() + 1, places.end());
        check();
        return found_;
    }

private:
    using Flag = std::function<void()>;
    using Valued = std::function<void(const std::string&)>;

    const Words& words_;
    std::size_t at_ = 0;
    Arguments found_;
    std::string name_;  // of the option under way, as it was typed
    std::map<std::string, Flag> flags_;
    std::map<std::string, Valued> valued_;
    double threshold_ = -1;
    std::string background_, part_id_, matting_setting_;
    bool kind_given_ = false;

    void option(std::string word) {
        const std::size_t equals = word.find('=');
        const bool inside = word.compare(0, 2, "--") == 0 && equals != std::string::npos;
        name_ = inside ? word.substr(0, equals) : word;
        if (const auto flag = flags_.find(name_); flag != flags_.end() && !inside) return flag->second();
        const auto valued = valued_.find(name_);
        if (valued == valued_.end()) throw UsageError("there is no option " + name_ + "; --help lists them");
        if (inside) return valued->second(word.substr(equals + 1));
        if (name_ == "--tta" && (at_ == words_.size() || (words_[at_] != "1.x" && words_[at_] != "0.x"))) {
            return valued->second("1.x");
        }
        if (at_ == words_.size()) throw UsageError(name_ + " takes a value; --help says which");
        valued->second(words_[at_++]);
        // nnU-Net's -f takes several: -f 0 1 2
        while (name_ == "-f" && at_ < words_.size() && !words_[at_].empty() &&
               words_[at_].find_first_not_of("0123456789") == std::string::npos) {
            valued->second(words_[at_++]);
        }
    }

    void text(const std::string& name, std::string& target) {
        valued_[name] = [&target](const std::string& value) { target = value; };
    }
    void picture(const std::string& name, const Valued& use) {
        valued_[name] = [this, use](const std::string& value) {
            found_.for_pictures.push_back(name_);
            use(value);
        };
    }
    void picture_flag(const std::string& name, bool& target) {
        flags_[name] = [this, &target] {
            found_.for_pictures.push_back(name_);
            target = true;
        };
    }
    void volume(const Words& names, const Valued& use) {
        for (const std::string& name : names) {
            valued_[name] = [this, use](const std::string& value) {
                found_.for_volumes.push_back(name_);
                use(value);
            };
        }
    }

    void name_options() {
        name_common();
        name_picture_options();
        name_volume_options();
    }

    void name_common() {
        Options& options = found_.options;
        for (const char* name : {"-o", "--out"}) text(name, found_.out);
        for (const char* name : {"-i", "--input"}) {
            valued_[name] = [this](const std::string& value) { found_.inputs.push_back(value); };
        }
        text("--precision", options.precision);
        text("--cache-dir", options.cache_dir);
        text("--save-stages", found_.stages);
        valued_["--threads"] = [&](const std::string& v) { options.threads = static_cast<int>(whole(name_, v, 1, 1024)); };
        valued_["--streams"] = [&](const std::string& v) {
            options.streams = static_cast<int>(whole(name_, v, 1, 256));
            found_.streams_given = true;
        };
        valued_["--batch"] = [&](const std::string& v) {
            options.batch = static_cast<std::size_t>(whole(name_, v, 1, 4096));
            found_.batch_given = true;
        };
        valued_["--num-parts"] = [&](const std::string& v) {
            found_.num_parts = static_cast<std::size_t>(whole(name_, v, 1, 1'000'000));
        };
        text("--part-id", part_id_);
        valued_["--device"] = [&](const std::string& v) {
            if (v != "cpu" && v != "CPU") throw UsageError("the C++ runner computes on the cpu; there is no device '" + v + "' here");
        };
        valued_["--engine"] = [&](const std::string& v) {
            if (v != "openvino") throw UsageError("the C++ runner has the engine openvino alone, not '" + v + "'");
        };
        for (const char* name : {"-h", "--help"}) flags_[name] = [this] { found_.help = true; };
        flags_["--version"] = [this] { found_.version = true; };
        flags_["--json"] = [this] { found_.json = true; };
        for (const char* name : {"-q", "--quiet"}) flags_[name] = [this] { found_.quiet = true; };
        for (const char* name : {"-v", "--verbose", "--overwrite"}) flags_[name] = [] {};
        flags_["--save-probabilities"] = [this] { found_.probabilities = true; };
    }

    void name_picture_options() {
        picture("--output", [this](const std::string& v) {
            found_.output.kind = one_of(name_, v, {"mask", "ids", "color", "cityscapes", "cutout", "composite", "overlay"});
            kind_given_ = true;
        });
        picture("--background", [this](const std::string& v) { background_ = v; });
        picture("--threshold", [this](const std::string& v) {
            threshold_ = real(name_, v);
            if (threshold_ < 0 || threshold_ > 1) throw UsageError("threshold lies in 0..1, got " + v);
        });
        picture("--cutout-style", [this](const std::string& v) { found_.output.cutout_style = one_of(name_, v, {"straight", "rembg"}); });
        picture("--format", [this](const std::string& v) { found_.format = one_of(name_, v, {"png", "npz"}); });
        picture("--grid", [this](const std::string& v) { found_.grid = one_of(name_, v, {"input", "network"}); });
        picture("--tta", [this](const std::string& v) { found_.tta = one_of(name_, v, {"1.x", "0.x"}); });
        picture("--tta-ratios", [this](const std::string& v) {
            for (const std::string& part : split(v)) found_.tta_ratios.push_back(real(name_, part));
        });
        valued_["--max-pixels"] = [this](const std::string& v) {
            found_.options.max_pixels = static_cast<std::size_t>(whole(name_, v, 1, 1LL << 40));
        };
        valued_["--max-bytes"] = [this](const std::string& v) {
            found_.options.max_bytes = static_cast<std::size_t>(whole(name_, v, 1, 1LL << 40));
        };
        picture_flag("--clean-mask", found_.output.clean_mask);
        picture_flag("--rgb-mask", found_.output.rgb_mask);
        picture_flag("--palette", found_.output.palette);
        picture_flag("--probability-images", found_.probability_images);
        picture_flag("--overlay", found_.overlay);
        picture_flag("--instances", found_.instances);
        picture_flag("--matting", found_.output.matting);
        const auto level = [this](const char* name, int& target, int most) {
            picture(name, [this, &target, most](const std::string& v) {
                target = static_cast<int>(whole(name_, v, 0, most));
                matting_setting_ = name_;
            });
        };
        level("--foreground-threshold", found_.output.foreground_threshold, 255);
        level("--background-threshold", found_.output.background_threshold, 255);
        level("--erode", found_.output.erode, 10'000);
    }

    void name_volume_options() {
        Options& options = found_.options;
        for (const char* name : {"--disable-tta", "--no-tta"}) {
            flags_[name] = [this] {
                found_.for_volumes.push_back(name_);
                found_.options.mirror = false;
            };
        }
        volume({"-f", "--folds"}, [&](const std::string& v) {
            if (v == "auto") return;
            const Words names = split(v);
            if (names.empty()) throw UsageError("--folds takes numbers such as 0,1,2");
            options.folds.insert(options.folds.end(), names.begin(), names.end());
        });
        volume({"--step-size", "-step_size", "--step_size"}, [&](const std::string& v) {
            options.step_size = real(name_, v);
            if (options.step_size <= 0 || options.step_size > 1) {
                throw UsageError("step size is a part of the window, above 0 and up to 1, not " + v);
            }
        });
        volume({"--postprocessing"}, [&](const std::string& v) { options.postprocess = one_of(name_, v, {"auto", "none"}) == "auto"; });
        volume({"--compat"}, [&](const std::string& v) {
            one_of(name_, v, {"fp16-accumulators"});
            found_.half_sums = true;
        });
        volume({"--previous-stage"}, [&](const std::string& v) { options.previous_stage = v; });
        volume({"--prev-stage-predictions"}, [&](const std::string& v) { found_.previous_labels = v; });
        volume({"--mirror-axes"}, [&](const std::string& v) {
            options.some_mirror_axes = true;
            for (const std::string& part : split(v)) options.mirror_axes.push_back(static_cast<int>(whole(name_, part, 0, 2)));
        });
    }

    void check() {
        if (found_.inputs.empty()) {
            throw UsageError("name at least one image, folder or pattern: segship-run PACKAGE INPUT... -o OUT");
        }
        if (found_.out.empty()) throw UsageError("-o names the folder for the results; - writes one image to stdout");
        check_parts();
        OutputOptions& output = found_.output;
        output.threshold = threshold_;
        if (!background_.empty()) use_background();
        if (output.rgb_mask && output.kind != "mask") {
            throw UsageError("--rgb-mask is a form of masks, not of a " + output.kind + "; leave one of them out");
        }
        if (output.cutout_style != "straight" && output.kind != "cutout" && output.kind != "composite") {
            throw UsageError("--cutout-style is for cutouts and composites, not for a " + output.kind);
        }
        if (output.matting && output.kind == "overlay") {
            throw UsageError("--matting is for cutouts, composites and masks; an overlay does not show it");
        }
        if (!matting_setting_.empty() && !output.matting) throw UsageError(matting_setting_ + " is a setting of --matting; add that");
        if (output.palette && found_.format != "png") throw UsageError("palette is a form of PNG and does not go with format npz");
        const bool plain = output.kind == "mask" && !output.rgb_mask && !output.matting;
        if (!plain && (found_.format != "png" || output.palette)) {
            throw UsageError((output.palette ? "palette" : "format " + found_.format) +
                             " is a form of plain masks; leave it out for cutouts, composites, matting, rgb masks");
        }
        if (output.needs_picture() && found_.grid == "network") {
            throw UsageError("cutouts, composites and matting lie on the picture's own grid; leave out grid network");
        }
        if (found_.probabilities && found_.probability_images) {
            throw UsageError("choose one of --save-probabilities (npz) and --probability-images (PNG)");
        }
        if (!found_.tta_ratios.empty() && found_.tta.empty()) throw UsageError("--tta-ratios are the sizes of --tta; add that");
        if (!found_.tta.empty() && !found_.stages.empty()) {
            throw UsageError("--save-stages keeps what stands between the stages of one view, and --tta has several; leave one out");
        }
        if (!found_.options.previous_stage.empty() && !found_.previous_labels.empty()) {
            throw UsageError("choose one of --previous-stage (its package runs) and --prev-stage-predictions (its labels)");
        }
        check_options(output);
    }

    void check_parts() {
        if (part_id_.empty() && found_.num_parts > 1) {
            throw UsageError("--num-parts " + std::to_string(found_.num_parts) + " divides the inputs; say which part this is: --part-id 0 to " +
                             std::to_string(found_.num_parts - 1));
        }
        if (part_id_.empty()) return;
        found_.part_id = static_cast<std::size_t>(whole("--part-id", part_id_, 0, 1'000'000));
        if (found_.part_id >= found_.num_parts) {
            throw UsageError("part_id counts from 0 to num_parts - 1, got part " + part_id_ + " of " + std::to_string(found_.num_parts));
        }
    }

    // A composite's background is a colour, or a picture.
    void use_background() {
        OutputOptions& output = found_.output;
        if (!kind_given_) output.kind = "composite";
        if (output.kind != "composite") {
            throw UsageError("--background lies behind a composite, not behind a " + output.kind + "; say --output composite");
        }
        try {
            output.background = parse_color(background_);
        } catch (const UsageError&) {
            std::FILE* file = std::fopen(background_.c_str(), "rb");
            if (file == nullptr) {
                throw UsageError("the background '" + background_ +
                                 "' is neither a colour (white, #rrggbb, r,g,b or r,g,b,a) nor an image file");
            }
            std::fclose(file);
            output.background_picture = read_rgb(background_);
        }
    }
};

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& words) {
    return Parser(words).parse();
}

}  // namespace segship
