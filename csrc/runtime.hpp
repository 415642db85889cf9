// The one set of threads and the one instruction set that all kernels of a process use.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace ernie_local {

struct Runtime {
    std::mutex mutex;  // held while an operator runs: the threads serve one caller at a time
    ThreadPool pool;
    const KernelTable* kernels;
};

// Made at the first call, with the best instruction set of this processor and one thread; made anew in a forked
// child, which has none of its parent's threads. Never destroyed: threads may still compute while the process ends.
Runtime& runtime();

// An instruction set that kernels are written for, on whatever processor.
struct InstructionSet {
    std::string name;
    std::vector<std::string> features;  // of cpu_features(): it needs all of them
    const KernelTable& (*kernels)();    // null where this build lacks them; called only where the features are there
};

// All of them, best first; the last one needs no feature.
std::vector<InstructionSet> known_instruction_sets();

// What an operator keeps from call to call, of whoever holds the runtime's mutex. Made anew with the runtime: a forked
// child may have inherited it half changed; and never destroyed, like the runtime.
template <class Scratch>
Scratch& scratch_of(const Runtime& state) {
    static const Runtime* owner = nullptr;
    static Scratch* scratch = nullptr;
    if (owner != &state) {
        scratch = new Scratch;
        owner = &state;
    }
    return *scratch;
}

// Instruction sets whose kernels were built and can run here, best first.
std::vector<std::string> available_instruction_sets();

// Throws std::invalid_argument for one that is not available.
void use_instruction_set(const std::string& name);

}  // namespace ernie_local
