#pragma once
// Work beside the network's own threads: a fixed list of jobs on all cores, four at most.

#include <cstddef>
#include <functional>

namespace segship {

// The processor's cores, four at most.
std::size_t helper_threads();

// Every job 0 .. count-1 once, on up to `helper_threads()` threads; the first exception is raised.
void on_threads(std::size_t count, const std::function<void(std::size_t)>& job);

}  // namespace segship
