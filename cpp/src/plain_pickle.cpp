#include "plain_pickle.hpp"

#include <cstring>

namespace segship {

Pickle::Pickle() {
    put('\x80');
    put(4);
}

void Pickle::little(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) put(static_cast<char>(value >> (8 * i)));
}

void Pickle::number(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    put('G');
    for (int i = 7; i >= 0; --i) put(static_cast<char>(bits >> (8 * i)));
}

void Pickle::number(std::size_t value) {
    if (value < (std::size_t{1} << 31)) {
        put('J');
        little(value, 4);
    } else {  // LONG1 of nine bytes: the last keeps the sign
        put('\x8a');
        put(9);
        little(value, 8);
        put(0);
    }
}

void Pickle::text(const std::string& value) {
    put('X');
    little(value.size(), 4);
    out_ += value;
}

void Pickle::global(const char* module, const char* name) {
    text(module);
    text(name);
    put('\x93');
}

// numpy's own way: an empty array, then its state (version, shape, type, order, bytes).
void Pickle::array(const Array<double>& value) {
    global("numpy.core.multiarray", "_reconstruct");
    tuple([&] {
        global("numpy", "ndarray");
        tuple([&] { number(std::size_t{0}); });
        put('C');
        put(1);
        put('b');
    });
    put('R');
    tuple([&] {
        number(std::size_t{1});
        tuple([&] {
            for (const std::size_t side : value.shape) number(side);
        });
        global("numpy", "dtype");
        tuple([&] {
            text("f8");
            put('\x89');
            put('\x88');
        });
        put('R');
        tuple([&] {
            number(std::size_t{3});
            text("<");
            for (int i = 0; i < 3; ++i) put('N');
            put('J');
            little(0xFFFFFFFFu, 4);
            put('J');
            little(0xFFFFFFFFu, 4);
            number(std::size_t{0});
        });
        put('b');
        put('\x89');
        put('B');
        little(value.size() * sizeof(double), 4);
        out_.append(reinterpret_cast<const char*>(value.data.data()), value.size() * sizeof(double));
    });
    put('b');
}

std::string Pickle::finished() && {
    put('.');
    return std::move(out_);
}

}  // namespace segship
