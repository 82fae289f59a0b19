#pragma once
// The two kinds of runs over files; each gives the exit code.

#include <memory>
#include <string>

#include "arguments.hpp"
#include "package.hpp"

namespace segship {

int run_pictures(const Arguments& arguments, std::unique_ptr<Package> package);
int run_volumes(const Arguments& arguments, std::unique_ptr<Package> package);

// The folder for results, made now so that a place that cannot be written shows before the first inference. OutputError.
void make_output_folder(const std::string& folder);

}  // namespace segship
