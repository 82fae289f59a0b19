// The two forms of a package: a zip by libzip, and a folder.

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>

#include <zip.h>

#include "package.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

constexpr std::size_t MAX_FILES = 10'000;
constexpr std::size_t MAX_TOTAL_BYTES = std::size_t{32} << 30;
constexpr std::size_t CHUNK = std::size_t{1} << 20;

PackageTampered unreadable(const std::string& path, const std::string& name, const std::string& why) {
    return PackageTampered(path + ": " + name + " cannot be read (" + why + "); fetch the package again");
}

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// Control characters of a hostile name stay out of messages.
std::string printable(const std::string& name) {
    std::string shown;
    for (const char c : name.substr(0, 80)) shown += static_cast<unsigned char>(c) < 32 || c == 127 ? '?' : c;
    return "'" + shown + "'";
}

struct CloseZip {
    void operator()(zip_t* archive) const { zip_discard(archive); }
};
struct CloseMember {
    void operator()(zip_file_t* member) const { zip_fclose(member); }
};

class ZipStore : public Store {
public:
    ZipStore(std::string path, zip_t* archive, std::string bytes = {})
        : path_(std::move(path)), bytes_(std::move(bytes)), archive_(archive) {
        list_members();
    }

    std::vector<std::string> names() const override {
        std::vector<std::string> found;
        for (const auto& [name, member] : members_) found.push_back(name);
        return found;
    }

    std::size_t size(const std::string& name) const override { return members_.at(name).size; }
    std::string real_path(const std::string&) const override { return ""; }

    void read(const std::string& name, const Take& take) const override {
        const Member& about = members_.at(name);
        const std::unique_ptr<zip_file_t, CloseMember> member(zip_fopen_index(archive_.get(), about.index, 0));
        if (!member) throw unreadable(path_, name, zip_strerror(archive_.get()));
        std::vector<char> chunk(CHUNK);
        std::size_t left = about.size;
        while (true) {
            // One byte more than declared is asked for, so that the end is reached, where the checksum is compared.
            const std::size_t wanted = std::min(chunk.size(), left + 1);
            const zip_int64_t got = zip_fread(member.get(), chunk.data(), wanted);
            if (got < 0) throw unreadable(path_, name, zip_error_strerror(zip_file_get_error(member.get())));
            if (got == 0) break;
            if (static_cast<std::size_t>(got) > left) throw unreadable(path_, name, "longer than it says");
            left -= static_cast<std::size_t>(got);
            take(chunk.data(), static_cast<std::size_t>(got));
        }
        if (left != 0) throw unreadable(path_, name, "cut short");
    }

private:
    struct Member {
        zip_uint64_t index;
        std::size_t size;
    };
    std::string path_;
    std::string bytes_;  // what a zip in memory is read from: outlives the archive
    std::unique_ptr<zip_t, CloseZip> archive_;
    std::map<std::string, Member> members_;

    void list_members() {
        const zip_int64_t count = zip_get_num_entries(archive_.get(), 0);
        refuse_torch(count);
        std::size_t total = 0;
        bool twice = false;
        for (zip_int64_t i = 0; i < count; ++i) {
            const auto index = static_cast<zip_uint64_t>(i);
            zip_stat_t about;
            zip_stat_init(&about);
            if (zip_stat_index(archive_.get(), index, ZIP_FL_ENC_RAW, &about) != 0 || about.name == nullptr) {
                throw PackageError(path_ + " is not a .segship package (" + zip_strerror(archive_.get()) +
                                   "); make one with `segship export`");
            }
            check_member(about);
            total += std::min<std::size_t>(about.size, MAX_TOTAL_BYTES + 1);
            twice |= !members_.emplace(about.name, Member{index, about.size}).second;
            if (static_cast<std::size_t>(count) > MAX_FILES || total > MAX_TOTAL_BYTES) {
                throw PackageError(path_ + ": " + std::to_string(count) + " files, " + std::to_string(total) +
                                   " bytes unpacked: beyond a package's limits; do not use it");
            }
        }
        if (twice) throw PackageError(path_ + ": two files of the same name inside; export it again");
    }

    void refuse_torch(zip_int64_t count) const {
        for (zip_int64_t i = 0; i < count; ++i) {
            const char* name = zip_get_name(archive_.get(), static_cast<zip_uint64_t>(i), ZIP_FL_ENC_RAW);
            if (name == nullptr || !(ends_with(name, "/data.pkl") || ends_with(name, "/constants.pkl"))) continue;
            throw PackageError(path_ + " is a PyTorch file, not a package; `segship export " + path_ +
                               " -o net.segship` makes one");
        }
    }

    void check_member(const zip_stat_t& about) const {
        const std::string name = about.name;
        if (!is_safe_name(name)) {
            throw PackageError(path_ + ": unsafe file name " + printable(name) + " inside; do not use this package");
        }
        if (about.encryption_method != ZIP_EM_NONE) {
            throw PackageError(path_ + ": " + name + " is encrypted; packages are not");
        }
        // Ours are stored. A compressed member may be a bomb: judged by its declared size, which reading enforces.
        const std::size_t packed = std::max<zip_uint64_t>(about.comp_size, 1);
        if (packed < (std::size_t{1} << 50) && about.size > 1000 * packed + CHUNK) {
            throw PackageError(path_ + ": " + name + " would unpack to " + std::to_string(about.size) +
                               " bytes; do not use this package");
        }
    }
};

PackageError no_zip(const std::string& path, const std::string& why) {
    return PackageError(path + " is not a .segship package (" + why + "); make one with `segship export`");
}

class FolderStore : public Store {
public:
    explicit FolderStore(std::string root) : root_(std::move(root)) {}

    std::vector<std::string> names() const override {
        std::vector<std::string> found;
        try {
            for (const auto& entry : fs::recursive_directory_iterator(root_)) {
                if (entry.is_symlink()) {
                    throw PackageError(root_ + ": " + entry.path().filename().string() +
                                       " is a link; packages hold plain files only");
                }
                if (entry.is_regular_file()) found.push_back(entry.path().lexically_relative(root_).generic_string());
                if (found.size() > MAX_FILES) throw PackageError(root_ + ": more files than a package has");
            }
        } catch (const fs::filesystem_error& error) {
            throw PackageError(root_ + " cannot be read (" + error.code().message() + "); check its permissions");
        }
        std::sort(found.begin(), found.end());
        return found;
    }

    std::size_t size(const std::string& name) const override {
        std::error_code failed;
        const auto found = fs::file_size(fs::path(root_) / name, failed);
        return failed ? 0 : static_cast<std::size_t>(found);
    }

    void read(const std::string& name, const Take& take) const override {
        std::ifstream file(fs::path(root_) / name, std::ios::binary);
        if (!file) throw unreadable(root_, name, "no permission, or no file");
        std::vector<char> chunk(CHUNK);
        while (file) {
            file.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
            take(chunk.data(), static_cast<std::size_t>(file.gcount()));
        }
        if (file.bad()) throw unreadable(root_, name, "input/output error");
    }

    std::string real_path(const std::string& name) const override { return (fs::path(root_) / name).string(); }

private:
    std::string root_;
};

bool begins_part(char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
}

}  // namespace

bool is_safe_name(const std::string& name) {
    bool first = true;
    for (const char c : name) {
        if (first ? !begins_part(c) : !(begins_part(c) || c == '.' || c == '-' || c == '/')) return false;
        first = c == '/';
    }
    return !first;
}

std::unique_ptr<Store> open_zip(const std::string& path) {
    std::error_code failed;
    if (fs::file_size(path, failed) == 0 && !failed) throw no_zip(path, "it is empty");  // libzip takes that for an archive
    int code = 0;
    zip_t* archive = zip_open(path.c_str(), ZIP_RDONLY, &code);
    if (archive == nullptr) {
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        const std::string why = zip_error_strerror(&error);
        zip_error_fini(&error);
        throw no_zip(path, why);
    }
    return std::make_unique<ZipStore>(path, archive);
}

std::unique_ptr<Store> open_zip_bytes(const std::string& data, const std::string& name) {
    if (data.empty()) throw no_zip(name, "it is empty");
    std::string kept = data;
    zip_error_t error;
    zip_error_init(&error);
    zip_source_t* source = zip_source_buffer_create(kept.data(), kept.size(), 0, &error);
    zip_t* archive = source == nullptr ? nullptr : zip_open_from_source(source, ZIP_RDONLY, &error);
    const std::string why = archive == nullptr ? zip_error_strerror(&error) : "";
    zip_error_fini(&error);
    if (archive == nullptr) {
        if (source != nullptr) zip_source_free(source);
        throw no_zip(name, why);
    }
    // The source points at the characters, which a move of a long string leaves where they are.
    return std::make_unique<ZipStore>(name, archive, std::move(kept));
}

std::unique_ptr<Store> open_folder(const std::string& path) {
    return std::make_unique<FolderStore>(path);
}

}  // namespace segship
