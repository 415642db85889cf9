// Plain C++: the meaning of every kernel, and what runs where nothing better is known.
#include "make_table.hpp"

namespace ernie_local {
namespace {

struct Scalar {
    struct Ints {
        int32_t lane[16];
    };
    struct Floats {
        float lane[16];
    };
    struct Codes {
        uint8_t byte[64];
    };
    static constexpr int kNumWidths = 3;
    static constexpr bool kSignedW8 = false;
    static constexpr bool kWholeByteDots = false;
    static constexpr bool kTokenPairs = false;
    static constexpr bool kAsksFar = true;
    static constexpr int kNearBytes = 1024;
    static constexpr int kDotVectors = 1, kDotRows = 4;
    static constexpr bool kHasBlocks = false;
    static constexpr bool kShortSums = false;
    static constexpr int kPairRows = 1;

    static void prefetch_far(const uint8_t*) {}
    static void prefetch_near(const uint8_t*) {}

    template <class Function>
    static ERNIE_LOCAL_INLINE Floats each(Function function) {
        Floats out;
        for (int i = 0; i < 16; ++i) out.lane[i] = function(i);
        return out;
    }
    static Codes load_codes(const uint8_t* from) {
        Codes out;
        std::memcpy(out.byte, from, 64);
        return out;
    }
    template <int kShift, int kMask>
    static Codes field(Codes codes) {
        for (auto& byte : codes.byte) byte = (byte >> kShift) & kMask;
        return codes;
    }
    static Codes add_four_where(Codes codes, const uint8_t* bits) {
        for (int i = 0; i < 64; ++i) codes.byte[i] += 4 * ((bits[i / 8] >> (i % 8)) & 1);
        return codes;
    }
    template <int kShift, int kMask>
    static Codes raised(Codes codes) {
        for (auto& byte : codes.byte) byte = (byte << kShift) & kMask;
        return codes;
    }
    static Codes either(Codes a, const Codes& b) {
        for (int i = 0; i < 64; ++i) a.byte[i] |= b.byte[i];
        return a;
    }
    static Codes exclusive_or(Codes a, const Codes& b) {
        for (int i = 0; i < 64; ++i) a.byte[i] ^= b.byte[i];
        return a;
    }
    // What a table of 16 bytes has at the places in the low and in the high nibbles, which are below 8.
    static void look_up_nibbles(const Codes& places, const uint8_t* table, Codes& low, Codes& high) {
        for (int i = 0; i < 64; ++i) {
            low.byte[i] = table[places.byte[i] & 15];
            high.byte[i] = table[places.byte[i] >> 4];
        }
    }
    static Ints zero_ints() { return {}; }
    static Ints dot(Ints sum, const Codes& codes, const int8_t* four) {
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 4; ++j) sum.lane[i] += codes.byte[4 * i + j] * four[j];
        return sum;
    }
    static Ints dot_w8(Ints sum, const Codes& codes, const int8_t* four) { return dot(sum, codes, four); }
    // Two int16 of each lane times the two of `pair`, added to the lane's sum.
    static Ints dot_shorts(Ints sum, const Codes& pairs, int32_t pair) {
        int16_t all[32], both[2];
        std::memcpy(all, pairs.byte, sizeof all);
        std::memcpy(both, &pair, sizeof both);
        for (int i = 0; i < 16; ++i) sum.lane[i] += all[2 * i] * both[0] + all[2 * i + 1] * both[1];
        return sum;
    }
    static Ints add(Ints a, const Ints& b) {
        for (int i = 0; i < 16; ++i) a.lane[i] += b.lane[i];
        return a;
    }
    static Ints load_bytes(const uint8_t* from) {
        Ints out;
        for (int i = 0; i < 16; ++i) out.lane[i] = from[i];
        return out;
    }
    static Ints load_nibbles(const uint8_t* from) {
        Ints out;
        for (int i = 0; i < 16; ++i) out.lane[i] = (from[i / 2] >> (i % 2 * 4)) & 15;
        return out;
    }
    // What a table of 16 bytes has at the places that load_nibbles would give.
    static Ints load_from_table(const uint8_t* from, const uint8_t* table) {
        Ints out = load_nibbles(from);
        for (auto& lane : out.lane) lane = table[lane];
        return out;
    }
    template <int kShift, int kMask>
    static Ints int_field(Ints ints) {
        for (auto& lane : ints.lane) lane = (lane >> kShift) & kMask;
        return ints;
    }
    static float half(const uint8_t* from) {
        const uint32_t bits = from[0] | from[1] << 8;
        const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
        if (exponent == 31) return fraction ? NAN : bits >> 15 ? -INFINITY : INFINITY;
        const float magnitude = exponent ? std::ldexp(1.0f + static_cast<float>(fraction) / 1024.0f, static_cast<int>(exponent) - 15)
                                         : std::ldexp(static_cast<float>(fraction), -24);
        return bits >> 15 ? -magnitude : magnitude;
    }
    static Floats load_halves(const uint8_t* from) {
        return each([=](int i) { return half(from + 2 * i); });
    }
    template <int kShift>
    static Floats nibble_to_float(Ints bytes) {
        return to_floats(int_field<kShift, 15>(bytes));
    }
    static Floats to_floats(const Ints& ints) {
        return each([&](int i) { return static_cast<float>(ints.lane[i]); });
    }
    // To the nearest whole number, of less than 2^22: the sum has it in its lowest bits.
    static Ints to_ints(const Floats& floats) {
        Ints out;
        for (int i = 0; i < 16; ++i) {
            const float sum = floats.lane[i] + 12582912.0f;
            std::memcpy(&out.lane[i], &sum, 4);
            out.lane[i] -= 0x4b400000;
        }
        return out;
    }
    // Each times 2 to the power: added to its exponent, which must not overflow.
    static Floats times_power(Floats floats, const Ints& powers) {
        for (int i = 0; i < 16; ++i) {
            uint32_t bits;
            std::memcpy(&bits, &floats.lane[i], 4);
            bits += static_cast<uint32_t>(powers.lane[i]) << 23;
            std::memcpy(&floats.lane[i], &bits, 4);
        }
        return floats;
    }
    // The nearest int16.
    static void store_shorts(int16_t* to, const Ints& ints) {
        for (int i = 0; i < 16; ++i) {
            const int32_t lane = ints.lane[i];
            to[i] = static_cast<int16_t>(lane < -32768 ? -32768 : lane > 32767 ? 32767 : lane);
        }
    }
    static Floats splat(float value) {
        return each([=](int) { return value; });
    }
    static Floats multiply(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    static Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
        return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
    }
    // c - a * b
    static Floats multiply_subtract_from(const Floats& a, const Floats& b, const Floats& c) {
        return each([&](int i) { return c.lane[i] - a.lane[i] * b.lane[i]; });
    }
    // Lanes whose mark is not 0, and a of these with b of the others.
    struct Choice {
        int32_t lane[16];
    };
    static Choice marked(const int32_t* marks) {
        Choice out;
        std::memcpy(out.lane, marks, sizeof out.lane);
        return out;
    }
    static Floats choose(const Choice& choice, const Floats& a, const Floats& b) {
        return each([&](int i) { return choice.lane[i] != 0 ? a.lane[i] : b.lane[i]; });
    }
    static void store(float* to, const Floats& floats) { std::memcpy(to, floats.lane, sizeof floats.lane); }
    static Floats load(const float* from) {
        Floats out;
        std::memcpy(out.lane, from, sizeof out.lane);
        return out;
    }
    static Floats load_bfloats(const uint8_t* from) {
        Floats out;
        for (int i = 0; i < 16; ++i) {
            const uint32_t bits = static_cast<uint32_t>(from[2 * i]) << 16 | static_cast<uint32_t>(from[2 * i + 1]) << 24;
            std::memcpy(&out.lane[i], &bits, 4);
        }
        return out;
    }
    static Ints load_signed_bytes(const uint8_t* from) {
        Ints out;
        for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<int8_t>(from[i]);
        return out;
    }
    // To the nearest half float, to the even one of two that are as near.
    static uint16_t half_of(float value) {
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint32_t sign = bits >> 16 & 0x8000u;
        bits &= 0x7fffffffu;
        if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
        if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
        if (bits < 0x38800000u) {  // below 2^-14: a number near 0.5 has the step of the least half floats
            float magnitude;
            std::memcpy(&magnitude, &bits, 4);
            magnitude += 0.5f;
            std::memcpy(&bits, &magnitude, 4);
            return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
        }
        return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13));
    }
    static void store_halves(uint8_t* to, const Floats& values) {
        for (int i = 0; i < 16; ++i) {
            const uint16_t half = half_of(values.lane[i]);
            std::memcpy(to + 2 * i, &half, 2);
        }
    }
    // Where a is NaN, b.
    static Floats maximum(const Floats& a, const Floats& b) {
        return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    // The sum of each one's lanes.
    static void sums(const Floats four[4], float out[4]) {
        for (int i = 0; i < 4; ++i) {
            float pairs[8];
            for (int j = 0; j < 8; ++j) pairs[j] = four[i].lane[j] + four[i].lane[j + 8];
            out[i] = ((pairs[0] + pairs[4]) + (pairs[1] + pairs[5])) + ((pairs[2] + pairs[6]) + (pairs[3] + pairs[7]));
        }
    }
};

}  // namespace

const KernelTable& scalar_kernels() {
    static const KernelTable table = make_table<Scalar>("scalar");
    return table;
}

}  // namespace ernie_local
