#pragma once
// Files as a whole: read within a limit, written there whole or not at all; and where caches lie.

#include <cstddef>
#include <functional>
#include <string>

namespace segship {

// The user's cache folder: $SEGSHIP_CACHE_DIR, else segship/ in $XDG_CACHE_HOME or ~/.cache.
std::string cache_folder();

// Call `write` with a temporary path beside `path` and rename what it wrote into place; folders are made, and the
// temporary file is gone whatever happens. OutputError when the place cannot be written or is full.
void replacing(const std::string& path, const std::function<void(const std::string&)>& write);

// `data` at `path`, whole or not at all. OutputError.
void write_text(const std::string& path, const std::string& data);

// The whole file. Raises InputError for what cannot be read or is larger than `max_bytes`; pipes are read to the end.
std::string read_file(const std::string& path, std::size_t max_bytes);

// What the system says of the last failure.
std::string last_failure();

// 12345678 as "12,345,678".
std::string with_commas(std::size_t number);

}  // namespace segship
