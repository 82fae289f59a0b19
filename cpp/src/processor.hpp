#pragma once
// What this machine's processor is and which arithmetic it has instructions for: src/segship/engines/processor.py in C++.

#include <cstddef>
#include <string>
#include <vector>

namespace segship {

struct Processor {
    std::string name;
    // Those that matter to convolutions; empty where the system does not tell.
    std::vector<std::string> instruction_sets;
    // Logical cores that this process may use.
    std::size_t cores = 1;

    // Name and instruction sets, as records of what executed have them; names the folder of compiled models too.
    std::string label() const;
    // Has it instructions for this precision? fp32 always. True as well where the system does not tell.
    bool may_compute(const std::string& precision) const;
};

// The text of /proc/cpuinfo (x86 and Arm) as name and instruction sets.
Processor parse_cpuinfo(const std::string& text);

// This machine's. Never raises.
const Processor& processor();

}  // namespace segship
