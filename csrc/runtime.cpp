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
    const auto features = cpu_features();
    const auto has = [&features](const char* name) {
        return std::find(features.begin(), features.end(), name) != features.end();
    };
    std::vector<const KernelTable*> tables;
#if defined(ERNIE_LOCAL_KERNELS_X86)
    if (has("avx512f") && has("avx512dq") && has("avx512bw") && has("avx512vl") && has("avx512vnni"))
        tables.push_back(&avx512_kernels());
    if (has("avx2") && has("fma") && has("f16c")) tables.push_back(&avx2_kernels());
#endif
#if defined(ERNIE_LOCAL_KERNELS_ARM)
    if (has("dotprod")) tables.push_back(&neon_kernels());
#endif
    (void)has;
    tables.push_back(&scalar_kernels());
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
