// Runs AVX-VNNI's vpdpbusd on processors without it: catches the signal of an illegal instruction, computes what the
// instruction would have, and goes on behind it. So the kernels are tested as they are shipped, byte for byte.
//
// Linux on x86-64 with AVX2. Knows the 256-bit form alone; any other illegal instruction ends the process as always.
#pragma once

#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace vnni_emulator {

inline std::atomic<long> executed{0};  // how many instructions were emulated

// The registers of the interrupted program, as the kernel stored them: XSAVE's area, uncompacted.
class Registers {
public:
    Registers(ucontext_t& context, uint32_t upper_at)
        : general_(context.uc_mcontext.gregs), area_(reinterpret_cast<uint8_t*>(context.uc_mcontext.fpregs)),
          upper_at_(upper_at) {}

    // By the number in an instruction.
    int64_t general(int number) const {
        constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return general_[kOrder[number]];
    }
    const uint8_t* instruction() const { return reinterpret_cast<const uint8_t*>(general_[REG_RIP]); }
    void skip(int num_bytes) { general_[REG_RIP] += num_bytes; }

    void read_ymm(int number, void* to) const {
        std::memcpy(to, lower(number), 16);
        if (has_uppers())
            std::memcpy(static_cast<uint8_t*>(to) + 16, upper(number), 16);
        else
            std::memset(static_cast<uint8_t*>(to) + 16, 0, 16);
    }
    void write_ymm(int number, const void* from) {
        if (!has_uppers()) std::memset(upper(0), 0, 16 * 16);
        area_[kPresent] |= kUppers;
        std::memcpy(lower(number), from, 16);
        std::memcpy(upper(number), static_cast<const uint8_t*>(from) + 16, 16);
    }

private:
    static constexpr int kLowers = 160, kPresent = 512, kUppers = 4;

    bool has_uppers() const { return (area_[kPresent] & kUppers) != 0; }
    uint8_t* lower(int number) const { return area_ + kLowers + 16 * number; }
    uint8_t* upper(int number) const { return area_ + upper_at_ + 16 * number; }

    greg_t* general_;
    uint8_t* area_;
    uint32_t upper_at_;
};

// vpdpbusd ymm, ymm, ymm or memory: VEX.256.66.0F38.W0 50 /r.
struct Instruction {
    int sum, codes, columns;  // numbers of registers; columns: -1 for memory
    const void* memory;
    int num_bytes;

    // False for any other instruction.
    bool decode(const Registers& registers) {
        const uint8_t* bytes = registers.instruction();
        if (bytes[0] != 0xc4 || (bytes[1] & 0x1f) != 2 || (bytes[2] & 0x87) != 0x05 || bytes[3] != 0x50) return false;
        const int high_reg = bytes[1] & 0x80 ? 0 : 8, high_index = bytes[1] & 0x40 ? 0 : 8, high_base = bytes[1] & 0x20 ? 0 : 8;
        const int mode = bytes[4] >> 6, base = bytes[4] & 7;
        sum = (bytes[4] >> 3 & 7) + high_reg;
        codes = ~bytes[2] >> 3 & 15;
        columns = mode == 3 ? base + high_base : -1;
        num_bytes = 5;
        if (mode == 3) return true;
        int64_t address = 0;
        bool has_base = true;
        if (base == 4) {  // a second byte tells base and index
            const uint8_t scaled = bytes[num_bytes++];
            const int index = (scaled >> 3 & 7) + high_index;
            has_base = (scaled & 7) != 5 || mode != 0;
            if (has_base) address = registers.general((scaled & 7) + high_base);
            if (index != 4) address += registers.general(index) * (1 << (scaled >> 6));
        } else if (base == 5 && mode == 0) {
            has_base = false;
            address = reinterpret_cast<int64_t>(bytes) + 9;  // relative to the next instruction
        } else {
            address = registers.general(base + high_base);
        }
        if (mode == 1) {
            address += static_cast<int8_t>(bytes[num_bytes]);
            num_bytes += 1;
        } else if (mode == 2 || !has_base) {
            int32_t offset;
            std::memcpy(&offset, bytes + num_bytes, 4);
            address += offset;
            num_bytes += 4;
        }
        memory = reinterpret_cast<const void*>(address);
        return true;
    }

    void execute(Registers& registers) const {
        int32_t sums[8];
        uint8_t unsigned_bytes[32];
        int8_t signed_bytes[32];
        registers.read_ymm(sum, sums);
        registers.read_ymm(codes, unsigned_bytes);
        if (columns < 0)
            std::memcpy(signed_bytes, memory, 32);
        else
            registers.read_ymm(columns, signed_bytes);
        for (int i = 0; i < 32; ++i) sums[i / 4] += unsigned_bytes[i] * signed_bytes[i];
        registers.write_ymm(sum, sums);
        registers.skip(num_bytes);
    }
};

inline void on_illegal_instruction(int, siginfo_t*, void* context) {
    uint32_t size, upper_at, flags, unused;
    __get_cpuid_count(0xd, 2, &size, &upper_at, &flags, &unused);
    Registers registers(*static_cast<ucontext_t*>(context), upper_at);
    Instruction instruction;
    if (!instruction.decode(registers)) {
        signal(SIGILL, SIG_DFL);  // the instruction runs again, and ends the process
        return;
    }
    instruction.execute(registers);
    executed.fetch_add(1, std::memory_order_relaxed);
}

inline void install() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace vnni_emulator
