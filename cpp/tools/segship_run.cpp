// segship-run: predict with a .segship package, without Python. Every failure is one line and an exit code.

#include <exception>
#include <iostream>
#include <memory>
#include <new>

#include <unistd.h>

#include "engine.hpp"
#include "errors.hpp"
#include "runs.hpp"
#include "summary.hpp"

namespace {

int fail(const std::string& message, int code) {
    const bool colour = isatty(STDERR_FILENO) == 1;
    std::cerr << (colour ? "\033[31m" : "") << "error: " << segship::one_line(message) << (colour ? "\033[0m" : "") << "\n";
    return code;
}

int run(const std::vector<std::string>& words) {
    const segship::Arguments arguments = segship::parse_arguments(words);
    if (arguments.help) {
        std::cout << segship::HELP;
        return 0;
    }
    if (arguments.version) {
        std::cout << "segship-run " << SEGSHIP_VERSION << ", OpenVINO " << segship::engine_version() << "\n";
        return 0;
    }
    std::unique_ptr<segship::Package> package = segship::Package::open(arguments.package);
    const bool volumes = package->manifest().at("input").at("kind") == "volume";
    return volumes ? segship::run_volumes(arguments, std::move(package)) : segship::run_pictures(arguments, std::move(package));
}

}  // namespace

int main(int argc, char** argv) {
    segship::watch_for_interrupts();
    try {
        return run({argv + 1, argv + argc});
    } catch (const segship::SegshipError& error) {
        return fail(error.what(), error.exit_code());
    } catch (const std::bad_alloc&) {
        return fail("out of memory; use smaller batches (--batch) or fewer --streams", 1);
    } catch (const std::exception& error) {  // a fault of ours: still one line
        return fail(std::string("internal error (") + error.what() + "); please report it", 1);
    }
}
