#include "journal.hpp"

#include <filesystem>
#include <fstream>

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

}  // namespace

std::set<std::string> earlier_results(const std::string& folder) {
    std::set<std::string> found;
    std::ifstream file(fs::path(folder) / NAME);
    for (std::string line; std::getline(file, line);) {
        const Json entry = Json::parse(line, nullptr, false);  // a line that was cut off counts as not written
        if (!entry.is_object() || !entry.contains("outputs") || !entry.at("outputs").is_array()) continue;
        for (const Json& name : entry.at("outputs")) {
            if (name.is_string()) found.insert(real_path((fs::path(folder) / name.get<std::string>()).string()));
        }
    }
    return found;
}

Journal::Journal(const std::string& folder) : folder_(folder), path_((fs::path(folder) / NAME).string()) {
    const bool whole = ends_a_line(path_);
    file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file_ < 0 || (!whole && ::write(file_, "\n", 1) != 1)) {
        throw OutputError("cannot write into " + folder + ": " + last_failure() + "; choose another folder with -o");
    }
}

Journal::~Journal() {
    if (file_ >= 0) ::close(file_);
}

void Journal::add(const std::string& input, const std::vector<std::string>& files, const std::vector<std::string>& notes) {
    struct stat status {};
    const bool there = ::stat(input.c_str(), &status) == 0;
    const std::int64_t time = status.st_mtim.tv_sec * std::int64_t{1'000'000'000} + status.st_mtim.tv_nsec;
    Json entry = {{"input", input}, {"made_by", MADE_BY}, {"notes", notes}, {"outputs", Json::array()}};
    entry["size"] = there ? static_cast<std::int64_t>(status.st_size) : -1;
    entry["mtime_ns"] = there ? time : -1;
    for (const std::string& file : files) entry["outputs"].push_back(relative(file, folder_));
    const std::string line = entry.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    const std::lock_guard<std::mutex> lock(guard_);
    if (::write(file_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
        throw OutputError("cannot write " + path_ + ": " + last_failure() + "; free some room");
    }
}

}  // namespace segship
