// A packed tile times many tokens: its codes are unpacked once, some columns at a time, and serve all tokens.
//
// `Isa` supplies what tile_kernel.hpp says, and besides: store_codes, keep, and kShortSums, whether it adds products of
// bytes in 16 bits. If so: pairs, add_pairs and widen_pairs; for w8 also magnitudes, sign_places, load_mirrored and
// signed_pairs. With kTokenPairs: dot_eight. Otherwise the dot products of tile_kernel.hpp serve here too. A token's result
// is the same to the bit as the tile kernel's.
#pragma once

#include "tile_kernel.hpp"

namespace ernie_local {

// How a group lies unpacked: its 16 rows' scales, their zeros, and 64 codes for every four columns. Signed codes that are
// added in 16 bits lie in eights of columns: the magnitudes of four and four, then where each finds its column, or the
// negative of it, in the 16 bytes that a token has for the eight (TokenTiles).
template <class Isa, class Format>
struct Unpacked {
    static constexpr bool kSigned = Format::bits == 8 && Isa::kShortSums;
    static constexpr bool kHasZeros = Format::bits != 8 || !Isa::kSignedW8;
    static constexpr int kQuads = Format::group / 4;
    static constexpr int kZerosAt = sizeof(float) * kTileRows;
    static constexpr int kCodesAt = 2 * kZerosAt;
    static constexpr int kQuadBytes = kSigned ? 128 : 64;
    static constexpr size_t kGroupBytes = kCodesAt + static_cast<size_t>(kQuadBytes) * kQuads;
    static_assert(!kSigned || Isa::kSignedW8, "without signs the zeros are needed");
    static_assert(kBlockColumns % Format::group == 0, "blocks end with a group");
    static_assert(kBlockColumns / Format::group * kGroupBytes <= kUnpackedBytes, "a block fits");
};

template <class Isa, class Format>
void unpack_block(const uint8_t* tile, int columns, int start, int count, uint8_t* out) {
    using Layout = Unpacked<Isa, Format>;
    constexpr FormatInfo info = kFormats[Format::id - 1];
    constexpr int kAhead = 4096;  // about the next block
    const uint8_t* metadata = tile + info.row_scale_bytes() + start / Format::group * Format::group_metadata;
    const uint8_t* plane = tile + info.metadata_bytes(columns);
    CodeReader<Format> codes(plane, columns, start);
    const uint8_t* high = plane + 4 * static_cast<size_t>(columns) + 2 * start;  // w3 only
    for (int column = 0; column < count; out += Layout::kGroupBytes, metadata += Format::group_metadata) {
        typename Isa::Floats scales, zeros;
        load_group<Isa, Format>(metadata, scales, zeros);
        Isa::store(reinterpret_cast<float*>(out), scales);
        Isa::store(reinterpret_cast<float*>(out + Layout::kZerosAt), zeros);
        uint8_t* to = out + Layout::kCodesAt;
        const int stop = column + Format::group < count ? column + Format::group : count;
        for (; column < stop; column += kColumnStep, high += 32, to += 4 * Layout::kQuadBytes) {
            for (int line = 0; line < codes.kStepBytes; line += 64) Isa::prefetch_far(codes.stored() + kAhead + line);
            typename Isa::Codes quads[4];
            UnpackFor<Isa, Format>::quads(codes.at(), high, quads);
            codes.advance();
            if constexpr (Isa::kTokenPairs) join_quads<Isa, Format>(quads);
            for (int quad = 0; quad < 4; ++quad) {
                if constexpr (Layout::kSigned) {
                    uint8_t* eight = to + 256 * (quad / 2) + 64 * (quad % 2);
                    Isa::store_codes(eight, Isa::magnitudes(quads[quad]));
                    Isa::store_codes(eight + 128, Isa::sign_places(quads[quad], quad % 2));
                } else {
                    Isa::store_codes(to + 64 * quad, quads[quad]);
                }
            }
        }
        codes.end_group();
    }
}

// So many products of four columns, each two of 127 and the largest code, add up in 16 bits.
template <class Format>
constexpr int short_sum() {
    constexpr int kLargest = 32767 / (2 * 127 * Format::highest);
    int count = Format::group / 4;
    while (count > kLargest) count /= 2;
    return count;
}

// Adds kQuads times four columns to the dots of kWidth tokens, and goes on behind them.
template <class Isa, class Format, int kWidth, int kQuads>
ERNIE_LOCAL_INLINE void add_dots(const uint8_t*& codes, const int8_t*& values, typename Isa::Ints* dots) {
    if constexpr (Isa::kTokenPairs) {
        static_assert(kQuads % 2 == 0, "8 columns are multiplied at once");
        for (int quad = 0; quad < kQuads; quad += 2, codes += 128, values += 8 * kWidth)
            Isa::template dot_eight<kWidth>(codes, values, dots);
    } else if constexpr (!Isa::kShortSums) {
        for (int quad = 0; quad < kQuads; ++quad, codes += 64, values += 4 * kWidth) {
            const auto four = Isa::load_codes(codes);
            for (int token = 0; token < kWidth; ++token) {
                dots[token] = Format::bits == 8 ? Isa::dot_w8(dots[token], four, values + 4 * token)
                                                : Isa::dot(dots[token], four, values + 4 * token);
                Isa::keep(dots[token]);
            }
        }
    } else if constexpr (Format::bits == 8) {
        static_assert(kQuads % 2 == 0, "two and two are added in 16 bits");
        for (int quad = 0; quad < kQuads; quad += 2, codes += 256, values += 16 * kWidth) {
            const auto first = Isa::load_codes(codes), second = Isa::load_codes(codes + 64);
            for (int token = 0; token < kWidth; ++token) {
                const auto eight = Isa::load_mirrored(values + 16 * token);
                const auto sum = Isa::add_pairs(Isa::signed_pairs(first, codes + 128, eight),
                                                Isa::signed_pairs(second, codes + 192, eight));
                dots[token] = Isa::add(dots[token], Isa::widen_pairs(sum));
                Isa::keep(dots[token]);
            }
        }
    } else {
        static_assert(kQuads <= short_sum<Format>(), "a sum fits into 16 bits");
        typename Isa::Ints sums[kWidth];
        for (int quad = 0; quad < kQuads; ++quad, codes += 64, values += 4 * kWidth) {
            const auto four = Isa::load_codes(codes);
            for (int token = 0; token < kWidth; ++token) {
                const auto pairs = Isa::pairs(four, values + 4 * token);
                sums[token] = quad == 0 ? pairs : Isa::add_pairs(sums[token], pairs);
                Isa::keep(sums[token]);
            }
        }
        for (int token = 0; token < kWidth; ++token) dots[token] = Isa::add(dots[token], Isa::widen_pairs(sums[token]));
    }
}

template <class Isa, class Format, int kWidth>
void multiply_block(const uint8_t* unpacked, int count, const uint8_t* row_scales, const TokenTile& tokens, bool is_first,
                    float* sums) {
    using Floats = typename Isa::Floats;
    using Layout = Unpacked<Isa, Format>;
    constexpr int kRun = Format::bits == 8 ? 2 : short_sum<Format>();
    const int8_t* values = tokens.values;
    const float* scales = tokens.scales;
    const float* offsets = tokens.offsets;
    Floats totals[kWidth];
    for (int token = 0; token < kWidth; ++token) totals[token] = is_first ? Isa::splat(0.0f) : Isa::load(sums + 16 * token);
    for (int column = 0; column < count; column += Format::group, unpacked += Layout::kGroupBytes) {
        typename Isa::Ints dots[Isa::kTokenPairs ? (kWidth + 1) / 2 * 2 : kWidth];
        for (auto& dot : dots) dot = Isa::zero_ints();
        const uint8_t* codes = unpacked + Layout::kCodesAt;
        if (count - column >= Format::group) {
            for (int quad = 0; quad < Layout::kQuads; quad += kRun) add_dots<Isa, Format, kWidth, kRun>(codes, values, dots);
        } else {
            for (int rest = column; rest < count; rest += kColumnStep)
                add_dots<Isa, Format, kWidth, kColumnStep / 4>(codes, values, dots);
        }
        if constexpr (Isa::kTokenPairs)
            for (int token = 0; token < kWidth; token += 2) Isa::part_tokens(dots[token], dots[token + 1]);
        const Floats group_scales = Isa::load(reinterpret_cast<const float*>(unpacked));
        const Floats zeros = Isa::load(reinterpret_cast<const float*>(unpacked + Layout::kZerosAt));
        for (int token = 0; token < kWidth; ++token) {
            Floats dot = Isa::multiply(Isa::to_floats(dots[token]), Isa::splat(scales[token]));
            if constexpr (Layout::kHasZeros) dot = Isa::multiply_subtract_from(zeros, Isa::splat(offsets[token]), dot);
            totals[token] = Isa::multiply_add(group_scales, dot, totals[token]);
        }
        scales += kWidth;
        offsets += kWidth;
    }
    for (int token = 0; token < kWidth; ++token) {
        if (Format::bits != 8 && row_scales != nullptr)
            totals[token] = Isa::multiply(totals[token], Isa::load_halves(row_scales));
        Isa::store(sums + 16 * token, totals[token]);
    }
}

template <class Isa, class Format>
void fill_block(KernelTable& table) {
    table.takes_mirrored[Format::id - 1] = Unpacked<Isa, Format>::kSigned;
    table.unpack[Format::id - 1] = &unpack_block<Isa, Format>;
    auto& row = table.block[Format::id - 1];
    row[0] = &multiply_block<Isa, Format, 1>;
    row[1] = &multiply_block<Isa, Format, 2>;
    row[2] = &multiply_block<Isa, Format, 4>;
    if constexpr (Isa::kNumWidths >= 4) row[3] = &multiply_block<Isa, Format, 6>;
}

template <class Isa, class... Rows>
void fill_blocks(KernelTable& table, FormatTable<Rows...>) {
    static_assert(Isa::kNumWidths <= kNumBlockWidths, "block kernels are there for all widths");
    table.has_blocks = true;
    (fill_block<Isa, Rows>(table), ...);
}

}  // namespace ernie_local
