// Which instruction sets the kernels may use here. Knows nothing about Python.
#pragma once

#include <string>
#include <vector>

namespace ernie_local {

// Names in a fixed order, only those that both the processor has and the operating system saves on a task switch:
// x86: avx2 fma f16c avxvnni avx512f avx512dq avx512bw avx512vl avx512vnni avx512bf16 amx_bf16 amx_int8;
// arm: neon dotprod i8mm. Others: empty.
// On Linux a process must still ask for AMX tile state (ARCH_REQ_XCOMP_PERM) before it uses AMX.
std::vector<std::string> cpu_features();

}  // namespace ernie_local
