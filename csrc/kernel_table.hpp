// What one instruction set offers: a product of one packed tile with a few tokens, and activations made int8.
#pragma once

#include <cstdint>

namespace ernie_local {

// A few tokens, interleaved so that the four columns a dot product takes lie side by side:
// values[columns / 4][width][4]; scales and offsets [groups][width].
// A token's column is value * scale; an offset is the sum of its group, over what the format's zeros are divided by.
struct TokenTile {
    const int8_t* values;
    const float* scales;
    const float* offsets;
};

// out[width][16]: the tile's 16 rows for each token. `next` is the tile of equal or smaller size that is computed after
// this one, and is brought near meanwhile; any address will do where there is none.
using TileKernel = void (*)(const uint8_t* tile, const uint8_t* next, int columns, const TokenTile& tokens, float* out);

// One token, one group size: values[columns], scales[groups], sums[groups] (of value * scale).
// Returns false, having written nothing of use, if a column is NaN or infinite.
using QuantizeKernel = bool (*)(const float* row, int columns, int group, int8_t* values, float* scales,
                                float* sums);

// out[i] = silu(gate[i]) * up[i]; may write over an input.
using SwigluKernel = void (*)(const float* gate, const float* up, int count, float* out);

constexpr int kWidths[] = {1, 2, 4, 8, 12};
constexpr int kNumWidths = 5;
constexpr int kWidest = 12;

struct KernelTable {
    const char* name;
    int num_widths;      // how many of kWidths there are kernels for
    bool signed_w8;      // whether w8 tiles are computed around 128 already, so that no offset is due
    QuantizeKernel quantize;
    SwigluKernel swiglu;
    TileKernel tile[6][kNumWidths];  // [format id - 1][index in kWidths]
};

const KernelTable& scalar_kernels();
#if defined(ERNIE_LOCAL_KERNELS_X86)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
#endif
#if defined(ERNIE_LOCAL_KERNELS_ARM)
const KernelTable& neon_kernels();
#endif

}  // namespace ernie_local
