#pragma once
// Python pickles (protocol 4) of plain data: numbers, texts, lists, tuples, dicts and numpy's float64 arrays. What nnU-Net v2
// keeps beside probabilities is of that kind.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "array.hpp"

namespace segship {

// Writes values one after the other; containers are opened by the functions that take a callable.
class Pickle {
public:
    Pickle();
    void number(double value);
    void number(std::size_t value);
    void text(const std::string& value);
    void array(const Array<double>& value);
    template <typename Fill>
    void list(const Fill& fill) {
        put(']');
        put('(');
        fill();
        put('e');
    }
    template <typename Fill>
    void tuple(const Fill& fill) {
        put('(');
        fill();
        put('t');
    }
    // `fill` writes keys and values in turn.
    template <typename Fill>
    void dict(const Fill& fill) {
        put('}');
        put('(');
        fill();
        put('u');
    }
    std::string finished() &&;

private:
    void put(char byte) { out_.push_back(byte); }
    void little(std::uint64_t value, int bytes);
    void global(const char* module, const char* name);

    std::string out_;
};

}  // namespace segship
