#pragma once
// Every error that a user can meet: what is wrong and what to do next, in one line. The classes and their exit codes
// are those of src/segship/errors.py; a library's own exception is translated where the library is called.

#include <stdexcept>
#include <string>

namespace segship {

class SegshipError : public std::runtime_error {
public:
    explicit SegshipError(const std::string& message, int code = 1) : std::runtime_error(message), code_(code) {}
    // What the command line returns.
    int exit_code() const noexcept { return code_; }

private:
    int code_;
};

// Arguments that cannot work together, or name nothing.
struct UsageError : SegshipError {
    explicit UsageError(const std::string& message) : SegshipError(message, 2) {}
};

// A .segship that cannot be used.
struct PackageError : SegshipError {
    explicit PackageError(const std::string& message, int code = 1) : SegshipError(message, code) {}
};

struct PackageMissing : PackageError {
    explicit PackageMissing(const std::string& message) : PackageError(message, 2) {}
};

// A byte differs from its recorded hash.
struct PackageTampered : PackageError {
    explicit PackageTampered(const std::string& message) : PackageError(message, 3) {}
};

// Written by a newer manifest version.
struct PackageTooNew : PackageError {
    explicit PackageTooNew(const std::string& message) : PackageError(message) {}
};

// One image or volume that cannot be read or does not fit.
struct InputError : SegshipError {
    explicit InputError(const std::string& message) : SegshipError(message) {}
};

// A place that cannot be written.
struct OutputError : SegshipError {
    explicit OutputError(const std::string& message) : SegshipError(message) {}
};

struct EngineError : SegshipError {
    explicit EngineError(const std::string& message) : SegshipError(message) {}
};

// The package or the engine has no such precision.
struct PrecisionMissing : EngineError {
    explicit PrecisionMissing(const std::string& message) : EngineError(message) {}
};

}  // namespace segship
