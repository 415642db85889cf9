// What one instruction set offers: a product of one packed tile with a few tokens, activations made int8, what a
// decoded token needs besides (norm, products with float rows, softmax, attention over a piece of the context), and the
// inner loops of choosing codes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace ernie_local {

// A few tokens, interleaved so that the four columns a dot product takes lie side by side:
// values[columns / 4][width][4]; scales and offsets [groups][width].
// A token's column is value * scale; an offset is the sum of its group, over what the format's zeros are divided by.
struct TokenTile {
    const int8_t* values;
    const float* scales;
    const float* offsets;
};

// out[width][16]: the tile's 16 rows for each token. `next` is the tile that is computed after this
// one: some sets bring as many bytes of it near meanwhile; any address will do where there is none.
using TileKernel = void (*)(const uint8_t* tile, const uint8_t* next, int columns, const TokenTile& tokens, float* out);

// The same for many tokens: a tile's columns are unpacked block by block, and each block serves all tokens.
// Columns [start, start + count), whole groups but for the last one, into `out`, which has kUnpackedBytes.
using UnpackKernel = void (*)(const uint8_t* tile, int columns, int start, int count, uint8_t* out);

// Adds an unpacked block of `count` columns to sums[width][16], which `is_first` sets to 0 before; `tokens` begin at the
// same column. With the last block come the tile's `row_scales` (the tile itself), before that null.
using BlockKernel = void (*)(const uint8_t* unpacked, int count, const uint8_t* row_scales, const TokenTile& tokens,
                             bool is_first, float* sums);
constexpr int kBlockColumns = 512;  // so that a block stays in the first cache
constexpr size_t kUnpackedBytes = 17 << 10;

// One token, one group size: values[columns], scales[groups], sums[groups] (of value * scale).
// Returns false, having written nothing of use, if a column is NaN or infinite.
using QuantizeKernel = bool (*)(const float* row, int columns, int group, int8_t* values, float* scales,
                                float* sums);

// out[i] = silu(gate[i]) * up[i]; may write over an input.
using SwigluKernel = void (*)(const float* gate, const float* up, int count, float* out);

// out[i] = weight[i] * (row[i] / sqrt(mean(square(row)) + eps)).
using RmsNormKernel = void (*)(const float* row, const float* weight, int size, float eps, float* out);

// out[vector * out_stride + row] = rows[row] . vectors[vector]; both have `columns` numbers each.
using DotKernel = void (*)(const float* rows, int count, int columns, const float* vectors, int num_vectors, float* out,
                           size_t out_stride);

// The same with rows of bfloat16.
using DotBfloatsKernel = void (*)(const uint16_t* rows, int count, int columns, const float* vectors, int num_vectors,
                                  float* out, size_t out_stride);

// out[i] += sum over k < rank of tile[k][i] * factors[k], i < 16, with a tile of bfloat16.
using LowRankTileKernel = void (*)(const uint16_t* tile, int rank, const float* factors, float* out);

// In place. A NaN or a positive infinity makes all of them NaN.
using SoftmaxKernel = void (*)(float* values, int count);

enum class CacheFormat { kFloat32, kBFloat16, kFloat16, kInt8 };
constexpr int kNumCacheFormats = 4;

constexpr int kAttendBlock = 256;  // tokens whose scores are held at a time
constexpr int attend_stride(int head_dim) { return (head_dim + 15) / 16 * 16; }

// What a piece of the context gave: each query's sum of weighted values, not yet divided by `total`, the sum of the
// weights exp(score - largest).
struct AttendPart {
    float* sums;     // [group][attend_stride(head_dim)]
    float* largest;  // [group]
    float* total;    // [group]
};

// Tokens [first, last) of one key-value head. Where `new_key` is given, the last of them is new: it is turned and
// written before it is attended to.
struct AttendTask {
    const float* queries;                // [group][head_dim], not yet turned
    const float *new_key, *new_value;    // [head_dim]
    const float *cosines, *sines;        // [head_dim / 2]
    uint8_t *keys, *values;              // [capacity][head_dim] in the cache's format
    float *key_scales, *value_scales;    // [capacity], int8 only
    int64_t first, last;
    int group, head_dim;
    float* scratch;                      // [attend_scratch(group, head_dim)]
    AttendPart part;
};
constexpr size_t attend_scratch(size_t group, size_t head_dim) { return (group + 1) * head_dim + group * kAttendBlock; }

using AttendKernel = void (*)(const AttendTask& task);
// out[head_dim]: the attention of the `query`-th of a group, from all pieces of the context.
using MergeKernel = void (*)(const AttendPart* parts, int num_parts, int query, int head_dim, float* out);

// Attention of many queries goes over blocks of keys, with blocks of rows: a row is one token's query of one head.
constexpr int kKeyBlock = 128, kRowBlock = 96;
constexpr int kMostHeadDim = 128;

// Which numbers of a head are turned together: neighbours, or those half a head apart.
enum class Turn { kNone, kPairs, kHalves };

// Keys and values of up to kKeyBlock tokens of one head, rounded to whole steps and interleaved for products of pairs.
struct alignas(64) KeyBlock {
    int16_t keys[kKeyBlock * kMostHeadDim];    // [key / 16][column / 2][16 keys][2 columns], columns up to whole 16
    int16_t values[kKeyBlock * kMostHeadDim];  // [column / 16][key / 2][16 columns][2 keys]
    float key_steps[kKeyBlock];       // of each token: NaN if its key or value is NaN or infinite
    float value_steps[kMostHeadDim];  // of each column
    bool is_broken;                   // whether one of the tokens is
};
// ernie_local/model/memory_use.py counts with this.
static_assert(sizeof(KeyBlock) == 66624, "the planner knows the size of a block");

struct KeyBlockTask {
    const uint8_t *keys, *values;               // of the first token
    size_t token_bytes;                         // from one token to the next
    const float *key_scales, *value_scales;     // [count], int8 only
    const float *cosines, *sines;               // [count][head_dim / 2]; null where keys are turned already
    int count, head_dim;                        // head_dim even, at most kMostHeadDim
    KeyBlock* out;
};
using KeyBlockKernel = void (*)(const KeyBlockTask& task);

// Rows [0, count) of one key-value head, those of a token one after the other, over blocks that follow each other.
struct RowBlockTask {
    const float* queries;               // of the first token's first row
    size_t token_stride;                // from one token's queries to the next one's
    const float *cosines, *sines;       // [tokens][head_dim / 2], of the first token
    Turn turn;
    int group, first_row, count;        // rows of a token; the first one is first_row-th of its token
    int head_dim;
    const KeyBlock* blocks;
    int num_blocks;
    int64_t num_keys;                   // in these blocks
    // How many of these keys the first token sees: the next one sees one more. Without masks: kSeesAll.
    int64_t first_sees;
    bool is_first, is_last;             // whether no blocks came before, or come after
    float *largest, *total;             // [count], kept from blocks to blocks
    float* out;                         // where queries lie, with out_stride
    size_t out_stride;
};
constexpr int64_t kSeesAll = INT64_MAX / 2;
using RowBlockKernel = void (*)(const RowBlockTask& task);

// What codes, scales and zeros of a format can be; whole numbers, held as floats where they are computed with.
struct CodeRange {
    int group_size;
    float highest_code, highest_scale, highest_zero, zero_divisor;
};
constexpr int kQuantizeBlock = 128;  // columns that are gone over before their changes are carried to all others

// All matrices of these tasks are transposed, [columns][rows] or [groups][rows]; `matters` has one number a column.
struct SearchTask {
    CodeRange range;
    size_t rows;
    int columns;
    float least_scale;
    const float *weights, *matters;
    float *steps, *shifts;
};
struct WholeTask {
    CodeRange range;
    size_t rows;
    int columns;
    const float *weights, *matters;
    const float *steps, *shifts, *row_steps;
    uint8_t *scales, *zeros;
};
struct GptqTask {
    float highest_code;
    size_t rows, columns;
    int start, stop;  // columns, in the order in which they are gone over
    const float *left, *factor;
    const int64_t* group_ids;
    const float *steps, *shifts;
    uint8_t* codes;
    float* errors;  // [stop - start][rows]
};
struct RefineTask {
    CodeRange range;
    size_t rows, columns;
    int start, stop;  // start is the first column of a group
    bool with_codes, with_scales;
    const float *hessian, *pull, *row_scales;
    uint8_t *codes, *scales, *zeros;
    float* change;  // [stop - start][rows]
};
// Of w2t, whose codes are steps along trellises.
constexpr int kLongestStretch = 24;  // that is searched anew as one
struct WalkTask {
    size_t rows, columns;
    int first, start, stop, end;  // columns [start, stop) of the ring [first, end) are decided
    const float *left, *factor;
    const int64_t* group_ids;
    const float* steps;
    uint8_t* states;  // [2][rows]: before `start`, and then before `stop`; before `first`
    uint8_t* codes;
    float* errors;  // [stop - start][rows]
};
// A block of columns, in any order: stretches of rings one after the other, each of `stretch` columns.
struct DecideTask {
    size_t rows;
    int size, stretch;
    bool is_ring;                     // whether each stretch is a whole ring
    const float* own;                 // [size][size] of the Hessian
    const float *inverses, *factors;  // [size / stretch][stretch][stretch]: of a stretch's own square, and of its inverse
    const float *pull, *steps;        // [size][rows]
    const uint8_t* states;            // [size / stretch][rows], before each stretch
    uint8_t* codes;                   // [size][rows]
    float* change;                    // [size][rows]
};
// A block of whole groups.
struct RefitTask {
    size_t rows;
    int size, group_size;
    const float *own;                       // [size][size] of the Hessian
    const float *levels, *pull;             // [size][rows]; levels less the zero
    const float* row_scales;
    uint8_t* scales;  // [groups][rows]
    float* change;    // [size][rows]
};
// Rows [first_row, first_row + count), at most 16 of them.
template <class Task>
using StripKernel = void (*)(const Task& task, int first_row, int count);

constexpr int kWidths[] = {1, 2, 4, 6, 8, 12};
constexpr int kNumWidths = 6;
constexpr int kWidest = 12;
constexpr int kNumBlockWidths = 4;

struct KernelTable {
    const char* name;
    int num_widths;      // how many of kWidths there are kernels for
    QuantizeKernel quantize, quantize_bounded;  // the second one for mirrored tokens, or null
    SwigluKernel swiglu;
    TileKernel tile[kNumFormats][kNumWidths];  // [format id - 1][index in kWidths]
    bool has_blocks;                           // or else tile kernels serve many tokens too
    bool takes_mirrored[kNumFormats];          // the block kernel takes tokens with their negatives: see TokenTiles
    UnpackKernel unpack[kNumFormats];
    BlockKernel block[kNumFormats][kNumBlockWidths];
    RmsNormKernel rms_norm;
    DotKernel dot;
    DotBfloatsKernel dot_bfloats;
    LowRankTileKernel add_low_rank_tile;
    SoftmaxKernel softmax;
    AttendKernel attend[kNumCacheFormats];
    MergeKernel merge;
    AttendKernel store_token[kNumCacheFormats];  // of head_dim up to kMostHeadDim; reads what is new, attends to nothing
    KeyBlockKernel round_keys[kNumCacheFormats];
    RowBlockKernel attend_rows;
    StripKernel<SearchTask> search_ranges;
    StripKernel<WholeTask> choose_whole;
    StripKernel<GptqTask> gptq_block;
    StripKernel<RefineTask> refine_block;
    StripKernel<WalkTask> walk_trellis;
    StripKernel<DecideTask> decide_block;
    StripKernel<RefitTask> refit_scales;
};

}  // namespace ernie_local
