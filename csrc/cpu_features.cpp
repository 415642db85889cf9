// Asks the processor (cpuid) and the operating system (xgetbv, HWCAP, sysctl) what the kernels may use.
#include "cpu_features.hpp"

#if defined(__x86_64__) || defined(_M_X64)
#define ERNIE_LOCAL_X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define ERNIE_LOCAL_ARM 1
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

#include <cstdint>

namespace ernie_local {
namespace {

#if defined(ERNIE_LOCAL_X86)

struct CpuidLeaf {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

// All zero where the processor does not know the leaf or sub-leaf.
CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf) {
    CpuidLeaf out;
#if defined(_MSC_VER)
    int highest[4], regs[4];
    __cpuid(highest, 0);
    if (leaf <= static_cast<uint32_t>(highest[0])) {
        __cpuidex(regs, static_cast<int>(leaf), static_cast<int>(subleaf));
        out = {static_cast<uint32_t>(regs[0]), static_cast<uint32_t>(regs[1]),
               static_cast<uint32_t>(regs[2]), static_cast<uint32_t>(regs[3])};
    }
#else
    if (!__get_cpuid_count(leaf, subleaf, &out.eax, &out.ebx, &out.ecx, &out.edx)) out = {};
#endif
    return out;
}

bool has_bit(uint32_t reg, int bit) { return (reg >> bit) & 1u; }

// XCR0: which register state the operating system saves. Only legal to read once OSXSAVE is set.
uint64_t enabled_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

std::vector<std::string> detect() {
    constexpr int kOsxsave = 27;
    constexpr uint64_t kYmm = 0x6;             // SSE and AVX state
    constexpr uint64_t kZmm = kYmm | 0xe0;     // and opmask, upper ZMM, ZMM16-31
    constexpr uint64_t kTiles = 0x60000;       // TILECFG and TILEDATA

    const CpuidLeaf basic = cpuid(1, 0);
    if (!has_bit(basic.ecx, kOsxsave)) return {};
    const uint64_t state = enabled_state();
    const bool os_ymm = (state & kYmm) == kYmm;
    const bool os_zmm = (state & kZmm) == kZmm;
    const bool os_tiles = (state & kTiles) == kTiles;

    const CpuidLeaf extended = cpuid(7, 0);
    // Sub-leaf 1 is only defined where sub-leaf 0 says so.
    const CpuidLeaf extended1 = extended.eax >= 1 ? cpuid(7, 1) : CpuidLeaf{};

    std::vector<std::string> names;
    const auto add = [&names](bool present, const char* name) {
        if (present) names.emplace_back(name);
    };
    add(os_ymm && has_bit(extended.ebx, 5), "avx2");
    add(os_ymm && has_bit(basic.ecx, 12), "fma");
    add(os_ymm && has_bit(basic.ecx, 29), "f16c");
    add(os_ymm && has_bit(extended1.eax, 4), "avxvnni");
    add(os_zmm && has_bit(extended.ebx, 16), "avx512f");
    add(os_zmm && has_bit(extended.ebx, 17), "avx512dq");
    add(os_zmm && has_bit(extended.ebx, 30), "avx512bw");
    add(os_zmm && has_bit(extended.ebx, 31), "avx512vl");
    add(os_zmm && has_bit(extended.ecx, 11), "avx512vnni");
    add(os_zmm && has_bit(extended1.eax, 5), "avx512bf16");
    const bool amx = os_tiles && has_bit(extended.edx, 24);
    add(amx && has_bit(extended.edx, 22), "amx_bf16");
    add(amx && has_bit(extended.edx, 25), "amx_int8");
    return names;
}

#elif defined(ERNIE_LOCAL_ARM)

#if defined(__APPLE__)
bool has_feature(const char* name) {
    int present = 0;
    size_t num_bytes = sizeof(present);
    return sysctlbyname(name, &present, &num_bytes, nullptr, 0) == 0 && present != 0;
}
#endif

bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_DotProd");
#else
    return false;
#endif
}

bool has_i8mm() {
#if defined(__linux__)
    constexpr unsigned long kI8mm = 1ul << 13;  // HWCAP2_I8MM, which headers before Linux 5.10 lack
    return (getauxval(AT_HWCAP2) & kI8mm) != 0;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_I8MM");
#else
    return false;
#endif
}

std::vector<std::string> detect() {
    std::vector<std::string> names{"neon"};  // part of every 64-bit ARM
    if (has_dotprod()) names.emplace_back("dotprod");
    if (has_i8mm()) names.emplace_back("i8mm");
    return names;
}

#else

std::vector<std::string> detect() { return {}; }

#endif

}  // namespace

std::vector<std::string> cpu_features() { return detect(); }

}  // namespace ernie_local
