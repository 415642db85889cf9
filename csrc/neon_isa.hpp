// The vocabulary of 64-bit ARM with the dot product extension: four 16-byte registers stand for one of 64.
//
// Each instruction set's file that includes this has a copy of its own, in an unnamed namespace: compiled with that
// file's flags, and never taken for another's.
#pragma once

#include <arm_neon.h>

#include <cstring>

#include "formats.hpp"

namespace ernie_local {
namespace {

struct Neon {
    struct Ints {
        int32x4_t quarter[4];
    };
    struct Floats {
        float32x4_t quarter[4];
    };
    static constexpr int kPairRows = 4;
    struct Codes {
        uint8x16_t quarter[4];
    };
    static constexpr int kNumWidths = 3;
    static constexpr bool kSignedW8 = true;
    static constexpr bool kWholeByteDots = false;
    static constexpr bool kTokenPairs = false;
    static constexpr bool kAsksFar = true;
    static constexpr int kNearBytes = 1024;
    static constexpr int kDotVectors = 1, kDotRows = 4;
    static constexpr bool kHasBlocks = false;
    static constexpr bool kShortSums = false;

    static ERNIE_LOCAL_INLINE void prefetch_far(const uint8_t* from) { __builtin_prefetch(from, 0, 2); }
    static ERNIE_LOCAL_INLINE void prefetch_near(const uint8_t* from) { __builtin_prefetch(from, 0, 3); }

    template <class Out, class Function>
    static ERNIE_LOCAL_INLINE Out each(Function function) {
        return {{function(0), function(1), function(2), function(3)}};
    }
    static ERNIE_LOCAL_INLINE int8x16_t word(const int8_t* four) {
        int32_t value;
        std::memcpy(&value, four, 4);
        return vreinterpretq_s8_s32(vdupq_n_s32(value));
    }
    static ERNIE_LOCAL_INLINE Codes load_codes(const uint8_t* from) {
        return each<Codes>([=](int i) { return vld1q_u8(from + 16 * i); });
    }
    static ERNIE_LOCAL_INLINE void store_codes(uint8_t* to, const Codes& codes) {
        for (int i = 0; i < 4; ++i) vst1q_u8(to + 16 * i, codes.quarter[i]);
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes field(const Codes& codes) {
        return each<Codes>([&](int i) {
            uint8x16_t moved = codes.quarter[i];
            if constexpr (kShift != 0) moved = vshrq_n_u8(moved, kShift);
            return vandq_u8(moved, vdupq_n_u8(kMask));
        });
    }
    static ERNIE_LOCAL_INLINE Codes add_four_where(const Codes& codes, const uint8_t* bits) {
        static const uint8_t bit_values[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t bit_of_lane = vld1q_u8(bit_values);
        return each<Codes>([&](int i) {
            const uint8x16_t spread = vcombine_u8(vdup_n_u8(bits[2 * i]), vdup_n_u8(bits[2 * i + 1]));
            return vorrq_u8(codes.quarter[i], vandq_u8(vtstq_u8(spread, bit_of_lane), vdupq_n_u8(4)));
        });
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes raised(const Codes& codes) {
        return each<Codes>([&](int i) { return vandq_u8(vshlq_n_u8(codes.quarter[i], kShift), vdupq_n_u8(kMask)); });
    }
    static ERNIE_LOCAL_INLINE Codes either(const Codes& a, const Codes& b) {
        return each<Codes>([&](int i) { return vorrq_u8(a.quarter[i], b.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE Codes exclusive_or(const Codes& a, const Codes& b) {
        return each<Codes>([&](int i) { return veorq_u8(a.quarter[i], b.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE void look_up_nibbles(const Codes& places, const uint8_t* table, Codes& low, Codes& high) {
        const uint8x16_t levels = vld1q_u8(table);
        for (int i = 0; i < 4; ++i) {
            low.quarter[i] = vqtbl1q_u8(levels, vandq_u8(places.quarter[i], vdupq_n_u8(15)));
            high.quarter[i] = vqtbl1q_u8(levels, vshrq_n_u8(places.quarter[i], 4));
        }
    }
    static ERNIE_LOCAL_INLINE Ints zero_ints() {
        return each<Ints>([](int) { return vdupq_n_s32(0); });
    }
    static ERNIE_LOCAL_INLINE Ints dot(const Ints& sum, const Codes& codes, const int8_t* four) {
        const int8x16_t columns = word(four);
        return each<Ints>([&](int i) {
            return vdotq_s32(sum.quarter[i], vreinterpretq_s8_u8(codes.quarter[i]), columns);
        });
    }
    // Around 128: with the highest bit turned the bytes are the weights as signed numbers.
    static ERNIE_LOCAL_INLINE Ints dot_w8(const Ints& sum, const Codes& codes, const int8_t* four) {
        const int8x16_t columns = word(four);
        return each<Ints>([&](int i) {
            const uint8x16_t weights = veorq_u8(codes.quarter[i], vdupq_n_u8(128));
            return vdotq_s32(sum.quarter[i], vreinterpretq_s8_u8(weights), columns);
        });
    }
    // Two int16 of each lane times the two of `pair`, added to the lane's sum.
    static ERNIE_LOCAL_INLINE Ints dot_shorts(const Ints& sum, const Codes& pairs, int32_t pair) {
        const int16x8_t both = vreinterpretq_s16_s32(vdupq_n_s32(pair));
        return each<Ints>([&](int i) {
            const int16x8_t four = vreinterpretq_s16_u8(pairs.quarter[i]);
            const int32x4_t low = vmull_s16(vget_low_s16(four), vget_low_s16(both));
            return vaddq_s32(sum.quarter[i], vpaddq_s32(low, vmull_high_s16(four, both)));
        });
    }
    static ERNIE_LOCAL_INLINE Ints add(const Ints& a, const Ints& b) {
        return each<Ints>([&](int i) { return vaddq_s32(a.quarter[i], b.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE Ints widen(uint8x16_t bytes) {
        const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
        return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
                 vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
    }
    static ERNIE_LOCAL_INLINE Ints load_bytes(const uint8_t* from) { return widen(vld1q_u8(from)); }
    static ERNIE_LOCAL_INLINE uint8x16_t nibbles(const uint8_t* from) {
        const uint8x8_t bytes = vld1_u8(from);
        const uint8x8x2_t pairs = vzip_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8(bytes, 4));
        return vcombine_u8(pairs.val[0], pairs.val[1]);
    }
    static ERNIE_LOCAL_INLINE Ints load_nibbles(const uint8_t* from) { return widen(nibbles(from)); }
    static ERNIE_LOCAL_INLINE Ints load_from_table(const uint8_t* from, const uint8_t* table) {
        return widen(vqtbl1q_u8(vld1q_u8(table), nibbles(from)));
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Ints int_field(const Ints& values) {
        return each<Ints>([&](int i) {
            int32x4_t moved = values.quarter[i];
            if constexpr (kShift != 0) moved = vshrq_n_s32(moved, kShift);
            return vandq_s32(moved, vdupq_n_s32(kMask));
        });
    }
    static ERNIE_LOCAL_INLINE Floats load_halves(const uint8_t* from) {
        const auto* halves = reinterpret_cast<const __fp16*>(from);
        return each<Floats>([=](int i) { return vcvt_f32_f16(vld1_f16(halves + 4 * i)); });
    }
    template <int kShift>
    static ERNIE_LOCAL_INLINE Floats nibble_to_float(const Ints& bytes) {
        return to_floats(int_field<kShift, 15>(bytes));
    }
    static ERNIE_LOCAL_INLINE Floats to_floats(const Ints& values) {
        return each<Floats>([&](int i) { return vcvtq_f32_s32(values.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE Ints to_ints(const Floats& values) {
        return each<Ints>([&](int i) { return vcvtnq_s32_f32(values.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE Floats times_power(const Floats& values, const Ints& powers) {
        return each<Floats>([&](int i) {
            const int32x4_t bits = vreinterpretq_s32_f32(values.quarter[i]);
            return vreinterpretq_f32_s32(vaddq_s32(bits, vshlq_n_s32(powers.quarter[i], 23)));
        });
    }
    static ERNIE_LOCAL_INLINE void store_shorts(int16_t* to, const Ints& values) {
        for (int i = 0; i < 4; ++i) vst1_s16(to + 4 * i, vqmovn_s32(values.quarter[i]));
    }
    static ERNIE_LOCAL_INLINE Floats splat(float value) {
        return each<Floats>([=](int) { return vdupq_n_f32(value); });
    }
    static ERNIE_LOCAL_INLINE Floats multiply(const Floats& a, const Floats& b) {
        return each<Floats>([&](int i) { return vmulq_f32(a.quarter[i], b.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
        return each<Floats>([&](int i) { return vfmaq_f32(c.quarter[i], a.quarter[i], b.quarter[i]); });
    }
    // c - a * b
    static ERNIE_LOCAL_INLINE Floats multiply_subtract_from(const Floats& a, const Floats& b, const Floats& c) {
        return each<Floats>([&](int i) { return vfmsq_f32(c.quarter[i], a.quarter[i], b.quarter[i]); });
    }
    // Lanes whose mark is not 0, and a of these with b of the others.
    struct Choice {
        uint32x4_t quarter[4];
    };
    static ERNIE_LOCAL_INLINE Choice marked(const int32_t* marks) {
        return each<Choice>([=](int i) {
            const int32x4_t lanes = vld1q_s32(marks + 4 * i);
            return vtstq_s32(lanes, lanes);
        });
    }
    static ERNIE_LOCAL_INLINE Floats choose(const Choice& choice, const Floats& a, const Floats& b) {
        return each<Floats>([&](int i) { return vbslq_f32(choice.quarter[i], a.quarter[i], b.quarter[i]); });
    }
    static ERNIE_LOCAL_INLINE void store(float* to, const Floats& values) {
        for (int i = 0; i < 4; ++i) vst1q_f32(to + 4 * i, values.quarter[i]);
    }
    static ERNIE_LOCAL_INLINE Floats load(const float* from) {
        return each<Floats>([=](int i) { return vld1q_f32(from + 4 * i); });
    }
    static ERNIE_LOCAL_INLINE Floats load_bfloats(const uint8_t* from) {
        return each<Floats>([=](int i) {
            const uint16x4_t four = vreinterpret_u16_u8(vld1_u8(from + 8 * i));
            return vreinterpretq_f32_u32(vshll_n_u16(four, 16));
        });
    }
    static ERNIE_LOCAL_INLINE Ints load_signed_bytes(const uint8_t* from) {
        const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(from));
        const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
        return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
                 vmovl_s16(vget_high_s16(high))}};
    }
    static ERNIE_LOCAL_INLINE void store_halves(uint8_t* to, const Floats& values) {
        for (int i = 0; i < 4; ++i) vst1_u8(to + 8 * i, vreinterpret_u8_f16(vcvt_f16_f32(values.quarter[i])));
    }
    // Where one is NaN, the other.
    static ERNIE_LOCAL_INLINE Floats maximum(const Floats& a, const Floats& b) {
        return each<Floats>([&](int i) { return vmaxnmq_f32(a.quarter[i], b.quarter[i]); });
    }
    // The sum of each one's lanes.
    static ERNIE_LOCAL_INLINE void sums(const Floats four[4], float out[4]) {
        const auto folded = [&](int i) {
            return vaddq_f32(vaddq_f32(four[i].quarter[0], four[i].quarter[1]),
                             vaddq_f32(four[i].quarter[2], four[i].quarter[3]));
        };
        vst1q_f32(out, vpaddq_f32(vpaddq_f32(folded(0), folded(1)), vpaddq_f32(folded(2), folded(3))));
    }
};

}  // namespace
}  // namespace ernie_local
