// 64-bit ARM with products of small int8 matrices (smmla): two rows times two tokens, 8 columns each, in one instruction.
// A single token has nothing to pair with; dot products serve it.
#include "make_table.hpp"
#include "neon_isa.hpp"

namespace ernie_local {
namespace {

struct NeonI8mm : Neon {
    static constexpr bool kTokenPairs = true;
    static constexpr bool kHasBlocks = true;

    // Four columns of 16 rows and the next four become 8 columns of the rows 0, 1, 4, 5, 8, 9, 12, 13 and of the others.
    static ERNIE_LOCAL_INLINE void join_columns(Codes& first, Codes& second) {
        const auto zipped = [&](int i) {
            return vzipq_u32(vreinterpretq_u32_u8(first.quarter[i]), vreinterpretq_u32_u8(second.quarter[i]));
        };
        for (int i = 0; i < 4; ++i) {
            const uint32x4x2_t rows = zipped(i);
            first.quarter[i] = vreinterpretq_u8_u32(rows.val[0]);
            second.quarter[i] = vreinterpretq_u8_u32(rows.val[1]);
        }
    }
    // Codes around 128 as signed numbers.
    static ERNIE_LOCAL_INLINE Codes signed_codes(const Codes& codes) {
        return each<Codes>([&](int i) { return veorq_u8(codes.quarter[i], vdupq_n_u8(128)); });
    }
    // Two tokens' 8 columns: four of both, and `stride` bytes on the next four of both.
    static ERNIE_LOCAL_INLINE int8x16_t two_tokens(const int8_t* values, int stride) {
        const int32x2_t first = vreinterpret_s32_s8(vld1_s8(values)), second = vreinterpret_s32_s8(vld1_s8(values + stride));
        return vreinterpretq_s8_s32(vcombine_s32(vzip1_s32(first, second), vzip2_s32(first, second)));
    }
    static ERNIE_LOCAL_INLINE Ints dot_pairs(const Ints& sum, const Codes& codes, int8x16_t columns) {
        return each<Ints>([&](int i) {
            return vmmlaq_s32(sum.quarter[i], vreinterpretq_s8_u8(codes.quarter[i]), columns);
        });
    }
    // 8 joined columns from memory, for all tokens. A single token is paired with none.
    template <int kWidth>
    static ERNIE_LOCAL_INLINE void dot_eight(const uint8_t* codes, const int8_t* values, Ints* sums) {
        constexpr int kPairs = (kWidth + 1) / 2;
        int8x16_t columns[kPairs];
        for (int pair = 0; pair < kPairs; ++pair)
            columns[pair] =
                kWidth == 1 ? vcombine_s8(vld1_s8(values), vdup_n_s8(0)) : two_tokens(values + 8 * pair, 4 * kWidth);
        for (int i = 0; i < 8; ++i) {
            const int8x16_t rows = vreinterpretq_s8_u8(vld1q_u8(codes + 16 * i));
            for (int pair = 0; pair < kPairs; ++pair) {
                int32x4_t& sum = sums[2 * pair + i / 4].quarter[i % 4];
                sum = vmmlaq_s32(sum, rows, columns[pair]);
            }
        }
    }
    // The sums of dot_pairs with both halves of join_columns become the 16 rows of the first and the second token.
    static ERNIE_LOCAL_INLINE void part_tokens(Ints& first, Ints& second) {
        for (int i = 0; i < 4; ++i) {
            const int32x4x2_t tokens = vuzpq_s32(first.quarter[i], second.quarter[i]);
            first.quarter[i] = tokens.val[0];
            second.quarter[i] = tokens.val[1];
        }
    }
};

}  // namespace

const KernelTable& neon_i8mm_kernels() {
    static const KernelTable table = make_table<NeonI8mm>("neon_i8mm");
    return table;
}

}  // namespace ernie_local
