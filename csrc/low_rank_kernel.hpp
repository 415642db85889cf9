// Products with the two thin matrices of an adapter, which are bfloat16. Knows no threads.
#pragma once

#include "row_kernels.hpp"

namespace ernie_local {

constexpr int kFarAhead = 2048;  // bytes of a row that are asked for before they are needed

// out[i] = four[i] . vector, i < 4.
template <class Isa>
ERNIE_LOCAL_INLINE void dot_four_bfloats(const uint8_t* const four[4], int columns, const float* vector, float out[4]) {
    using Floats = typename Isa::Floats;
    using Numbers = Stored<Isa, CacheFormat::kBFloat16>;
    Floats chains[4] = {Isa::splat(0.0f), Isa::splat(0.0f), Isa::splat(0.0f), Isa::splat(0.0f)};
    int column = 0;
    for (; column + 2 * kLanes <= columns; column += 2 * kLanes) {
        const Floats first = Isa::load(vector + column), second = Isa::load(vector + column + kLanes);
        for (int i = 0; i < 4; ++i) {
            const uint8_t* at = four[i] + Numbers::kBytes * column;
            Isa::prefetch_near(at + kFarAhead);
            chains[i] = Isa::multiply_add(Numbers::load(at), first, chains[i]);
            chains[i] = Isa::multiply_add(Numbers::load(at + Numbers::kBytes * kLanes), second, chains[i]);
        }
    }
    for (; column < columns; column += kLanes) {
        const int rest = columns - column < kLanes ? columns - column : kLanes;
        const Floats factors = load_some<Isa>(vector + column, rest);
        for (int i = 0; i < 4; ++i)
            chains[i] = Isa::multiply_add(load_rest<Isa, Numbers>(four[i] + Numbers::kBytes * column, rest), factors, chains[i]);
    }
    Isa::sums(chains, out);
}

// The products of bfloat16 rows, for the kernel table. Rows are few and short: asked for line by line they come faster
// than by `dot_rows`, which asks for whole rows at once.
template <class Isa>
void dot_bfloats(const uint16_t* rows, int count, int columns, const float* vectors, int num_vectors, float* out,
                 size_t out_stride) {
    for (int row = 0; row < count; row += 4) {
        const int num_rows = count - row < 4 ? count - row : 4;
        const uint8_t* four[4];
        for (int i = 0; i < 4; ++i)
            four[i] = reinterpret_cast<const uint8_t*>(rows + static_cast<size_t>(columns) * (row + (i < num_rows ? i : 0)));
        for (int vector = 0; vector < num_vectors; ++vector) {
            float products[4];
            dot_four_bfloats<Isa>(four, columns, vectors + static_cast<size_t>(vector) * columns, products);
            std::memcpy(out + out_stride * vector + row, products, sizeof(float) * num_rows);
        }
    }
}

// out[i] += sum over k of tile[k][i] * factors[k], i < 16, in two chains that do not wait for each other.
template <class Isa>
void add_low_rank_tile(const uint16_t* tile, int rank, const float* factors, float* out) {
    using Floats = typename Isa::Floats;
    const auto* bytes = reinterpret_cast<const uint8_t*>(tile);
    const auto numbers = [&](int k) { return Isa::load_bfloats(bytes + sizeof(uint16_t) * kLanes * k); };
    Floats even = Isa::load(out), odd = Isa::splat(0.0f);
    int k = 0;
    for (; k + 2 <= rank; k += 2) {
        even = Isa::multiply_add(numbers(k), Isa::splat(factors[k]), even);
        odd = Isa::multiply_add(numbers(k + 1), Isa::splat(factors[k + 1]), odd);
    }
    if (k < rank) even = Isa::multiply_add(numbers(k), Isa::splat(factors[k]), even);
    Isa::store(out, Isa::multiply_add(odd, Isa::splat(1.0f), even));
}

}  // namespace ernie_local
