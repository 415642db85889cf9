// AVX-512 with VNNI: a 64-byte register of codes times four columns in one instruction.
#include <immintrin.h>

#include "make_table.hpp"

namespace ernie_local {
namespace {

struct Avx512 {
    using Ints = __m512i;
    using Floats = __m512;
    using Codes = __m512i;
    static constexpr int kNumWidths = 6;
    static constexpr bool kSignedW8 = false;
    static constexpr bool kWholeByteDots = true;
    static constexpr bool kTokenPairs = false;
    static constexpr bool kAsksFar = true;
    static constexpr int kNearBytes = 1024;
    static constexpr int kDotVectors = 5, kDotRows = 4;  // 20 sums, 4 rows and a vector in 32 registers
    static constexpr bool kHasBlocks = false;
    static constexpr bool kShortSums = false;
    static constexpr int kPairRows = 12;  // sums that do not wait for each other

    static ERNIE_LOCAL_INLINE void prefetch_far(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T1);
    }
    static ERNIE_LOCAL_INLINE void prefetch_near(const uint8_t* from) {
        _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0);
    }

    static ERNIE_LOCAL_INLINE Codes load_codes(const uint8_t* from) { return _mm512_loadu_si512(from); }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes field(Codes codes) {
        if constexpr (kShift != 0) codes = _mm512_srli_epi16(codes, kShift);
        return kMask == 0xff ? codes : _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(kMask)));
    }
    static ERNIE_LOCAL_INLINE Codes add_four_where(Codes codes, const uint8_t* bits) {
        uint64_t mask;
        std::memcpy(&mask, bits, 8);
        return _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(4));
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Codes raised(Codes codes) {
        return _mm512_and_si512(_mm512_slli_epi16(codes, kShift), _mm512_set1_epi8(kMask));
    }
    static ERNIE_LOCAL_INLINE Codes either(Codes a, Codes b) { return _mm512_or_si512(a, b); }
    static ERNIE_LOCAL_INLINE Codes exclusive_or(Codes a, Codes b) { return _mm512_xor_si512(a, b); }
    // Places are below 8: a shuffle looks at the lowest four bits, and at the highest one, which both shifts leave 0.
    static ERNIE_LOCAL_INLINE void look_up_nibbles(Codes places, const uint8_t* table, Codes& low, Codes& high) {
        const Codes levels = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
        low = _mm512_shuffle_epi8(levels, places);
        high = _mm512_shuffle_epi8(levels, _mm512_srli_epi16(places, 4));
    }
    static ERNIE_LOCAL_INLINE Ints zero_ints() { return _mm512_setzero_si512(); }
    static ERNIE_LOCAL_INLINE Ints dot(Ints sum, Codes codes, const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, 4);
        return _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(word));
    }
    static ERNIE_LOCAL_INLINE Ints dot_w8(Ints sum, Codes codes, const int8_t* four) { return dot(sum, codes, four); }
    // Two int16 of each lane times the two of `pair`, added to the lane's sum.
    static ERNIE_LOCAL_INLINE Ints dot_shorts(Ints sum, Codes pairs, int32_t pair) {
        return _mm512_dpwssd_epi32(sum, pairs, _mm512_set1_epi32(pair));
    }
    static ERNIE_LOCAL_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
    static ERNIE_LOCAL_INLINE Ints load_bytes(const uint8_t* from) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static ERNIE_LOCAL_INLINE __m128i nibbles(const uint8_t* from) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
        const __m128i mask = _mm_set1_epi8(15);
        const __m128i low = _mm_and_si128(bytes, mask), high = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        return _mm_unpacklo_epi8(low, high);
    }
    static ERNIE_LOCAL_INLINE Ints load_nibbles(const uint8_t* from) { return _mm512_cvtepu8_epi32(nibbles(from)); }
    static ERNIE_LOCAL_INLINE Ints load_from_table(const uint8_t* from, const uint8_t* table) {
        const __m128i numbers = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
        return _mm512_cvtepu8_epi32(_mm_shuffle_epi8(numbers, nibbles(from)));
    }
    template <int kShift, int kMask>
    static ERNIE_LOCAL_INLINE Ints int_field(Ints ints) {
        if constexpr (kShift != 0) ints = _mm512_srli_epi32(ints, kShift);
        return _mm512_and_si512(ints, _mm512_set1_epi32(kMask));
    }
    static ERNIE_LOCAL_INLINE Ints sixteenth(Ints ints) { return _mm512_srai_epi32(ints, 4); }
    // Four bits at kShift of ints that are bytes: a permutation looks at the lowest four of its index only.
    template <int kShift>
    static ERNIE_LOCAL_INLINE Floats nibble_to_float(Ints bytes) {
        const Floats table = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        if constexpr (kShift != 0) bytes = _mm512_srli_epi32(bytes, kShift);
        return _mm512_permutexvar_ps(bytes, table);
    }
    static ERNIE_LOCAL_INLINE Floats load_halves(const uint8_t* from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    }
    static ERNIE_LOCAL_INLINE Floats to_floats(Ints ints) { return _mm512_cvtepi32_ps(ints); }
    static ERNIE_LOCAL_INLINE Ints to_ints(Floats floats) { return _mm512_cvtps_epi32(floats); }
    static ERNIE_LOCAL_INLINE Floats times_power(Floats floats, Ints powers) {
        return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(floats), _mm512_slli_epi32(powers, 23)));
    }
    static ERNIE_LOCAL_INLINE void store_shorts(int16_t* to, Ints ints) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtsepi32_epi16(ints));
    }
    static ERNIE_LOCAL_INLINE Floats splat(float value) { return _mm512_set1_ps(value); }
    static ERNIE_LOCAL_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static ERNIE_LOCAL_INLINE Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    // c - a * b
    static ERNIE_LOCAL_INLINE Floats multiply_subtract_from(Floats a, Floats b, Floats c) {
        return _mm512_fnmadd_ps(a, b, c);
    }
    // Lanes whose mark is not 0, and a of these with b of the others.
    using Choice = __mmask16;
    static ERNIE_LOCAL_INLINE Choice marked(const int32_t* marks) {
        const Ints lanes = _mm512_loadu_si512(marks);
        return _mm512_test_epi32_mask(lanes, lanes);
    }
    static ERNIE_LOCAL_INLINE Floats choose(Choice choice, Floats a, Floats b) {
        return _mm512_mask_blend_ps(choice, b, a);
    }
    static ERNIE_LOCAL_INLINE void store(float* to, Floats floats) { _mm512_storeu_ps(to, floats); }
    static ERNIE_LOCAL_INLINE Floats load(const float* from) { return _mm512_loadu_ps(from); }
    static ERNIE_LOCAL_INLINE Floats load_bfloats(const uint8_t* from) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static ERNIE_LOCAL_INLINE Ints load_signed_bytes(const uint8_t* from) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    }
    static ERNIE_LOCAL_INLINE void store_halves(uint8_t* to, Floats floats) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(floats, _MM_FROUND_TO_NEAREST_INT));
    }
    // Where a is NaN, b.
    static ERNIE_LOCAL_INLINE Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
    static ERNIE_LOCAL_INLINE __m256 fold(Floats floats) {
        return _mm256_add_ps(_mm512_castps512_ps256(floats), _mm512_extractf32x8_ps(floats, 1));
    }
    // The sum of each one's lanes.
    static ERNIE_LOCAL_INLINE void sums(const Floats four[4], float out[4]) {
        const __m256 pairs = _mm256_hadd_ps(fold(four[0]), fold(four[1]));
        const __m256 others = _mm256_hadd_ps(fold(four[2]), fold(four[3]));
        const __m256 quads = _mm256_hadd_ps(pairs, others);
        _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
    }
};

}  // namespace

const KernelTable& avx512_kernels() {
    static const KernelTable table = make_table<Avx512>("avx512vnni");
    return table;
}

}  // namespace ernie_local
