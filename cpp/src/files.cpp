#include "files.hpp"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>

#include <sys/stat.h>
#include <unistd.h>

#include "errors.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

OutputError not_written(const std::string& path, const std::string& reason) {
    return OutputError("cannot write " + path + ": " + reason + "; choose another place with -o or free some room");
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

// Names of the temporary files of two threads of a process differ as well.
std::string temporary_name(const fs::path& path) {
    static std::atomic<unsigned> number{0};
    const std::string unique = std::to_string(getpid()) + "-" + std::to_string(number++);
    return (path.parent_path() / ("." + path.filename().string() + "." + unique + ".tmp")).string();
}

}  // namespace

std::string last_failure() {
    return std::strerror(errno);
}

std::string cache_folder() {
    const std::string own = environment("SEGSHIP_CACHE_DIR");
    if (!own.empty()) return own;
    std::string base = environment("XDG_CACHE_HOME");
    if (base.empty()) base = environment("HOME") + "/.cache";
    return base + "/segship";
}

void replacing(const std::string& path, const std::function<void(const std::string&)>& write) {
    const fs::path target(path);
    const std::string temporary = temporary_name(target);
    std::error_code ignored;
    try {
        if (target.has_parent_path()) fs::create_directories(target.parent_path());
        write(temporary);
        fs::rename(temporary, target);
    } catch (const fs::filesystem_error& error) {
        fs::remove(temporary, ignored);
        throw not_written(path, error.code().message());
    } catch (...) {
        fs::remove(temporary, ignored);
        throw;
    }
}

void write_text(const std::string& path, const std::string& data) {
    replacing(path, [&](const std::string& temporary) {
        File file(std::fopen(temporary.c_str(), "wb"));
        if (!file) throw not_written(path, last_failure());
        const bool whole = std::fwrite(data.data(), 1, data.size(), file.get()) == data.size();
        if (!whole || std::fclose(file.release()) != 0) throw not_written(path, last_failure());
    });
}

std::string read_file(const std::string& path, std::size_t max_bytes) {
    const auto refused = [&] {
        return InputError(path + " cannot be read: " + last_failure() + "; check the path and its permissions");
    };
    File file(std::fopen(path.c_str(), "rb"));
    if (!file) throw refused();
    struct stat status {};
    if (fstat(fileno(file.get()), &status) != 0) throw refused();
    if (S_ISDIR(status.st_mode)) {
        errno = EISDIR;
        throw refused();
    }
    const auto too_large = [&](std::size_t size) {
        const std::string name = fs::path(path).filename().string();
        return InputError(name + " has " + with_commas(size) + " bytes, the limit is " + with_commas(max_bytes) +
                          "; raise it with --max-bytes");
    };
    const bool regular = S_ISREG(status.st_mode);
    if (regular && static_cast<std::size_t>(status.st_size) > max_bytes) {
        throw too_large(static_cast<std::size_t>(status.st_size));
    }
    std::string data;
    std::size_t room = regular ? static_cast<std::size_t>(status.st_size) + 1 : std::size_t{1} << 16;
    while (true) {
        const std::size_t have = data.size();
        data.resize(have + room);
        const std::size_t got = std::fread(&data[have], 1, room, file.get());
        data.resize(have + got);
        if (data.size() > max_bytes) throw too_large(data.size());
        if (got < room) break;
        room = std::max<std::size_t>(room, std::size_t{1} << 16);
    }
    if (std::ferror(file.get()) != 0) throw refused();
    return data;
}

std::string with_commas(std::size_t number) {
    std::string text = std::to_string(number);
    for (std::size_t at = text.size(); at > 3;) {
        at -= 3;
        text.insert(at, ",");
    }
    return text;
}

}  // namespace segship
