// Rows of numbers: products with a few vectors, sums of rows, RMS norm, softmax. Knows no threads.
#pragma once

#include <cfloat>

#include "cache_storage.hpp"

namespace ernie_local {

// What is left of a row behind its last 16 whole columns, with zeros up to 16.
template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE typename Isa::Floats load_rest(const uint8_t* from, int count) {
    uint8_t padded[Numbers::kBytes * kLanes] = {};
    std::memcpy(padded, from, Numbers::kBytes * count);
    return Numbers::load(padded);
}

// out[vector * out_stride + i], i < 4: products of four rows with kVectors vectors, for which each row is read once.
template <class Isa, class Numbers, int kVectors>
ERNIE_LOCAL_INLINE void dot_four(const uint8_t* const rows[4], int columns, const float* vectors, float out[][4]) {
    using Floats = typename Isa::Floats;
    constexpr int kRows = kVectors == 1 ? 4 : Isa::kDotRows;  // whose sums are in registers at a time
    const int whole = columns / kLanes * kLanes;
    Floats sums[kVectors][4];
    for (int first = 0; first < 4; first += kRows) {
        Floats chains[kVectors][kRows];
        for (int vector = 0; vector < kVectors; ++vector)
            for (int i = 0; i < kRows; ++i) chains[vector][i] = Isa::splat(0.0f);
        for (int column = 0; column < whole; column += kLanes) {
            Floats numbers[kRows];
            for (int i = 0; i < kRows; ++i) numbers[i] = Numbers::load(rows[first + i] + Numbers::kBytes * column);
            for (int vector = 0; vector < kVectors; ++vector) {
                const Floats factors = Isa::load(vectors + static_cast<size_t>(vector) * columns + column);
                for (int i = 0; i < kRows; ++i) chains[vector][i] = Isa::multiply_add(numbers[i], factors, chains[vector][i]);
            }
        }
        for (int vector = 0; vector < kVectors; ++vector)
            for (int i = 0; i < kRows; ++i) sums[vector][first + i] = chains[vector][i];
    }
    for (int vector = 0; vector < kVectors; ++vector) Isa::sums(sums[vector], out[vector]);
    if (whole == columns) return;
    // Into sums of their own: the others stay in registers.
    const int rest = columns - whole;
    for (int vector = 0; vector < kVectors; ++vector) {
        const Floats factors = load_some<Isa>(vectors + static_cast<size_t>(vector) * columns + whole, rest);
        Floats products[4];
        float rests[4];
        for (int i = 0; i < 4; ++i)
            products[i] = Isa::multiply(load_rest<Isa, Numbers>(rows[i] + Numbers::kBytes * whole, rest), factors);
        Isa::sums(products, rests);
        for (int i = 0; i < 4; ++i) out[vector][i] += rests[i];
    }
}

// Asks for `count` bytes of these rows a page ahead, where hardware prefetchers stop, and of the rows that come after.
template <class Isa>
ERNIE_LOCAL_INLINE void ask_for_rows(const uint8_t* rows, const uint8_t* after, size_t count) {
    constexpr size_t kPage = 4096;
    for (size_t line = 0; line < count; line += 64) {
        Isa::prefetch_far(rows + kPage + line);
        Isa::prefetch_far(after + line);
    }
}

// out[vector * out_stride + row] = rows[row] . vectors[vector], with rows [count][columns], vectors [..][columns].
// Meanwhile as many rows from `after` on are brought near.
template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void dot_rows(const uint8_t* rows, int count, int columns, const float* vectors, int num_vectors,
                                 float* out, size_t out_stride, const uint8_t* after) {
    constexpr int kMost = Isa::kDotVectors;
    const size_t row_bytes = Numbers::kBytes * columns;
    for (int row = 0; row < count; row += 4) {
        const int num_rows = count - row < 4 ? count - row : 4;
        ask_for_rows<Isa>(rows + row_bytes * row, after + row_bytes * row, row_bytes * num_rows);
        const uint8_t* four[4];
        for (int i = 0; i < 4; ++i) four[i] = rows + row_bytes * (row + (i < num_rows ? i : 0));
        float products[kMost][4];
        for (int vector = 0; vector < num_vectors;) {
            const float* at = vectors + static_cast<size_t>(vector) * columns;
            int taken = 1;
            if (num_vectors - vector >= kMost) {
                taken = kMost;
                dot_four<Isa, Numbers, kMost>(four, columns, at, products);
            } else {
                dot_four<Isa, Numbers, 1>(four, columns, at, products);
            }
            for (int i = 0; i < taken; ++i)
                std::memcpy(out + out_stride * (vector + i) + row, products[i], sizeof(float) * num_rows);
            vector += taken;
        }
    }
}

// out[vector][column] += sum over rows of factors[vector * factor_stride + row] * rows[row][column]. Columns are
// counted up to the next multiple of 16, for which out has room. Meanwhile as many rows from `after` on are brought near.
template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void add_rows(const uint8_t* rows, int count, int columns, const float* factors, size_t factor_stride,
                                 int num_vectors, float* out, size_t out_stride, const uint8_t* after) {
    using Floats = typename Isa::Floats;
    const size_t row_bytes = Numbers::kBytes * columns;
    const auto add = [&](const Floats numbers[4], const float weights[4], int num_rows, float* at) {
        Floats sum = Isa::load(at);
        for (int i = 0; i < num_rows; ++i) sum = Isa::multiply_add(numbers[i], Isa::splat(weights[i]), sum);
        Isa::store(at, sum);
    };
    int row = 0;
    for (; row + 4 <= count; row += 4) {
        const uint8_t* first = rows + row_bytes * row;
        ask_for_rows<Isa>(first, after + row_bytes * row, 4 * row_bytes);
        for (int column = 0; column < columns; column += kLanes) {
            const int rest = columns - column;
            Floats numbers[4];
            for (int i = 0; i < 4; ++i) {
                const uint8_t* at = first + row_bytes * i + Numbers::kBytes * column;
                numbers[i] = rest >= kLanes ? Numbers::load(at) : load_rest<Isa, Numbers>(at, rest);
            }
            for (int vector = 0; vector < num_vectors; ++vector)
                add(numbers, factors + factor_stride * vector + row, 4, out + out_stride * vector + column);
        }
    }
    for (; row < count; ++row)
        for (int column = 0; column < columns; column += kLanes) {
            const uint8_t* at = rows + row_bytes * row + Numbers::kBytes * column;
            const int rest = columns - column;
            const Floats numbers = rest >= kLanes ? Numbers::load(at) : load_rest<Isa, Numbers>(at, rest);
            for (int vector = 0; vector < num_vectors; ++vector)
                add(&numbers, factors + factor_stride * vector + row, 1, out + out_stride * vector + column);
        }
}

// The products of float32 rows, for the kernel table.
template <class Isa>
void dot_floats(const float* rows, int count, int columns, const float* vectors, int num_vectors, float* out,
                size_t out_stride) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(rows);
    dot_rows<Isa, Stored<Isa, CacheFormat::kFloat32>>(bytes, count, columns, vectors, num_vectors, out, out_stride, bytes);
}

template <class Isa>
void rms_norm_row(const float* row, const float* weight, int size, float eps, float* out) {
    const float mean = sum_of<Isa, true>(row, size) / static_cast<float>(size);
    const float scale = 1.0f / std::sqrt(mean + eps);
    for (int i = 0; i < size; ++i) out[i] = weight[i] * (row[i] * scale);
}

// values[i] = exp(values[i] - greatest); gives back their sum.
template <class Isa>
ERNIE_LOCAL_INLINE float exponentials(float* values, int count, float greatest) {
    for (int i = 0; i < count; ++i) values[i] = exp_bounded(values[i] - greatest);
    return sum_of<Isa, false>(values, count);
}

template <class Isa>
void softmax_row(float* values, int count) {
    const float total = exponentials<Isa>(values, count, greatest_of<Isa>(values, count, -FLT_MAX));
    for (int i = 0; i < count; ++i) values[i] /= total;
}

}  // namespace ernie_local
