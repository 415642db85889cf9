#include "runtime.hpp"

#include <algorithm>
#include <stdexcept>

#include "cpu_features.hpp"

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace ernie_local {

// Each kernels_*.cpp defines one of these; CMakeLists.txt says which are built for which processors.
const KernelTable& scalar_kernels();
const KernelTable& avx2_kernels();
const KernelTable& avxvnni_kernels();
const KernelTable& avx512_kernels();
const KernelTable& neon_kernels();
const KernelTable& neon_i8mm_kernels();

namespace {

using Kernels = const KernelTable& (*)();
#if defined(ERNIE_LOCAL_KERNELS_X86)
constexpr Kernels kAvx512 = avx512_kernels, kAvx2 = avx2_kernels;
#else
constexpr Kernels kAvx512 = nullptr, kAvx2 = nullptr;
#endif
#if defined(ERNIE_LOCAL_KERNELS_AVXVNNI)
constexpr Kernels kAvxVnni = avxvnni_kernels;
#else
constexpr Kernels kAvxVnni = nullptr;
#endif
#if defined(ERNIE_LOCAL_KERNELS_ARM)
constexpr Kernels kNeon = neon_kernels;
#else
constexpr Kernels kNeon = nullptr;
#endif
#if defined(ERNIE_LOCAL_KERNELS_I8MM)
constexpr Kernels kNeonI8mm = neon_i8mm_kernels;
#else
constexpr Kernels kNeonI8mm = nullptr;
#endif

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
    return {{"avx512vnni", {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512vnni"}, kAvx512},
            {"avxvnni", {"avx2", "fma", "f16c", "avxvnni"}, kAvxVnni},
            {"avx2", {"avx2", "fma", "f16c"}, kAvx2},
            {"neon_i8mm", {"dotprod", "i8mm"}, kNeonI8mm},
            {"neon", {"dotprod"}, kNeon},
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
