// AVX-VNNI: the dot products of AVX-512 VNNI in registers of 32 bytes, all else as on AVX2.
#include "avx2_isa.hpp"
#include "make_table.hpp"

namespace ernie_local {
namespace {

struct AvxVnni : Avx2 {
    static constexpr int kNumWidths = 4;
    static constexpr bool kSignedW8 = false;
    static constexpr bool kWholeByteDots = true;
    static constexpr bool kShortSums = false;

    static ERNIE_LOCAL_INLINE Ints dot(const Ints& sum, const Codes& codes, const int8_t* four) {
        const __m256i columns = word(four);
        return ints([&](int i) { return _mm256_dpbusd_avx_epi32(sum.half[i], codes.half[i], columns); });
    }
    static ERNIE_LOCAL_INLINE Ints dot_w8(const Ints& sum, const Codes& codes, const int8_t* four) {
        return dot(sum, codes, four);
    }
    static ERNIE_LOCAL_INLINE Ints sixteenth(const Ints& values) {
        return ints([&](int i) { return _mm256_srai_epi32(values.half[i], 4); });
    }
};

}  // namespace

const KernelTable& avxvnni_kernels() {
    static const KernelTable table = make_table<AvxVnni>("avxvnni");
    return table;
}

}  // namespace ernie_local
