#pragma once
// Read and verify a .segship package: a zip, or the same tree as a folder. src/segship/package/ in C++.
//
//     manifest.json      the contract (manifest.hpp)
//     graphs/*.onnx      one per precision and ensemble member
//     provenance.json    where it came from, what was measured
//     SHA256SUMS         the hash of every file; its own hash names the package
//
// Nothing is used before its hash was checked, and nothing a zip says of itself is believed before it was read.

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "json.hpp"

namespace segship {

// Where a package's files come from.
class Store {
public:
    virtual ~Store() = default;
    virtual std::vector<std::string> names() const = 0;
    virtual std::size_t size(const std::string& name) const = 0;
    // Calls `take` with one piece after the other. PackageTampered for what cannot be read.
    using Take = std::function<void(const char*, std::size_t)>;
    virtual void read(const std::string& name, const Take& take) const = 0;
    // The file itself where the package is a folder, else empty.
    virtual std::string real_path(const std::string& name) const = 0;
};

class Package {
public:
    // Opens a package by its path, zip or folder. Raises PackageMissing, PackageError, PackageTampered, PackageTooNew.
    static std::unique_ptr<Package> open(const std::string& path);
    // The same from a zip in memory.
    static std::unique_ptr<Package> from_bytes(const std::string& data, const std::string& name);
    ~Package();

    const std::string& path() const { return path_; }
    // Hash of SHA256SUMS: identifies the content, zip and folder alike.
    const std::string& sha256() const { return sha256_; }
    // Names the trained network: a hash of the fp32 graphs alone, so that precisions and records may be added.
    std::string network_sha256() const;
    const Json& manifest() const { return manifest_; }
    const std::string& manifest_text() const { return manifest_text_; }

    // One file's bytes, hash-checked. PackageTampered when a byte differs.
    std::string read(const std::string& name) const;
    // The hash of every file. PackageTampered naming the first that differs.
    void check() const;
    // A real, hash-checked file of a graph; of a zip it is unpacked once into the user's cache.
    std::string graph_path(const std::string& precision, const std::string& member) const;

private:
    Package(std::string path, std::unique_ptr<Store> store);
    std::string unpacked(const std::string& name) const;
    void unpack_to(const std::string& name, const std::string& target) const;
    PackageTampered changed(const std::string& name) const;

    std::string path_;
    std::unique_ptr<Store> store_;
    std::map<std::string, std::string> sums_;
    std::string sha256_;
    Json manifest_;
    std::string manifest_text_;
    mutable std::mutex guard_;
    // Where graphs lie whose cache cannot be written; removed with the package.
    mutable std::string private_folder_;
};

// Zip in a file, in memory, or a folder. PackageError for what is none, or not to be trusted.
std::unique_ptr<Store> open_zip(const std::string& path);
std::unique_ptr<Store> open_zip_bytes(const std::string& data, const std::string& name);
std::unique_ptr<Store> open_folder(const std::string& path);

// Letters, digits and _ . - in parts between single slashes, none of them beginning with a dot or dash.
bool is_safe_name(const std::string& name);

}  // namespace segship
