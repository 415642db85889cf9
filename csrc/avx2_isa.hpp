// The vocabulary of AVX2 with FMA and half floats: two 32-byte registers stand for one of 64.
//
// Each instruction set's file that includes this has a copy of its own, in an unnamed namespace: compiled with that
// file's flags, and never taken for another's.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "formats.hpp"

namespace ernie_local {
namespace {

struct Avx2 {
    struct Ints {
        __m256i half[2];
    };
    static constexpr int kPairRows = 6;    // with two registers of columns and two of products: 16
    struct Floats {
        __m256 half[2];
    };
    using Codes = Ints;
    static constexpr int kNumWidths = 3;
    static constexpr bool kSignedW8 = true;
    static constexpr bool kWholeByteDots = false;
    static constexpr bool kTokenPairs = false;
    static constexpr bool kAsksFar = false;  // on Zen 3 it is in the way of the processor's own streams
    static constexpr int kNearBytes = 1792;
    static constexpr int kDotVectors = 5, kDotRows = 1;  // ten sums, a row and a vector in 16 registers
    static constexpr bool kHasBlocks = true;
    static constexpr bool kShortSums = true;

    static ERNIE_LOCAL_INLINE void prefetch_far(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
    }
    static ERNIE_LOCAL_INLINE void prefetch_near(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    }

    template <class Function>
    static ERNIE_LOCAL_INLINE Ints ints(Function function) {
        return {{function(0), function(1)}};
    }
    template <class Function>
    static ERNIE_LOCAL_INLINE Floats floats(Function function) {
        return {{function(0), function(1)}};
    }
    static ERNIE_LOCAL_INLINE __m256i word(const int8_t* four) {
        int32_t value;
        std::memcpy(&value, four, 4);
        return _mm256_set1_epi32(value);
    }
    static ERNIE_LOCAL_INLINE Codes load_codes(const uint8_t* from) {
        return ints([=](int i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32 * i)); });
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes field(const Codes& codes) {
        return ints([&](int i) {
            const __m256i moved = kShift ? _mm256_srli_epi16(codes.half[i], kShift) : codes.half[i];
            return kMask == 0xff ? moved : _mm256_and_si256(moved, _mm256_set1_epi8(static_cast<char>(kMask)));
        });
    }
    static ERNIE_LOCAL_INLINE Codes add_four_where(const Codes& codes, const uint8_t* bits) {
        const __m256i byte_of_lane = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2,
                                                      2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
        const __m256i bit_of_lane = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
        return ints([&](int i) {
            const __m256i spread = _mm256_shuffle_epi8(word(reinterpret_cast<const int8_t*>(bits + 4 * i)), byte_of_lane);
            const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit_of_lane), bit_of_lane);
            return _mm256_or_si256(codes.half[i], _mm256_and_si256(set, _mm256_set1_epi8(4)));
        });
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes raised(const Codes& codes) {
        return ints([&](int i) {
            return _mm256_and_si256(_mm256_slli_epi16(codes.half[i], kShift), _mm256_set1_epi8(kMask));
        });
    }
    static ERNIE_LOCAL_INLINE Codes either(const Codes& a, const Codes& b) {
        return ints([&](int i) { return _mm256_or_si256(a.half[i], b.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Codes exclusive_or(const Codes& a, const Codes& b) {
        return ints([&](int i) { return _mm256_xor_si256(a.half[i], b.half[i]); });
    }
    // Places are below 8: a shuffle looks at the lowest four bits, and at the highest one, which both shifts leave 0.
    static ERNIE_LOCAL_INLINE void look_up_nibbles(const Codes& places, const uint8_t* table, Codes& low, Codes& high) {
        const __m256i levels = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
        for (int i = 0; i < 2; ++i) {
            low.half[i] = _mm256_shuffle_epi8(levels, places.half[i]);
            high.half[i] = _mm256_shuffle_epi8(levels, _mm256_srli_epi16(places.half[i], 4));
        }
    }
    static ERNIE_LOCAL_INLINE Ints zero_ints() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
    // Codes up to 15: pairs of products stay far from the 16-bit limit.
    static ERNIE_LOCAL_INLINE Ints dot(const Ints& sum, const Codes& codes, const int8_t* four) {
        const __m256i columns = word(four), ones = _mm256_set1_epi16(1);
        return ints([&](int i) {
            const __m256i pairs = _mm256_maddubs_epi16(codes.half[i], columns);
            return _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(pairs, ones));
        });
    }
    // In 16 bits. The compiler is kept from adding in another order: for that it would move sums to memory and back.
    static ERNIE_LOCAL_INLINE Ints dot_short(const Ints& sum, const Codes& codes, const int8_t* four) {
        const __m256i columns = word(four);
        return ints([&](int i) {
            __m256i next = _mm256_add_epi16(sum.half[i], _mm256_maddubs_epi16(codes.half[i], columns));
            __asm__("" : "+x"(next));
            return next;
        });
    }
    static ERNIE_LOCAL_INLINE Ints add_shorts(const Ints& a, const Ints& b) {
        return ints([&](int i) { return _mm256_add_epi16(a.half[i], b.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Ints quarter_shorts(const Ints& shorts) {
        return ints([&](int i) { return _mm256_srai_epi16(shorts.half[i], 2); });
    }
    // Neighbours added, in 32 bits.
    static ERNIE_LOCAL_INLINE Ints widen_shorts(const Ints& shorts) {
        return ints([&](int i) { return _mm256_madd_epi16(shorts.half[i], _mm256_set1_epi16(1)); });
    }
    // Around 128: the sign goes to the columns, so that a pair of products is at most 2 * 128 * 127.
    static ERNIE_LOCAL_INLINE Ints dot_w8(const Ints& sum, const Codes& codes, const int8_t* four) {
        const __m256i columns = word(four), ones = _mm256_set1_epi16(1), middle = _mm256_set1_epi8(-128);
        return ints([&](int i) {
            const __m256i weights = _mm256_xor_si256(codes.half[i], middle);
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(columns, weights));
            return _mm256_add_epi32(sum.half[i], _mm256_madd_epi16(pairs, ones));
        });
    }
    // Two int16 of each lane times the two of `pair`, added to the lane's sum.
    static ERNIE_LOCAL_INLINE Ints dot_shorts(const Ints& sum, const Codes& pairs, int32_t pair) {
        const __m256i both = _mm256_set1_epi32(pair);
        Ints out = sum;
        for (int i = 0; i < 2; ++i) {
            const __m256i products = _mm256_madd_epi16(pairs.half[i], both);
            // Added in its place: left to itself GCC moves sums from register to register, and some out of them.
            asm("vpaddd %1, %0, %0" : "+x"(out.half[i]) : "x"(products));
        }
        return out;
    }
    static ERNIE_LOCAL_INLINE Ints add(const Ints& a, const Ints& b) {
        return ints([&](int i) { return _mm256_add_epi32(a.half[i], b.half[i]); });
    }
    static ERNIE_LOCAL_INLINE void store_codes(uint8_t* to, const Codes& codes) {
        for (int i = 0; i < 2; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32 * i), codes.half[i]);
    }
    // Computed here and now: GCC would load for all tokens before it multiplies, and run out of registers.
    static ERNIE_LOCAL_INLINE void keep(Ints& sum) { __asm__ volatile("" : "+x"(sum.half[0]), "+x"(sum.half[1])); }
    static ERNIE_LOCAL_INLINE Ints pairs(const Codes& codes, const int8_t* four) {
        const __m256i columns = word(four);
        return ints([&](int i) { return _mm256_maddubs_epi16(codes.half[i], columns); });
    }
    static ERNIE_LOCAL_INLINE Ints add_pairs(const Ints& a, const Ints& b) {
        return ints([&](int i) { return _mm256_add_epi16(a.half[i], b.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Ints widen_pairs(const Ints& pairs) {
        const __m256i ones = _mm256_set1_epi16(1);
        return ints([&](int i) { return _mm256_madd_epi16(pairs.half[i], ones); });
    }
    static ERNIE_LOCAL_INLINE Codes magnitudes(const Codes& codes) {
        return ints([&](int i) { return _mm256_abs_epi8(_mm256_xor_si256(codes.half[i], _mm256_set1_epi8(-128))); });
    }
    // In a lane of 16 bytes: where each code finds its column among the first (or second) four, or four further on the
    // negative of it.
    static ERNIE_LOCAL_INLINE Codes sign_places(const Codes& codes, bool is_second) {
        const __m256i places = _mm256_set1_epi32(is_second ? 0x0b0a0908 : 0x03020100);
        return ints([&](int i) {
            const __m256i is_negative = _mm256_andnot_si256(codes.half[i], _mm256_set1_epi8(-128));
            return _mm256_or_si256(places, _mm256_srli_epi16(is_negative, 5));
        });
    }
    static ERNIE_LOCAL_INLINE __m256i load_mirrored(const int8_t* from) {
        return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    // The sign goes to the columns by a shuffle, which runs beside the products: Zen's vpsignb would wait for their ports.
    static ERNIE_LOCAL_INLINE Ints signed_pairs(const Codes& magnitudes, const uint8_t* places, __m256i mirrored) {
        const Codes at = load_codes(places);
        return ints([&](int i) {
            return _mm256_maddubs_epi16(magnitudes.half[i], _mm256_shuffle_epi8(mirrored, at.half[i]));
        });
    }
    static ERNIE_LOCAL_INLINE Ints widen(__m128i bytes) {
        return {{_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))}};
    }
    static ERNIE_LOCAL_INLINE Ints load_bytes(const uint8_t* from) {
        return ints([=](int i) {
            return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i)));
        });
    }
    static ERNIE_LOCAL_INLINE __m128i nibbles(const uint8_t* from) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        const __m128i mask = _mm_set1_epi8(15);
        const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        return _mm_unpacklo_epi8(low, high);
    }
    static ERNIE_LOCAL_INLINE Ints load_nibbles(const uint8_t* from) { return widen(nibbles(from)); }
    static ERNIE_LOCAL_INLINE Ints load_from_table(const uint8_t* from, const uint8_t* table) {
        return widen(_mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), nibbles(from)));
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Ints int_field(const Ints& values) {
        return ints([&](int i) {
            return _mm256_and_si256(_mm256_srli_epi32(values.half[i], kShift), _mm256_set1_epi32(kMask));
        });
    }
    static ERNIE_LOCAL_INLINE Floats load_halves(const uint8_t* from) {
        return floats([=](int i) {
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i)));
        });
    }
    template <int kShift>
    static ERNIE_LOCAL_INLINE Floats nibble_to_float(const Ints& bytes) {
        if constexpr (kShift == 4) return to_floats(ints([&](int i) { return _mm256_srli_epi32(bytes.half[i], 4); }));
        return to_floats(int_field<kShift, 15>(bytes));
    }
    static ERNIE_LOCAL_INLINE Floats to_floats(const Ints& values) {
        return floats([&](int i) { return _mm256_cvtepi32_ps(values.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Ints to_ints(const Floats& values) {
        return ints([&](int i) { return _mm256_cvtps_epi32(values.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Floats times_power(const Floats& values, const Ints& powers) {
        return floats([&](int i) {
            const __m256i bits = _mm256_castps_si256(values.half[i]);
            return _mm256_castsi256_ps(_mm256_add_epi32(bits, _mm256_slli_epi32(powers.half[i], 23)));
        });
    }
    static ERNIE_LOCAL_INLINE void store_shorts(int16_t* to, const Ints& values) {
        const __m256i mixed = _mm256_packs_epi32(values.half[0], values.half[1]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
    }
    static ERNIE_LOCAL_INLINE Floats splat(float value) { return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}}; }
    static ERNIE_LOCAL_INLINE Floats multiply(const Floats& a, const Floats& b) {
        return floats([&](int i) { return _mm256_mul_ps(a.half[i], b.half[i]); });
    }
    static ERNIE_LOCAL_INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return _mm256_fmadd_ps(a.half[i], b.half[i], c.half[i]); });
    }
    // c - a * b
    static ERNIE_LOCAL_INLINE Floats multiply_subtract_from(const Floats& a, const Floats& b, const Floats& c) {
        return floats([&](int i) { return _mm256_fnmadd_ps(a.half[i], b.half[i], c.half[i]); });
    }
    // Lanes whose mark is not 0, and a of these with b of the others.
    using Choice = Floats;
    static ERNIE_LOCAL_INLINE Choice marked(const int32_t* marks) {
        return floats([&](int i) {
            const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(marks + 8 * i));
            return _mm256_castsi256_ps(_mm256_xor_si256(_mm256_cmpeq_epi32(lanes, _mm256_setzero_si256()),
                                                        _mm256_set1_epi32(-1)));
        });
    }
    static ERNIE_LOCAL_INLINE Floats choose(const Choice& choice, const Floats& a, const Floats& b) {
        return floats([&](int i) { return _mm256_blendv_ps(b.half[i], a.half[i], choice.half[i]); });
    }
    static ERNIE_LOCAL_INLINE void store(float* to, const Floats& values) {
        _mm256_storeu_ps(to, values.half[0]);
        _mm256_storeu_ps(to + 8, values.half[1]);
    }
    static ERNIE_LOCAL_INLINE Floats load(const float* from) {
        return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
    }
    // The largest sum of a quarter of the absolute values of columns 8i + {0, 1, 4, 5} and of 8i + {2, 3, 6, 7}: those that
    // two signed_pairs add in 16 bits.
    static ERNIE_LOCAL_INLINE float largest_four(const float* x, int count) {
        const __m256 sign = _mm256_set1_ps(-0.0f), quarter = _mm256_set1_ps(0.25f);
        __m128 largest = _mm_setzero_ps();
        for (int i = 0; i < count; i += 16) {
            const __m256 low = _mm256_mul_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i)), quarter);
            const __m256 high = _mm256_mul_ps(_mm256_andnot_ps(sign, _mm256_loadu_ps(x + i + 8)), quarter);
            const __m256 twos = _mm256_hadd_ps(low, high);
            largest = _mm_max_ps(largest, _mm_add_ps(_mm256_castps256_ps128(twos), _mm256_extractf128_ps(twos, 1)));
        }
        largest = _mm_max_ps(largest, _mm_movehl_ps(largest, largest));
        return _mm_cvtss_f32(_mm_max_ss(largest, _mm_movehdup_ps(largest)));
    }
    static ERNIE_LOCAL_INLINE Floats load_bfloats(const uint8_t* from) {
        return floats([=](int i) {
            const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16 * i));
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
        });
    }
    static ERNIE_LOCAL_INLINE Ints load_signed_bytes(const uint8_t* from) {
        return ints([=](int i) {
            return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i)));
        });
    }
    static ERNIE_LOCAL_INLINE void store_halves(uint8_t* to, const Floats& values) {
        for (int i = 0; i < 2; ++i)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16 * i),
                             _mm256_cvtps_ph(values.half[i], _MM_FROUND_TO_NEAREST_INT));
    }
    // Where a is NaN, b.
    static ERNIE_LOCAL_INLINE Floats maximum(const Floats& a, const Floats& b) {
        return floats([&](int i) { return _mm256_max_ps(a.half[i], b.half[i]); });
    }
    // The sum of each one's lanes.
    static ERNIE_LOCAL_INLINE void sums(const Floats four[4], float out[4]) {
        const auto folded = [&](int i) { return _mm256_add_ps(four[i].half[0], four[i].half[1]); };
        const __m256 pairs = _mm256_hadd_ps(folded(0), folded(1)), others = _mm256_hadd_ps(folded(2), folded(3));
        const __m256 quads = _mm256_hadd_ps(pairs, others);
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
    }
};

}  // namespace
}  // namespace ernie_local
