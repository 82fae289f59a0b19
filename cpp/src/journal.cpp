#include "journal.hpp"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "errors.hpp"
#include "files.hpp"
#include "inputs.hpp"
#include "json.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

constexpr const char* NAME = "predictions.jsonl";
constexpr const char* MADE_BY = "segship-run";  // no recipe's hash: Python does these inputs again

std::string relative(const std::string& path, const std::string& folder) {
    std::error_code failed;
    const fs::path found = fs::proximate(path, folder, failed);
    return failed ? path : found.generic_string();
}

bool ends_a_line(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file || file.tellg() == 0) return true;
    file.seekg(-1, std::ios::end);
    return file.get() == '\n';
}

// File names need not be UTF-8. Python writes their other bytes as escapes \udc80 to \udcff, halves of characters that no
// JSON library takes. Between both stands a NUL, which no file name has, and the byte in two hexadecimal digits.
constexpr char MARK = '\0';
constexpr const char* MARK_ESCAPED = "\\u0000";

// Bytes of the UTF-8 character that begins here; 0 where there is none.
std::size_t character(const std::string& text, std::size_t at) {
    const auto byte = [&](std::size_t place) { return place < text.size() ? static_cast<unsigned char>(text[place]) : 0U; };
    const unsigned first = byte(at), second = byte(at + 1);
    if (first < 0x80) return 1;
    const std::size_t size = first < 0xC2 || first > 0xF4 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    for (std::size_t i = 1; i < size; ++i) {
        if (byte(at + i) < 0x80 || byte(at + i) > 0xBF) return 0;
    }
    const bool overlong = (first == 0xE0 && second < 0xA0) || (first == 0xF0 && second < 0x90);
    const bool beyond = (first == 0xED && second > 0x9F) || (first == 0xF4 && second > 0x8F);
    return overlong || beyond ? 0 : size;
}

std::string marked(const std::string& text) {
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t size = character(text, at);
        if (size == 0) {
            char digits[3];
            std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned>(static_cast<unsigned char>(text[at])));
            (out += MARK) += digits;
        }
        out.append(text, at, size);
        at += std::max<std::size_t>(size, 1);
    }
    return out;
}

std::string unmarked(const std::string& text) {
    std::string out;
    for (std::size_t at = 0; at < text.size(); ++at) {
        const bool byte = text[at] == MARK && at + 2 < text.size();
        out += byte ? static_cast<char>(std::strtol(text.substr(at + 1, 2).c_str(), nullptr, 16)) : text[at];
        at += byte ? 2 : 0;
    }
    return out;
}

// The number of the escape \uXXXX that stands here; -1 where none does.
int escaped(const std::string& line, std::size_t at) {
    if (line.compare(at, 2, "\\u") != 0 || at + 6 > line.size()) return -1;
    const std::string digits = line.substr(at + 2, 4);
    return digits.find_first_not_of("0123456789abcdefABCDEF") == std::string::npos ? std::stoi(digits, nullptr, 16) : -1;
}

// A line of JSON with every escape as `change` has it: it is given the place of a backslash and returns what stands for the
// characters it takes, with their number.
template <typename Change>
std::string with_escapes(const std::string& line, const Change& change) {
    std::string out;
    std::size_t at = 0;
    for (std::size_t next = line.find('\\'); next != std::string::npos; next = line.find('\\', at)) {
        out.append(line, at, next - at);
        const auto [text, size] = change(next);
        out += text;
        at = std::min(next + size, line.size());
    }
    return out.append(line, at, std::string::npos);
}

std::string as_python_writes(const std::string& line) {
    return with_escapes(line, [&](std::size_t at) {
        if (escaped(line, at) == 0) return std::pair(std::string("\\udc"), std::size_t{6});
        return std::pair(line.substr(at, 2), std::size_t{2});
    });
}

std::string as_json(const std::string& line) {
    return with_escapes(line, [&](std::size_t at) {
        const int number = escaped(line, at);
        if (number >= 0xD800 && number < 0xDC00) return std::pair(line.substr(at, 12), std::size_t{12});  // with its other half
        if (number >= 0xDC80 && number <= 0xDCFF) return std::pair(MARK_ESCAPED + line.substr(at + 4, 2), std::size_t{6});
        return std::pair(line.substr(at, 2), std::size_t{2});
    });
}

// Call `visit` with each file that a line tells of, and whether Python may count on it: what another program made, or a line
// without a maker names, is not what a recipe of its own gives.
template <typename Visit>
void each_result(const std::string& folder, const Visit& visit) {
    std::ifstream file(fs::path(folder) / NAME);
    for (std::string line; std::getline(file, line);) {
        const Json entry = Json::parse(as_json(line), nullptr, false);  // a line that was cut off counts as not written
        if (!entry.is_object() || !entry.contains("outputs") || !entry.at("outputs").is_array()) continue;
        const Json made_by = entry.contains("made_by") ? entry.at("made_by") : Json();
        const bool counts = made_by != MADE_BY && made_by != "";
        for (const Json& name : entry.at("outputs")) {
            if (name.is_string()) visit((fs::path(folder) / unmarked(name.get<std::string>())).string(), counts);
        }
    }
}

// Real paths of the files that Python wrote last.
std::set<std::string> pythons_results(const std::string& folder) {
    std::set<std::string> found;
    each_result(folder, [&](const std::string& path, bool counts) {
        if (counts) found.insert(real_path(path));
        else if (!found.empty()) found.erase(real_path(path));
    });
    return found;
}

// As Python tells inputs apart: the size of all files and the time of the newest; -1 where one cannot be read.
std::pair<std::int64_t, std::int64_t> size_and_time(const std::vector<std::string>& files) {
    std::int64_t size = 0, time = 0;
    for (const std::string& file : files) {
        struct stat status {};
        if (::stat(file.c_str(), &status) != 0) return {-1, -1};
        size += static_cast<std::int64_t>(status.st_size);
        time = std::max(time, status.st_mtim.tv_sec * std::int64_t{1'000'000'000} + status.st_mtim.tv_nsec);
    }
    return {size, time};
}

}  // namespace

std::set<std::string> earlier_results(const std::string& folder) {
    std::set<std::string> found;
    each_result(folder, [&](const std::string& path, bool) { found.insert(real_path(path)); });
    return found;
}

Journal::Journal(const std::string& folder)
    : folder_(folder), path_((fs::path(folder) / NAME).string()), of_python_(pythons_results(folder)) {
    const bool whole = ends_a_line(path_);
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0 || (!whole && ::write(file_, "\n", 1) != 1)) {
        throw OutputError("cannot write into " + folder + ": " + last_failure() + "; choose another folder with -o");
    }
}

Journal::~Journal() {
    if (file_ >= 0) ::close(file_);
}

void Journal::claim(const Files& input, const Files& files) {
    Files taken;
    {
        const std::lock_guard<std::mutex> lock(guard_);
        if (of_python_.empty()) return;
        const auto is_pythons = [&](const std::string& file) { return of_python_.erase(real_path(file)) > 0; };
        std::copy_if(files.begin(), files.end(), std::back_inserter(taken), is_pythons);
    }
    if (!taken.empty()) add(input, taken, {});
}

void Journal::add(const Files& input, const Files& files, const std::vector<std::string>& notes) {
    const auto [size, time] = size_and_time(input);
    Json entry = {{"input", marked(tidied(input.front()))}, {"made_by", MADE_BY}, {"size", size}, {"mtime_ns", time}};
    entry["notes"] = entry["outputs"] = Json::array();
    for (const std::string& note : notes) entry["notes"].push_back(marked(note));
    for (const std::string& file : files) entry["outputs"].push_back(marked(relative(file, folder_)));
    const std::string line = as_python_writes(entry.dump(-1, ' ', true)) + "\n";
    const std::lock_guard<std::mutex> lock(guard_);
    if (::write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
        throw OutputError("cannot write " + path_ + ": " + last_failure() + "; free some room");
    }
}

}  // namespace segship
