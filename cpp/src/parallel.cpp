#include "parallel.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace segship {

std::size_t helper_threads() {
    return std::clamp<std::size_t>(std::thread::hardware_concurrency(), 1, 4);
}

void on_threads(std::size_t count, const std::function<void(std::size_t)>& job) {
    const std::size_t threads = std::min(helper_threads(), count);
    if (threads <= 1) {
        for (std::size_t i = 0; i < count; ++i) job(i);
        return;
    }
    std::atomic<std::size_t> next{0};
    std::exception_ptr failed;
    std::mutex guard;
    const auto work = [&] {
        try {
            for (std::size_t i = next++; i < count; i = next++) job(i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(guard);
            if (!failed) failed = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> others;
    others.reserve(threads - 1);
    try {
        for (std::size_t i = 1; i < threads; ++i) others.emplace_back(work);
    } catch (const std::system_error&) {  // no more threads to be had: this one does the rest
    }
    work();
    for (auto& thread : others) thread.join();
    if (failed) std::rethrow_exception(failed);
}

}  // namespace segship
