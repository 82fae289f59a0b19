#include "package.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include <stdlib.h>

#include "files.hpp"
#include "manifest.hpp"
#include "sha256.hpp"

namespace fs = std::filesystem;

namespace segship {

namespace {

constexpr const char* MANIFEST = "manifest.json";
constexpr const char* PROVENANCE = "provenance.json";
constexpr const char* SUMS = "SHA256SUMS";
// The manifest, sums and provenance are read whole; anything larger is not ours.
constexpr std::size_t MAX_TEXT_BYTES = std::size_t{256} << 20;

std::string read_stored(const Store& store, const std::string& path, const std::string& name) {
    const bool graph = name.size() > 5 && name.compare(name.size() - 5, 5, ".onnx") == 0;
    if (store.size(name) > MAX_TEXT_BYTES && !graph) {
        throw PackageError(path + ": " + name + " is larger than any real one; do not use this package");
    }
    std::string data;
    store.read(name, [&](const char* piece, std::size_t size) { data.append(piece, size); });
    return data;
}

bool is_hash(const std::string& text) {
    return text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// "<64 hex digits>  <name>" a line, as sha256sum writes them.
std::map<std::string, std::string> parse_sums(const std::string& path, const std::string& data) {
    std::map<std::string, std::string> sums;
    std::istringstream lines(data);
    for (std::string line; std::getline(lines, line);) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        const bool formed = line.size() > 66 && is_hash(line.substr(0, 64)) && line.compare(64, 2, "  ") == 0;
        if (!formed || !is_safe_name(line.substr(66))) {
            throw PackageTampered(path + ": " + SUMS + " is damaged; fetch the package again");
        }
        sums[line.substr(66)] = line.substr(0, 64);
    }
    return sums;
}

// Up to five names that stand in one of both but not in the other; empty where they agree.
std::string odd_names(const std::map<std::string, std::string>& sums, const std::vector<std::string>& names) {
    std::set<std::string> listed, there(names.begin(), names.end()), odd;
    there.erase(SUMS);
    for (const auto& [name, digest] : sums) listed.insert(name);
    std::set_symmetric_difference(listed.begin(), listed.end(), there.begin(), there.end(),
                                  std::inserter(odd, odd.end()));
    std::string text;
    int shown = 0;
    for (const std::string& name : odd) {
        if (++shown > 5) break;
        text += (text.empty() ? "" : ", ") + name;
    }
    return text;
}

}  // namespace

std::unique_ptr<Package> Package::open(const std::string& path) {
    std::error_code failed;
    const fs::file_status status = fs::status(path, failed);
    if (!fs::exists(status)) {
        throw PackageMissing(path + " does not exist; `segship export` makes a package from a checkpoint");
    }
    return std::unique_ptr<Package>(new Package(path, fs::is_directory(status) ? open_folder(path) : open_zip(path)));
}

std::unique_ptr<Package> Package::from_bytes(const std::string& data, const std::string& name) {
    return std::unique_ptr<Package>(new Package(name, open_zip_bytes(data, name)));
}

Package::Package(std::string path, std::unique_ptr<Store> store) : path_(std::move(path)), store_(std::move(store)) {
    const std::vector<std::string> names = store_->names();
    for (const char* needed : {MANIFEST, PROVENANCE, SUMS}) {
        if (std::find(names.begin(), names.end(), needed) != names.end()) continue;
        throw PackageError(path_ + ": " + needed + " is missing; this is no .segship package (`segship export` makes " +
                           "one of a checkpoint), or an incomplete one: fetch it again");
    }
    const std::string sums = read_stored(*store_, path_, SUMS);
    sha256_ = sha256_bytes(sums);
    sums_ = parse_sums(path_, sums);
    const std::string odd = odd_names(sums_, names);
    if (!odd.empty()) {
        throw PackageTampered(path_ + ": " + odd + ": in the package or in " + SUMS + " but not both; fetch it again");
    }
    manifest_text_ = read(MANIFEST);
    manifest_ = parse_manifest(manifest_text_);
    for (const Json& variant : manifest_.at("variants")) {
        for (const auto& [member, name] : variant.at("graphs").items()) {
            const auto found = sums_.find(name.get<std::string>());
            if (found != sums_.end() && variant.at("sha256").at(member) == found->second) continue;
            throw PackageTampered(path_ + ": the hash of " + name.get<std::string>() +
                                  " is not the manifest's; fetch the package again");
        }
    }
}

Package::~Package() {
    std::error_code ignored;
    if (!private_folder_.empty()) fs::remove_all(private_folder_, ignored);
}

std::string Package::network_sha256() const {
    std::string lines;
    for (const auto& [member, digest] : find_variant(manifest_, "fp32")->at("sha256").items()) {
        lines += (lines.empty() ? "" : "\n") + member + " " + digest.get<std::string>();
    }
    return sha256_bytes(lines);
}

PackageTampered Package::changed(const std::string& name) const {
    return PackageTampered(path_ + ": " + name + " was changed after the package was written; fetch it again");
}

std::string Package::read(const std::string& name) const {
    const auto known = sums_.find(name);
    if (known == sums_.end()) throw PackageError(path_ + ": there is no " + name + " inside");
    const std::lock_guard<std::mutex> lock(guard_);
    std::string data = read_stored(*store_, path_, name);
    if (sha256_bytes(data) != known->second) throw changed(name);
    return data;
}

void Package::check() const {
    const std::lock_guard<std::mutex> lock(guard_);
    for (const auto& [name, digest] : sums_) {
        Sha256 hash;
        store_->read(name, [&](const char* piece, std::size_t size) { hash.add(piece, size); });
        if (hash.hex() != digest) throw changed(name);
    }
}

std::string Package::graph_path(const std::string& precision, const std::string& member) const {
    const Json* variant = find_variant(manifest_, precision);
    if (variant == nullptr) {
        throw PackageError(path_ + " has no " + precision + " variant (it has " + variant_names(manifest_) +
                           "); make one with `segship compile --precision " + precision + "`");
    }
    const std::string name = variant->at("graphs").at(member).get<std::string>();
    const std::string real = store_->real_path(name);
    if (real.empty()) return unpacked(name);
    try {
        if (sha256_file(real) == sums_.at(name)) return real;
    } catch (const std::ios_base::failure&) {
        throw PackageTampered(path_ + ": " + name + " cannot be read; check its permissions or fetch the package again");
    }
    throw changed(name);
}

// Hashed while it is written, so that a large graph is never in memory.
void Package::unpack_to(const std::string& name, const std::string& target) const {
    replacing(target, [&](const std::string& temporary) {
        std::ofstream file(temporary, std::ios::binary);
        Sha256 hash;
        store_->read(name, [&](const char* piece, std::size_t size) {
            hash.add(piece, size);
            file.write(piece, static_cast<std::streamsize>(size));
        });
        file.close();
        if (!file) throw OutputError("cannot write " + target + ": " + last_failure() + "; free some room");
        if (hash.hex() != sums_.at(name)) throw changed(name);
    });
}

std::string Package::unpacked(const std::string& name) const {
    const std::string& digest = sums_.at(name);
    const std::string file = digest.substr(0, 32) + fs::path(name).extension().string();
    const fs::path target = fs::path(cache_folder()) / "graphs" / file;
    const std::lock_guard<std::mutex> lock(guard_);
    try {
        if (fs::is_regular_file(target) && sha256_file(target.string()) == digest) return target.string();
        unpack_to(name, target.string());
        return target.string();
    } catch (const OutputError&) {
    } catch (const std::ios_base::failure&) {
    } catch (const fs::filesystem_error&) {
    }
    // A cache that cannot be written is no error: a private temporary file does, for as long as we live.
    if (private_folder_.empty()) {
        std::string pattern = (fs::temp_directory_path() / "segship-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) {
            throw OutputError("neither " + cache_folder() + " nor " + pattern + " can be written: " + last_failure() +
                              "; name a cache folder with SEGSHIP_CACHE_DIR");
        }
        private_folder_ = pattern;
    }
    const std::string here = (fs::path(private_folder_) / file).string();
    unpack_to(name, here);
    return here;
}

}  // namespace segship
