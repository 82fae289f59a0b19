#include "summary.hpp"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <map>

#include <unistd.h>

#include "json.hpp"

namespace segship {

namespace {

std::atomic<bool> stop{false};

void on_interrupt(int) {
    stop = true;
    std::signal(SIGINT, SIG_DFL);  // a second Ctrl-C ends at once
}

std::string number(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

}  // namespace

bool interrupted() {
    return stop;
}

void watch_for_interrupts() {
    std::signal(SIGINT, on_interrupt);
    std::signal(SIGPIPE, SIG_IGN);
}

std::string one_line(const std::string& text) {
    std::string line;
    for (const char c : text) {
        const bool blank = c == ' ' || c == '\n' || c == '\r' || c == '\t';
        if (!blank) line += c;
        else if (!line.empty() && line.back() != ' ') line += ' ';
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    return line;
}

Summary::Summary(const Arguments& arguments, std::size_t total, std::string unit)
    : arguments_(arguments), total_(total), unit_(std::move(unit)), shows_(!arguments.quiet && isatty(STDERR_FILENO) == 1) {}

void Summary::show(const std::string& text) {
    if (!shows_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    line_open_ = true;
}

void Summary::done(std::size_t place, const std::string& input, const std::vector<std::string>& notes) {
    const std::lock_guard<std::mutex> lock(guard_);
    ++done_;
    for (const std::string& note : notes) notes_.push_back({place, input, note});
    show(std::to_string(done_ + failed_.size()) + "/" + std::to_string(total_) + " " + unit_ + "  " + input);
}

void Summary::failed(std::size_t place, const std::string& input, const std::string& message) {
    const std::lock_guard<std::mutex> lock(guard_);
    failed_.push_back({place, input, one_line(message)});
}

void Summary::progress(const std::string& input, std::size_t part, std::size_t parts) {
    const std::lock_guard<std::mutex> lock(guard_);
    show(input + "  " + std::to_string(part) + "/" + std::to_string(parts) + " windows  (" +
         std::to_string(done_ + failed_.size()) + "/" + std::to_string(total_) + " " + unit_ + " done)");
}

void Summary::print_json(double seconds) const {
    Json told = {{"done", done_}, {"skipped", 0}, {"failed", Json::array()}, {"notes", Json::array()}};
    for (const Entry& entry : failed_) told["failed"].push_back({{"input", entry.input}, {"error", entry.text}});
    for (const Entry& entry : notes_) told["notes"].push_back({{"input", entry.input}, {"note", entry.text}});
    const auto thousandths = [](double value) { return static_cast<double>(static_cast<long long>(value * 1000 + 0.5)) / 1000; };
    told["seconds"] = thousandths(seconds);
    told["images_per_second"] = nullptr;
    if (done_ > 0 && seconds > 0) told["images_per_second"] = thousandths(static_cast<double>(done_) / seconds);
    told["interrupted"] = interrupted();
    // File names need not be UTF-8; JSON must.
    std::cout << told.dump(2, ' ', false, Json::error_handler_t::replace) << std::endl;
}

void Summary::tell_notes() const {
    std::map<std::string, std::vector<std::string>> said;
    std::vector<std::string> order;
    for (const Entry& note : notes_) {
        if (said[note.text].empty()) order.push_back(note.text);
        said[note.text].push_back(note.input);
    }
    for (const std::string& text : order) {
        const std::vector<std::string>& names = said[text];
        std::string shown;
        for (std::size_t i = 0; i < names.size() && i < 3; ++i) shown += (i > 0 ? ", " : "") + names[i];
        if (names.size() > 3) shown += " and " + std::to_string(names.size() - 3) + " more";
        std::cerr << "note: " << shown << ": " << text << "\n";
    }
}

int Summary::tell() {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start_;
    const auto by_place = [](const Entry& a, const Entry& b) { return a.place < b.place; };
    std::stable_sort(failed_.begin(), failed_.end(), by_place);
    std::stable_sort(notes_.begin(), notes_.end(), by_place);
    if (line_open_) std::fputs("\r\033[K", stderr);
    if (arguments_.json) print_json(passed.count());
    for (const Entry& entry : failed_) {
        const bool named = entry.text.find(entry.input) != std::string::npos;
        std::cerr << "failed: " << (named ? "" : entry.input + ": ") << entry.text << "\n";
    }
    if (!arguments_.quiet && !arguments_.json) {
        tell_notes();
        const double speed = passed.count() > 0 ? static_cast<double>(done_) / passed.count() : 0;
        std::cout << done_ << " done" << (failed_.empty() ? "" : ", " + std::to_string(failed_.size()) + " failed") << " in "
                  << number("%.1f", passed.count()) << " s"
                  << (done_ > 0 ? ", " + number(unit_ == "images" ? "%.1f" : "%.2f", speed) + " " + unit_ + "/s" : "") << " -> "
                  << arguments_.out << std::endl;
    }
    if (interrupted()) {
        std::cerr << "interrupted; what was finished is kept, the same command starts over\n";
        return INTERRUPTED;
    }
    return failed_.empty() ? 0 : 1;
}

}  // namespace segship
