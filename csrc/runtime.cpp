#include "runtime.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu_features.hpp"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace ernie_local {
namespace {

long process_id() {
#if defined(_WIN32)
    return 0;  // nothing forks there
#else
    return getpid();
#endif
}

std::vector<const KernelTable*> available() {
    const auto present = cpu_features();
    const auto has = [&present](const std::string& feature) {
        return std::find(present.begin(), present.end(), feature) != present.end();
    };
    std::vector<const KernelTable*> tables;
    for (const auto& set : known_instruction_sets())
        if (set.kernels != nullptr && std::all_of(set.features.begin(), set.features.end(), has))
            tables.push_back(&set.kernels());
    return tables;
}

}  // namespace

Runtime& runtime() {
    static std::mutex making;
    static Runtime* instance = nullptr;
    static long owner = 0;
    const long process = process_id();
    const std::lock_guard<std::mutex> lock(making);
    if (instance == nullptr || owner != process) {
        const KernelTable* kernels = instance == nullptr ? available().front() : instance->kernels;
        instance = new Runtime;
        instance->kernels = kernels;
        owner = process;
    }
    return *instance;
}

std::vector<InstructionSet> known_instruction_sets() {
    const KernelTable& (*avx512)() = nullptr;
    const KernelTable& (*avx2)() = nullptr;
    const KernelTable& (*neon)() = nullptr;
#if defined(ERNIE_LOCAL_KERNELS_X86)
    avx512 = avx512_kernels;
    avx2 = avx2_kernels;
#endif
#if defined(ERNIE_LOCAL_KERNELS_ARM)
    neon = neon_kernels;
#endif
    return {{"avx512vnni", {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vnni"}, avx512},
            {"avx2", {"avx2", "fma", "f16c"}, avx2},
            {"neon", {"dotprod"}, neon},
            {"scalar", {}, scalar_kernels}};
}

std::vector<std::string> available_instruction_sets() {
    std::vector<std::string> names;
    for (const auto* table : available()) names.emplace_back(table->name);
    return names;
}

void use_instruction_set(const std::string& name) {
    for (const auto* table : available()) {
        if (name == table->name) {
            const std::lock_guard<std::mutex> lock(runtime().mutex);
            runtime().kernels = table;
            return;
        }
    }
    throw std::invalid_argument("no kernels for instruction set '" + name + "' can run here");
}

}  // namespace ernie_local
