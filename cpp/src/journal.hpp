#pragma once
// predictions.jsonl in a folder of results: one line for each input that was done, in Python's form, so that either runner
// knows what the other wrote there. src/segship/inference/journal.py in C++.

#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace segship {

// Real paths of what earlier runs wrote into this folder: results often lie below the folder that is given as input.
std::set<std::string> earlier_results(const std::string& folder);

// Appends whole lines, from several threads. OutputError where the folder cannot be written. An input is a picture, or all
// files of a case; its first file is its name.
class Journal {
public:
    using Files = std::vector<std::string>;

    explicit Journal(const std::string& folder);
    ~Journal();
    Journal(const Journal&) = delete;
    Journal& operator=(const Journal&) = delete;

    // To be called before `files` are replaced: of those that Python wrote it is noted now that they are no longer its own,
    // as it would skip their inputs if this run ended before `add`.
    void claim(const Files& input, const Files& files);
    // `files` are what was made of `input`.
    void add(const Files& input, const Files& files, const std::vector<std::string>& notes);

private:
    std::string folder_, path_;
    std::set<std::string> of_python_;  // real paths
    std::mutex guard_;
    int file_ = -1;
};

}  // namespace segship
