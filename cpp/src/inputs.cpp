#include "inputs.hpp"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <map>
#include <set>

#include <glob.h>

#include "containers.hpp"
#include "errors.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
    return text;
}

bool has_image_suffix(const fs::path& path) {
    const std::string name = lower(path.filename().string());
    return std::any_of(IMAGE_SUFFIXES.begin(), IMAGE_SUFFIXES.end(), [&](const std::string& suffix) {
        return name.size() >= suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
    });
}

bool is_hidden(const fs::path& path) {
    return path.filename().string().compare(0, 1, ".") == 0;
}

std::vector<fs::path> images_below(const fs::path& folder) {
    std::vector<fs::path> files;
    try {
        const auto options = fs::directory_options::skip_permission_denied;
        for (auto entry = fs::recursive_directory_iterator(folder, options); entry != fs::recursive_directory_iterator();
             ++entry) {
            if (is_hidden(entry->path())) {
                if (entry->is_directory()) entry.disable_recursion_pending();
            } else if (!entry->is_directory() && has_image_suffix(entry->path())) {
                files.push_back(entry->path());
            }
        }
    } catch (const fs::filesystem_error& error) {
        throw UsageError("the folder " + folder.string() + " cannot be read: " + error.code().message());
    }
    std::sort(files.begin(), files.end());
    return files;
}

std::vector<fs::path> glob_paths(const std::string& pattern) {
    glob_t found{};
    std::vector<fs::path> paths;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
    globfree(&found);
    return paths;
}

// A path as a pattern that matches it alone.
std::string escaped(const std::string& path) {
    std::string out;
    for (const char c : path) {
        if (c == '*' || c == '?' || c == '[' || c == '\\') out += '\\';
        out += c;
    }
    return out;
}

// This folder and those below it, without hidden ones.
std::vector<fs::path> folders_from(const fs::path& folder) {
    std::vector<fs::path> folders;
    std::error_code failed;
    if (!fs::is_directory(folder, failed)) return folders;
    folders.push_back(folder);
    const auto options = fs::directory_options::skip_permission_denied | fs::directory_options::follow_directory_symlink;
    auto entry = fs::recursive_directory_iterator(folder, options, failed);
    while (!failed && entry != fs::recursive_directory_iterator()) {
        std::error_code unreadable;
        const bool inside = entry->is_directory(unreadable);
        if (inside && is_hidden(entry->path())) entry.disable_recursion_pending();
        else if (inside) folders.push_back(entry->path());
        entry.increment(failed);
    }
    return folders;
}

// What a pattern matches; as in Python, a part ** stands for any number of folders.
std::set<fs::path> expanded(const std::string& pattern) {
    const std::string inside = "/" + pattern + "/";
    const std::size_t stars = inside.find("/**/");
    if (stars == std::string::npos) {
        const std::vector<fs::path> paths = glob_paths(pattern);
        return {paths.begin(), paths.end()};
    }
    const std::string head = pattern.substr(0, stars == 0 ? 0 : stars - 1);
    const std::string tail = stars + 3 < pattern.size() ? pattern.substr(stars + 3) : "*";
    const bool from_root = stars == 1 && pattern[0] == '/';
    std::set<fs::path> found;
    for (const fs::path& start : head.empty() ? std::vector<fs::path>{from_root ? "/" : "."} : glob_paths(head)) {
        for (const fs::path& folder : folders_from(start)) found.merge(expanded(escaped(folder.string()) + "/" + tail));
    }
    return found;
}

std::vector<fs::path> matching(const std::string& pattern) {
    std::vector<fs::path> files;
    for (const fs::path& path : expanded(pattern)) {
        if (fs::is_regular_file(path) && has_image_suffix(path)) files.push_back(path);
    }
    return files;
}

std::vector<fs::path> files_of(const std::string& item) {
    const fs::path path(item);
    std::error_code failed;
    if (fs::is_directory(path, failed)) {
        std::vector<fs::path> files = images_below(path);
        if (!files.empty()) return files;
        std::string suffixes;
        for (const std::string& suffix : IMAGE_SUFFIXES) suffixes += (suffixes.empty() ? "" : ", ") + suffix;
        throw UsageError("the folder " + item + " holds no image; files are taken by suffix: " + suffixes);
    }
    if (fs::exists(path, failed)) return {path};
    if (item.find_first_of("*?[") == std::string::npos) {
        throw UsageError("there is no file or folder " + item + "; check the path");
    }
    std::vector<fs::path> files = matching(item);
    if (files.empty()) throw UsageError("no image matches " + item + "; check the pattern");
    return files;
}

bool all_unlike(const std::vector<std::string>& names) {
    std::set<std::string> seen;
    for (const std::string& name : names) seen.insert(lower(name));
    return seen.size() == names.size();
}

fs::path common_folder(const std::vector<fs::path>& files) {
    fs::path common = files.front().parent_path();
    for (const fs::path& file : files) {
        const fs::path folder = file.parent_path();
        const auto [here, there] = std::mismatch(common.begin(), common.end(), folder.begin(), folder.end());
        fs::path shared;
        for (auto part = common.begin(); part != here; ++part) shared /= *part;
        common = shared;
    }
    return common;
}

}  // namespace

std::vector<std::string> find_inputs(const std::vector<std::string>& inputs, const std::set<std::string>& left_out) {
    std::vector<std::string> found;
    std::set<std::string> seen;
    for (const std::string& item : inputs) {
        const std::vector<fs::path> files = files_of(item);
        const bool outright = files.size() == 1 && files[0] == fs::path(item);
        for (const fs::path& file : files) {
            if (!outright && !left_out.empty() && left_out.count(real_path(file.string())) > 0) continue;
            const std::string name = tidied(file.string());
            if (seen.insert(name).second) found.push_back(name);
        }
    }
    return found;
}

std::string tidied(const std::string& path) {
    fs::path out;
    for (const fs::path& part : fs::path(path)) {
        if (!part.empty() && part != ".") out /= part;
    }
    return out.empty() ? "." : out.string();
}

std::vector<std::string> output_names(const std::vector<std::string>& inputs) {
    std::vector<std::string> names;
    for (const std::string& input : inputs) names.push_back(fs::path(input).stem().string());
    if (all_unlike(names)) return names;
    std::vector<fs::path> absolute;
    for (const std::string& input : inputs) absolute.push_back(fs::absolute(input).lexically_normal());
    const fs::path common = common_folder(absolute);
    std::map<std::string, int> often;
    names.clear();
    for (const fs::path& path : absolute) {
        names.push_back(path.lexically_relative(common).replace_extension().generic_string());
        ++often[lower(names.back())];
    }
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (often[lower(names[i])] == 1) continue;
        std::string suffix = absolute[i].extension().string();
        if (!suffix.empty()) suffix.erase(0, 1);
        names[i] += "_" + suffix;
    }
    if (!all_unlike(names)) throw UsageError("two inputs would be written under the same name; give them in separate runs");
    return names;
}

std::string real_path(const std::string& path) {
    std::error_code failed;
    const fs::path found = fs::weakly_canonical(path, failed);
    return failed ? fs::absolute(path).lexically_normal().string() : found.string();
}

}  // namespace segship
