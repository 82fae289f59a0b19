#include "volume_cases.hpp"

#include <algorithm>
#include <filesystem>
#include <map>

#include "errors.hpp"
#include "volume_text.hpp"
#include "volume_view.hpp"

namespace fs = std::filesystem;

namespace segship {
namespace {

struct Spec {
    std::vector<std::string> channels;
    std::string ending, folder_file, reader;
    bool one_file = false;

    explicit Spec(const Json& manifest) {
        const Json& input = manifest.at("input");
        for (const auto& channel : input.at("channels")) channels.push_back(field<std::string>(channel, "name"));
        ending = field<std::string>(input, "file_ending");
        folder_file = field_or<std::string>(input, "folder_file", "");
        reader = field<std::string>(input, "reader");
        one_file = field<std::string>(input, "channel_files") == "one-file";
    }

    std::size_t files_a_case() const { return one_file ? 1 : channels.size(); }
};

std::string without_gz(const std::string& name) { return ends_with(name, ".gz") ? name.substr(0, name.size() - 3) : name; }

bool is_folder_file(const std::string& name, const std::string& folder_file) {
    return !folder_file.empty() && (name == folder_file || name == without_gz(folder_file));
}

std::string stem_of(const std::string& name, const std::string& ending) {
    const std::string small = lower(name);
    for (const auto& suffix : {lower(ending), std::string(".nii.gz")}) {
        if (ends_with(small, suffix) && small.size() > suffix.size()) return name.substr(0, name.size() - suffix.size());
    }
    return fs::path(name).stem().string();
}

// The case and the channel of `liver_0001`; -1 where there is no number.
std::pair<std::string, int> numbered(const std::string& stem) {
    if (stem.size() < 6 || stem[stem.size() - 5] != '_') return {stem, -1};
    const std::string number = stem.substr(stem.size() - 4);
    if (!std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; })) return {stem, -1};
    return {stem.substr(0, stem.size() - 5), std::stoi(number)};
}

std::string suffix_of(std::size_t channel) {
    char buffer[16];
    std::snprintf(buffer, sizeof buffer, "_%04u", static_cast<unsigned>(channel));
    return buffer;
}

std::string rule(const Spec& spec) {
    const std::string names = joined(spec.channels, ", ");
    if (!spec.folder_file.empty()) {
        return "a case is a folder CASE with " + spec.folder_file + " in it, or one file CASE" + spec.ending + ", with " + names;
    }
    if (spec.files_a_case() == 1) {
        return "a case is one file CASE_0000" + spec.ending + " (or CASE" + spec.ending + ") with " + names;
    }
    return "a case is CASE_0000" + spec.ending + " to CASE" + suffix_of(spec.channels.size() - 1) + spec.ending + ": " + names;
}

std::vector<std::string> sorted_entries(const fs::path& folder, bool folders) {
    std::vector<std::string> out;
    try {
        for (const auto& entry : fs::directory_iterator(folder)) {
            const std::string name = entry.path().filename().string();
            if (folders ? entry.is_directory() : (entry.is_regular_file() && name[0] != '.')) out.push_back(name);
        }
    } catch (const fs::filesystem_error& error) {
        throw UsageError(folder.string() + " cannot be read: " + error.code().message() + "; check its permissions");
    }
    std::sort(out.begin(), out.end());
    return out;
}

// The images of a folder of cases that are folders, or of such a case; none where it is none.
std::vector<std::string> folder_files(const fs::path& folder, const Spec& spec) {
    std::vector<std::string> out;
    if (spec.folder_file.empty()) return out;
    std::vector<fs::path> places{folder};
    for (const auto& name : sorted_entries(folder, true)) places.push_back(folder / name);
    for (const auto& place : places) {
        for (const auto& name : {spec.folder_file, without_gz(spec.folder_file)}) {
            std::error_code failed;
            if (!fs::is_regular_file(place / name, failed)) continue;
            out.push_back((place / name).string());
            break;
        }
    }
    return out;
}

std::vector<std::string> below(const fs::path& folder, const Spec& spec, std::vector<std::string>& notes) {
    std::vector<std::string> files, with_number, left_out;
    for (const auto& name : sorted_entries(folder, false)) {
        const std::string small = lower(name);
        const bool prepared = spec.reader == "nibabel-stored" && ends_with(small, "_x.npy");
        if (!ends_with(small, lower(spec.ending)) && !prepared) continue;
        files.push_back((folder / name).string());
        if (numbered(stem_of(name, spec.ending)).second >= 0) {
            with_number.push_back(files.back());
        } else {
            left_out.push_back(name);
        }
    }
    if (with_number.empty()) {
        if (!files.empty() && spec.files_a_case() > 1) {
            throw UsageError(folder.string() + ": no file has a channel number; " + rule(spec));
        }
        return files;
    }
    if (!left_out.empty()) {
        const bool more = left_out.size() > 3;
        if (more) left_out.resize(3);
        notes.push_back(folder.string() + ": without a channel number and left out: " + joined(left_out, ", ") + (more ? " ..." : ""));
    }
    return with_number;
}

void add_numbered(const std::string& name, const std::map<int, std::string>& channels, const Spec& spec, FoundCases& out) {
    Case found{name, {}};
    bool right = true;
    for (std::size_t n = 0; n < spec.files_a_case(); ++n) {
        const auto place = channels.find(static_cast<int>(n));
        if (place != channels.end()) {
            found.files.push_back(place->second);
            continue;
        }
        right = false;
        out.problems.push_back(name + suffix_of(n) + spec.ending + " (" + spec.channels[n] + ") is missing");
    }
    for (const auto& [number, file] : channels) {
        if (number < static_cast<int>(spec.files_a_case())) continue;
        right = false;
        out.problems.push_back(fs::path(file).filename().string() + " is one channel too many");
    }
    if (right) out.cases.push_back(found);
}

void group(const std::vector<std::string>& files, const Spec& spec, FoundCases& out) {
    std::vector<std::string> order;
    std::map<std::string, std::map<int, std::string>> by_case;
    for (const auto& file : files) {
        const std::string name = fs::path(file).filename().string();
        if (is_folder_file(name, spec.folder_file)) {
            out.cases.push_back({case_name(file, spec.ending, spec.folder_file), {file}});
            continue;
        }
        if (ends_with(lower(name), ".npz")) {  // arrays of all channels, as a golden sample
            out.cases.push_back({stem_of(name, spec.ending), {file}});
            continue;
        }
        const auto [stem, channel] = numbered(stem_of(name, spec.ending));
        if (channel >= 0) {
            if (!by_case.count(stem)) order.push_back(stem);
            by_case[stem][channel] = file;
        } else if (spec.files_a_case() == 1) {
            out.cases.push_back({stem, {file}});
        } else {
            out.problems.push_back(name + " has no channel number");
        }
    }
    for (const auto& name : order) add_numbered(name, by_case[name], spec, out);
}

}  // namespace

std::string case_name(const std::string& path, const std::string& ending, const std::string& folder_file) {
    const fs::path file(path);
    if (is_folder_file(file.filename().string(), folder_file)) return fs::absolute(file).parent_path().filename().string();
    return numbered(stem_of(file.filename().string(), ending)).first;
}

FoundCases find_cases(const std::vector<std::string>& inputs, const Json& manifest) {
    const Spec spec(manifest);
    FoundCases out;
    std::vector<std::string> order;
    std::map<std::string, std::vector<std::string>> groups;  // channels of a case lie in one folder
    const auto add = [&](const std::string& folder, const std::string& file) {
        if (!groups.count(folder)) order.push_back(folder);
        auto& files = groups[folder];
        if (std::find(files.begin(), files.end(), file) == files.end()) files.push_back(file);
    };
    for (const auto& input : inputs) {
        const fs::path path(input);
        std::error_code ignored;
        if (!fs::exists(path, ignored)) throw UsageError("there is no file or folder " + input + "; check the path");
        if (fs::is_directory(path, ignored)) {
            auto files = folder_files(path, spec);
            if (files.empty()) files = below(path, spec, out.notes);
            for (const auto& file : files) add(path.string(), file);
        } else {
            add(path.parent_path().string(), input);
        }
    }
    for (const auto& folder : order) group(groups[folder], spec, out);
    std::map<std::string, Case> by_name;
    for (const auto& one : out.cases) {
        const auto known = by_name.find(one.name);
        if (known != by_name.end() && known->second.files != one.files) {
            out.problems.push_back("two cases are called " + one.name);
        }
        by_name[one.name] = one;
    }
    out.cases.clear();
    for (const auto& [name, one] : by_name) out.cases.push_back(one);
    if (out.cases.empty() && out.problems.empty()) throw UsageError("no case found; " + rule(spec));
    return out;
}

}  // namespace segship
