#pragma once
// numpy's files: .npz written by libzip, as numpy.savez_compressed writes them; .npy written plain.

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "array.hpp"

namespace segship {

// The header of a .npy of C order; `descr` is numpy's name of the type: "<f4", "|u1", "|b1", "<U12" ...
std::string npy_header(const std::string& descr, const Shape& shape);

// Arrays by name, written together. What is added by reference must live until `save`.
class Npz {
public:
    void add(const std::string& name, const Array<float>& array) { add(name, "<f4", array.shape, array.data.data(), 4); }
    void add(const std::string& name, const Array<double>& array) { add(name, "<f8", array.shape, array.data.data(), 8); }
    void add(const std::string& name, const Array<std::uint8_t>& array) {
        add(name, "|u1", array.shape, array.data.data(), 1);
    }
    void add(const std::string& name, const Array<std::uint16_t>& array) {
        add(name, "<u2", array.shape, array.data.data(), 2);
    }
    void add(const std::string& name, const Array<std::uint32_t>& array) {
        add(name, "<u4", array.shape, array.data.data(), 4);
    }
    // 0 and 1 as numpy's bool.
    void add_bools(const std::string& name, const Array<std::uint8_t>& array) {
        add(name, "|b1", array.shape, array.data.data(), 1);
    }
    // Labels in 8 bits where they fit, as Python keeps them.
    void add_labels(const std::string& name, const Array<std::uint16_t>& labels, bool eight_bits);
    // UTF-8 texts as numpy's unicode.
    void add_texts(const std::string& name, const std::vector<std::string>& texts);

    // The file, whole or not at all. OutputError.
    void save(const std::string& path) const;

private:
    struct Entry {
        std::string name;
        std::string header;
        const void* data;
        std::size_t bytes;
        std::string own;  // of entries that are not by reference
    };
    std::vector<Entry> entries_;

    void add(const std::string& name, const std::string& descr, const Shape& shape, const void* data, std::size_t width);
    void add_own(const std::string& name, const std::string& descr, const Shape& shape, std::string bytes);
};

}  // namespace segship
