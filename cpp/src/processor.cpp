#include "processor.hpp"

#include <algorithm>
#include <cctype>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <thread>
#include <utility>

#include <sched.h>
#include <sys/utsname.h>

namespace segship {

namespace {

// Kernel flag and how it is written for people, in the order they are shown.
const std::pair<const char*, const char*> FLAGS[] = {
    {"avx2", "AVX2"},           {"avx_vnni", "AVX-VNNI"},       {"avx512f", "AVX512F"},
    {"avx512_vnni", "AVX512-VNNI"}, {"avx512_bf16", "AVX512-BF16"}, {"avx512_fp16", "AVX512-FP16"},
    {"amx_bf16", "AMX-BF16"},   {"amx_int8", "AMX-INT8"},       {"amx_fp16", "AMX-FP16"},
    {"asimddp", "NEON-DOTPROD"}, {"asimdhp", "NEON-FP16"},       {"i8mm", "NEON-I8MM"},
    {"bf16", "NEON-BF16"},
};

const std::map<std::string, std::set<std::string>> NATIVE = {
    {"int8", {"AVX-VNNI", "AVX512-VNNI", "AMX-INT8", "NEON-DOTPROD", "NEON-I8MM"}},
    {"bf16", {"AVX512-BF16", "AMX-BF16", "NEON-BF16"}},
    {"fp16", {"AVX512-FP16", "AMX-FP16", "NEON-FP16"}},
};

std::string stripped(const std::string& text) {
    const std::size_t first = text.find_first_not_of(" \t\r");
    if (first == std::string::npos) return "";
    return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::size_t usable_cores() {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<std::size_t>(CPU_COUNT(&set));
    return std::max(1U, std::thread::hardware_concurrency());
}

}  // namespace

std::string Processor::label() const {
    if (instruction_sets.empty()) return name;
    std::string sets;
    for (const std::string& one : instruction_sets) sets += (sets.empty() ? "" : ", ") + one;
    return name + " (" + sets + ")";
}

bool Processor::may_compute(const std::string& precision) const {
    if (precision == "fp32" || instruction_sets.empty()) return true;
    const auto needed = NATIVE.find(precision);
    if (needed == NATIVE.end()) return false;
    return std::any_of(instruction_sets.begin(), instruction_sets.end(),
                       [&](const std::string& one) { return needed->second.count(one) != 0; });
}

Processor parse_cpuinfo(const std::string& text) {
    std::map<std::string, std::string> fields;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t colon = line.find(':');
        std::string key = stripped(line.substr(0, colon));
        std::transform(key.begin(), key.end(), key.begin(), [](unsigned char c) { return std::tolower(c); });
        fields.emplace(key, colon == std::string::npos ? "" : stripped(line.substr(colon + 1)));
    }
    const std::string flags = fields["flags"].empty() ? fields["features"] : fields["flags"];
    std::istringstream words(flags);
    std::set<std::string> have;
    for (std::string word; words >> word;) have.insert(word);
    Processor found;
    found.name = fields["model name"];
    for (const auto& [flag, shown] : FLAGS) {
        if (have.count(flag) != 0) found.instruction_sets.emplace_back(shown);
    }
    return found;
}

const Processor& processor() {
    static const Processor known = [] {
        std::ifstream file("/proc/cpuinfo");
        std::ostringstream text;
        text << file.rdbuf();
        Processor found = parse_cpuinfo(text.str());
        utsname system{};
        if (found.name.empty()) found.name = uname(&system) == 0 ? system.machine : "unknown";
        found.cores = usable_cores();
        return found;
    }();
    return known;
}

}  // namespace segship
