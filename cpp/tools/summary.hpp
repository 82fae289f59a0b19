#pragma once
// How a run over files ended, its progress on stderr, and Ctrl-C.

#include <chrono>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "arguments.hpp"

namespace segship {

// Set by Ctrl-C: what is under way is finished, nothing new is begun.
bool interrupted();
void watch_for_interrupts();

// Thrown where work under way is given up because of Ctrl-C.
struct Interrupted {};

constexpr int INTERRUPTED = 130;

class Summary {
public:
    explicit Summary(const Arguments& arguments, std::size_t total, std::string unit);

    // From any thread: one input is done, or failed. `place` is its number among the inputs.
    void done(std::size_t place, const std::string& input, const std::vector<std::string>& notes);
    void failed(std::size_t place, const std::string& input, const std::string& message);
    // Part of the input under way, for long ones.
    void progress(const std::string& input, std::size_t part, std::size_t parts);

    // Print it as JSON or words; the exit code.
    int tell();

private:
    struct Entry {
        std::size_t place;
        std::string input, text;
    };
    const Arguments& arguments_;
    std::size_t total_;
    std::string unit_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    std::mutex guard_;
    std::size_t done_ = 0;
    std::vector<Entry> failed_, notes_;
    bool shows_;
    bool line_open_ = false;

    void show(const std::string& text);
    void tell_notes() const;
    void print_json(double seconds) const;
};

// One line: line breaks and runs of blanks become single blanks.
std::string one_line(const std::string& text);

}  // namespace segship
