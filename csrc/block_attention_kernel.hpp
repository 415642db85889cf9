// Attention of many queries to many keys, a block of each at a time, by products of int16: twice as many an instruction
// as of floats. Nothing of the size queries times keys is held.
//
// A query or key is rounded to whole steps of its own, so small that a sum of products just fits an int32: some 14 bits
// and a sign. Weights exp(score - greatest of the block) become multiples of 1/8192, and values
// of a block 11 bits and a sign in each column. Blocks are put together in float under a running maximum, each with its
// own: what weighs little next to an early token, as most do next to the first, keeps its digits.
#pragma once

#include <cstdint>

#include "attention_kernel.hpp"

namespace ernie_local {

constexpr int kWeightBits = 13;
constexpr float kMostValueSteps = 2047.0f;
static_assert(static_cast<int64_t>(kKeyBlock) * (1 << kWeightBits) * static_cast<int64_t>(kMostValueSteps) < INT32_MAX,
              "a column's sum over a block fits");

// Adding this to a float of less than 2^22 leaves it, rounded, in the lowest bits.
constexpr float kRounder = 12582912.0f;

ERNIE_LOCAL_INLINE uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
ERNIE_LOCAL_INLINE float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
ERNIE_LOCAL_INLINE int16_t rounded(float x) { return static_cast<int16_t>(bits_of(x + kRounder)); }

// Magnitudes compare as integers, with infinity and NaN the greatest.
constexpr uint32_t kMagnitude = 0x7fffffffu, kInfinityBits = 0x7f800000u;
ERNIE_LOCAL_INLINE uint32_t greatest_magnitude(const float* row, int count) {
    uint32_t greatest = 0;
    for (int i = 0; i < count; ++i) {
        const uint32_t bits = bits_of(row[i]) & kMagnitude;
        greatest = bits > greatest ? bits : greatest;
    }
    return greatest;
}

// How large a step is if `greatest` is `most` of them. Numbers below 1e-30 count as 0: their inverse would overflow.
ERNIE_LOCAL_INLINE float step_of(uint32_t greatest, float most) {
    const float magnitude = float_of(greatest);
    return magnitude < 1e-30f ? 0.0f : magnitude / most;
}
ERNIE_LOCAL_INLINE float inverse_of(float step) { return step == 0.0f ? 0.0f : 1.0f / step; }

// out[width] in whole steps; gives back what a step is worth, NaN for a row that holds a NaN or an infinity. The length
// of a row is at most 46330 steps, so that by Cauchy and Schwarz no product of two rows, nor a part of it, leaves int32.
template <class Isa>
ERNIE_LOCAL_INLINE float round_row(const float* row, int width, int16_t* out) {
    const uint32_t greatest = greatest_magnitude(row, width);
    const bool is_finite = greatest < kInfinityBits;
    const float magnitude = is_finite ? step_of(greatest, 1.0f) : 0.0f, inverse = inverse_of(magnitude);
    float shares[kMostHeadDim];
    for (int i = 0; i < width; ++i) shares[i] = is_finite ? row[i] * inverse : 0.0f;
    const float length = std::sqrt(sum_of<Isa, true>(shares, width));
    const float most = length * 32767.0f > 46330.0f ? 46330.0f / length : 32767.0f;
    for (int i = 0; i < width; ++i) out[i] = rounded(shares[i] * most);
    return is_finite ? magnitude / most : NAN;
}

ERNIE_LOCAL_INLINE void turn_halves(float* row, const float* cosines, const float* sines, int half) {
    for (int i = 0; i < half; ++i) {
        const float first = row[i], second = row[half + i];
        row[i] = first * cosines[i] - second * sines[i];
        row[half + i] = second * cosines[i] + first * sines[i];
    }
}

constexpr int padded_head(int head_dim) { return (head_dim + kLanes - 1) / kLanes * kLanes; }

// A stored row as floats, with zeros behind it up to whole registers.
template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void load_row(const uint8_t* from, int head_dim, float scale, float* out) {
    for (int column = 0; column < head_dim; column += kLanes) {
        const uint8_t* at = from + Numbers::kBytes * column;
        const int rest = head_dim - column;
        auto numbers = rest >= kLanes ? Numbers::load(at) : load_rest<Isa, Numbers>(at, rest);
        if constexpr (Numbers::kHasScales) numbers = Isa::multiply(numbers, Isa::splat(scale));
        Isa::store(out + column, numbers);
    }
}

// One int16 beside another: the first lies in the lower half.
ERNIE_LOCAL_INLINE uint32_t paired(int16_t first, int16_t second) {
    return static_cast<uint16_t>(first) | static_cast<uint32_t>(static_cast<uint16_t>(second)) << 16;
}

template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void round_key_tile(const KeyBlockTask& task, int first, int16_t* tile) {
    const int head_dim = task.head_dim, width = padded_head(head_dim);
    int16_t steps[16][kMostHeadDim];
    for (int i = 0; i < 16; ++i) {
        const int token = first + i;
        float row[kMostHeadDim];
        if (token >= task.count) {
            for (int column = 0; column < width; ++column) row[column] = 0.0f;
        } else {
            // Rows of one head may lie pages apart: no prefetcher finds them.
            const size_t at = task.token_bytes * token;
            for (size_t byte = 0; byte < Numbers::kBytes * head_dim; byte += 64) {
                Isa::prefetch_near(task.keys + at + 16 * task.token_bytes + byte);
                Isa::prefetch_near(task.values + at + byte);
            }
            const float scale = Numbers::kHasScales ? task.key_scales[token] : 1.0f;
            load_row<Isa, Numbers>(task.keys + task.token_bytes * token, head_dim, scale, row);
            const size_t angles = static_cast<size_t>(token) * (head_dim / 2);
            if (task.cosines != nullptr)
                turn_halves(row, task.cosines + angles, task.sines + angles, head_dim / 2);
        }
        task.out->key_steps[token] = round_row<Isa>(row, width, steps[i]);
    }
    for (int pair = 0; pair < width / 2; ++pair)
        for (int i = 0; i < 16; ++i) std::memcpy(tile + 32 * pair + 2 * i, &steps[i][2 * pair], 4);
}

template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void round_values(const KeyBlockTask& task) {
    const int head_dim = task.head_dim, width = padded_head(head_dim);
    KeyBlock& block = *task.out;
    const auto load = [&](int token, float* row) {
        const float scale = Numbers::kHasScales ? task.value_scales[token] : 1.0f;
        load_row<Isa, Numbers>(task.values + task.token_bytes * token, head_dim, scale, row);
    };
    uint32_t greatest[kMostHeadDim] = {};
    for (int token = 0; token < task.count; ++token) {
        float row[kMostHeadDim];
        load(token, row);
        if (greatest_magnitude(row, width) >= kInfinityBits) {
            block.key_steps[token] = NAN;
            continue;
        }
        for (int i = 0; i < width; ++i) {
            const uint32_t bits = bits_of(row[i]) & kMagnitude;
            greatest[i] = bits > greatest[i] ? bits : greatest[i];
        }
    }
    float inverses[kMostHeadDim];
    for (int i = 0; i < width; ++i) {
        block.value_steps[i] = step_of(greatest[i], kMostValueSteps);
        inverses[i] = inverse_of(block.value_steps[i]);
    }
    for (int pair = 0; pair < (task.count + 15) / 16 * 8; ++pair) {
        float rows[2][kMostHeadDim];
        for (int i = 0; i < 2; ++i) {
            const int token = 2 * pair + i;
            if (token < task.count && !std::isnan(block.key_steps[token])) {
                load(token, rows[i]);
            } else {
                for (int column = 0; column < width; ++column) rows[i][column] = 0.0f;
            }
        }
        for (int column = 0; column < width; column += 16) {
            uint32_t both[16];
            for (int i = 0; i < 16; ++i)
                both[i] = paired(rounded(rows[0][column + i] * inverses[column + i]),
                                 rounded(rows[1][column + i] * inverses[column + i]));
            std::memcpy(block.values + kKeyBlock * column + 32 * pair, both, sizeof both);
        }
    }
}

template <class Isa, CacheFormat kFormat>
void round_keys(const KeyBlockTask& task) {
    using Numbers = Stored<Isa, kFormat>;
    for (int first = 0; first < task.count; first += 16)
        round_key_tile<Isa, Numbers>(task, first, task.out->keys + padded_head(task.head_dim) * first);
    round_values<Isa, Numbers>(task);
    task.out->is_broken = false;
    for (int token = 0; token < task.count; ++token)
        if (std::isnan(task.out->key_steps[token])) task.out->is_broken = true;
}

// out[row][16] = products of `rows`, [kPairRows][stride], with 16 columns of `tile`, [pairs][16][2]. Meanwhile `lines`
// of 64 bytes from `next` on are brought near.
template <class Isa>
ERNIE_LOCAL_INLINE void dot_tile(const int16_t* rows, size_t stride, const int16_t* tile, int pairs, const int16_t* next,
                                 int lines, typename Isa::Floats out[Isa::kPairRows]) {
    for (int line = 0; line < lines; ++line) Isa::prefetch_near(reinterpret_cast<const uint8_t*>(next + 32 * line));
    typename Isa::Ints sums[Isa::kPairRows];
    for (int row = 0; row < Isa::kPairRows; ++row) sums[row] = Isa::zero_ints();
    for (int pair = 0; pair < pairs; ++pair) {
        const auto columns = Isa::load_codes(reinterpret_cast<const uint8_t*>(tile + 32 * pair));
        for (int row = 0; row < Isa::kPairRows; ++row) {
            int32_t both;
            std::memcpy(&both, rows + stride * row + 2 * pair, 4);
            sums[row] = Isa::dot_shorts(sums[row], columns, both);
        }
    }
    for (int row = 0; row < Isa::kPairRows; ++row) out[row] = Isa::to_floats(sums[row]);
}

// What a block of rows works with; sums are of weighted values, in units of `total`.
struct RowBlockState {
    alignas(64) int16_t queries[kRowBlock][kMostHeadDim];
    alignas(64) int16_t weights[kRowBlock][kKeyBlock];
    alignas(64) float scores[kRowBlock][kKeyBlock];
    alignas(64) float sums[kRowBlock][kMostHeadDim];
    float query_steps[kRowBlock], largest[kRowBlock], total[kRowBlock];
    float keeps[kRowBlock], adds[kRowBlock];  // factors of a row's sums so far and of the block's
    int sees[kRowBlock];                      // keys of the block
};

// weights[i] = 2^(scores[i] * factor + shift) to 1e-4, as whole numbers, for whole registers; gives back their sum.
template <class Isa>
ERNIE_LOCAL_INLINE int32_t powers(const float* scores, int width, float factor, float shift, int16_t* weights) {
    using Floats = typename Isa::Floats;
    const Floats factors = Isa::splat(factor), shifts = Isa::splat(shift), one = Isa::splat(1.0f);
    const Floats least = Isa::splat(-2.0f);  // a quarter is rounded to 0
    auto sums = Isa::zero_ints();
    for (int i = 0; i < width; i += kLanes) {
        const Floats exponent = Isa::maximum(Isa::multiply_add(Isa::load(scores + i), factors, shifts), least);
        const auto whole = Isa::to_ints(exponent);
        const Floats rest = Isa::multiply_subtract_from(Isa::to_floats(whole), one, exponent);
        Floats power = Isa::multiply_add(Isa::splat(0.0551714353f), rest, Isa::splat(0.242610809f));
        power = Isa::multiply_add(power, rest, Isa::splat(0.693260991f));
        power = Isa::multiply_add(power, rest, Isa::splat(0.999928093f));
        const auto rounded = Isa::to_ints(Isa::times_power(power, whole));
        sums = Isa::add(sums, rounded);
        Isa::store_shorts(weights + i, rounded);
    }
    float lanes[kLanes], total = 0.0f;
    Isa::store(lanes, Isa::to_floats(sums));
    for (const float lane : lanes) total += lane;
    return static_cast<int32_t>(total);  // exact: at most 2^20
}

// Scores of one row become weights. Those of keys that it does not see become 0.
template <class Isa>
ERNIE_LOCAL_INLINE void weigh_row(RowBlockState& state, int row, int width, const KeyBlock& block) {
    float* scores = state.scores[row];
    int16_t* weights = state.weights[row];
    const int count = state.sees[row];
    const float factor = state.query_steps[row];
    const float greatest_score = greatest_of<Isa>(scores, count, -FLT_MAX), greatest = greatest_score * factor;
    for (int i = count; i < width; ++i) scores[i] = greatest_score;
    int32_t total = powers<Isa>(scores, width, factor, static_cast<float>(kWeightBits) - greatest, weights);
    for (int i = count; i < width; ++i) {
        total -= weights[i];
        weights[i] = 0;
    }
    const float difference = greatest - state.largest[row];
    const bool is_greater = difference > 0.0f;
    const float less = exp_bounded(0.693147181f * (is_greater ? -difference : difference));
    state.keeps[row] = is_greater ? less : 1.0f;
    state.adds[row] = count == 0 ? 0.0f : is_greater ? 1.0f : less;
    if (is_greater) state.largest[row] = greatest;
    state.total[row] = state.total[row] * state.keeps[row] + static_cast<float>(total) * state.adds[row];
    if (block.is_broken)
        for (int i = 0; i < count; ++i)
            if (std::isnan(block.key_steps[i])) state.total[row] = NAN;
}

// Rows [0, count) of one block; rows up to whole registers behind them are computed and thrown away.
template <class Isa>
ERNIE_LOCAL_INLINE void attend_block(RowBlockState& state, int count, int head_dim, const KeyBlock& block) {
    using Floats = typename Isa::Floats;
    constexpr int kRows = Isa::kPairRows;
    static_assert(kRowBlock % kRows == 0, "rows of a block fill registers");
    // Later rows see as much or more.
    const auto sees = [&](int row) { return state.sees[row + kRows <= count ? row + kRows - 1 : count - 1]; };
    Floats products[kRows];
    const int lines = padded_head(head_dim) / 2, rows = count < kRows ? kRows : count;
    for (int key = 0; key < sees(count - 1); key += 16) {
        const Floats steps = Isa::load(block.key_steps + key);
        const int16_t* tile = block.keys + 32 * lines * (key / 16);
        for (int row = 0; row < count; row += kRows) {
            if (sees(row) <= key) continue;
            const int16_t* at = tile + lines * row / rows * 32;
            const int ahead = (lines * kRows + rows - 1) / rows;
            dot_tile<Isa>(state.queries[row], kMostHeadDim, tile, lines, at + 32 * lines, ahead, products);
            for (int i = 0; i < kRows; ++i) Isa::store(&state.scores[row + i][key], Isa::multiply(products[i], steps));
        }
    }
    const auto width = [&](int row) { return (sees(row / kRows * kRows) + 15) / 16 * 16; };
    for (int row = 0; row < count; ++row) weigh_row<Isa>(state, row, width(row), block);
    for (int column = 0; column < head_dim; column += 16) {
        const Floats steps = Isa::load(block.value_steps + column);
        for (int row = 0; row < count; row += kRows) {
            constexpr int kLines = kKeyBlock / 2;
            const int16_t *tile = block.values + kKeyBlock * column, *at = tile + kLines * row / rows * 32;
            const int ahead = (kLines * kRows + rows - 1) / rows;
            dot_tile<Isa>(state.weights[row], kKeyBlock, tile, width(row) / 2, at + 32 * kLines, ahead, products);
            for (int i = 0; i < kRows; ++i) {
                float* at = &state.sums[row + i][column];
                const Floats kept = Isa::multiply(Isa::load(at), Isa::splat(state.keeps[row + i]));
                const Floats worth = Isa::multiply(steps, Isa::splat(state.adds[row + i]));
                Isa::store(at, Isa::multiply_add(products[i], worth, kept));
            }
        }
    }
}

ERNIE_LOCAL_INLINE void turn_query(const RowBlockTask& task, int token, float* row) {
    const int half = task.head_dim / 2;
    const size_t at = static_cast<size_t>(token) * half;
    const float *cosines = task.cosines + at, *sines = task.sines + at;
    if (task.turn == Turn::kHalves) turn_halves(row, cosines, sines, half);
    if (task.turn == Turn::kPairs) turn_pairs(row, cosines, sines, task.head_dim, 1.0f, row);
}

template <class Isa>
void attend_rows(const RowBlockTask& task) {
    const int head_dim = task.head_dim, width = padded_head(head_dim);
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(head_dim));
    RowBlockState state;
    const auto token_of = [&](int row) { return (task.first_row + row) / task.group; };
    const auto offset_of = [&](int row, size_t stride) {
        return stride * token_of(row) + static_cast<size_t>((task.first_row + row) % task.group) * head_dim;
    };
    for (int row = 0; row < kRowBlock; ++row) {
        state.keeps[row] = state.adds[row] = 0.0f;
        std::memset(state.weights[row], 0, sizeof state.weights[row]);
        float query[kMostHeadDim] = {};
        if (row < task.count) {
            std::memcpy(query, task.queries + offset_of(row, task.token_stride), sizeof(float) * head_dim);
            turn_query(task, token_of(row), query);
        }
        const float step = round_row<Isa>(query, width, state.queries[row]);
        state.query_steps[row] = step == step ? step * scale : 0.0f;
        state.largest[row] = task.is_first || row >= task.count ? -FLT_MAX : task.largest[row];
        state.total[row] = step != step ? step : task.is_first || row >= task.count ? 0.0f : task.total[row];
        for (int i = 0; i < width; ++i) state.sums[row][i] = 0.0f;
        if (!task.is_first && row < task.count)
            std::memcpy(state.sums[row], task.out + offset_of(row, task.out_stride), sizeof(float) * head_dim);
    }
    for (int block = 0; block < task.num_blocks; ++block) {
        const int64_t before = static_cast<int64_t>(block) * kKeyBlock;
        const int64_t held = task.num_keys - before < kKeyBlock ? task.num_keys - before : kKeyBlock;
        for (int row = 0; row < task.count; ++row) {
            const int64_t seen = task.first_sees + token_of(row) - before;
            state.sees[row] = static_cast<int>(seen < 0 ? 0 : seen < held ? seen : held);
        }
        if (state.sees[task.count - 1] == 0) break;
        attend_block<Isa>(state, task.count, head_dim, task.blocks[block]);
    }
    for (int row = 0; row < task.count; ++row) {
        const float divisor = task.is_last ? state.total[row] : 1.0f;
        float* out = task.out + offset_of(row, task.out_stride);
        for (int i = 0; i < head_dim; ++i) out[i] = state.sums[row][i] / divisor;
        task.largest[row] = state.largest[row];
        task.total[row] = state.total[row];
    }
}

}  // namespace ernie_local
