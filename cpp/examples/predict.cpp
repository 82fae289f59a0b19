// segship-example net.segship cell.png mask.png: one picture or volume through a package.
#include <iostream>

#include <segship/segship.hpp>

int main(int argc, char** argv) {
    if (argc != 4) return std::cerr << "usage: segship-example PACKAGE INPUT OUTPUT\n", 2;
    try {
        segship::Options options;
        options.threads = 2;
        const segship::Model model(argv[1], options);
        const segship::Prediction result = model.predict(argv[2]);
        for (const std::string& file : result.save(argv[3])) std::cout << "wrote " << file << "\n";
        for (const std::string& note : result.notes) std::cerr << "note: " << note << "\n";
        return 0;
    } catch (const segship::SegshipError& error) {
        std::cerr << "error: " << error.what() << "\n";
        return error.exit_code();
    }
}
