// One packed tile of 16 rows times a few tokens, written once over a small vocabulary of vector operations.
//
// `Isa` supplies: Ints (16 x int32), Floats (16 x float), Codes (64 bytes), and the operations used below. Each
// instruction set's file defines its own, in an unnamed namespace: so every template here exists once for each file
// and never under another's flags. Knows nothing of threads, pages or experts.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "formats.hpp"
#include "kernel_table.hpp"
#include "vector_math.hpp"

namespace ernie_local {

// Splits the codes of 16 columns into four registers of 64 bytes, one for each four columns.
template <class Isa, int kBits>
struct Unpack;

template <class Isa>
struct Unpack<Isa, 8> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t*, typename Isa::Codes out[4]) {
        for (int quad = 0; quad < 4; ++quad) out[quad] = Isa::load_codes(codes + 64 * quad);
    }
};

template <class Isa>
struct Unpack<Isa, 4> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t*, typename Isa::Codes out[4]) {
        for (int block = 0; block < 2; ++block) {
            const auto both = Isa::load_codes(codes + 64 * block);
            out[2 * block] = Isa::template field<0, 15>(both);
            out[2 * block + 1] = Isa::template field<4, 15>(both);
        }
    }
};

template <class Isa>
struct Unpack<Isa, 2> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t*, typename Isa::Codes out[4]) {
        const auto all = Isa::load_codes(codes);
        out[0] = Isa::template field<0, 3>(all);
        out[1] = Isa::template field<2, 3>(all);
        out[2] = Isa::template field<4, 3>(all);
        out[3] = Isa::template field<6, 3>(all);
    }
};

// The same where dot products take all of a byte, 0 to 255: the upper half of a byte stays in its place, so that its
// codes count sixteenfold, and a shift is saved. The first two registers hold codes, the last two sixteen times them.
template <class Isa, int kBits>
struct UnpackInPlace;

template <class Isa>
struct UnpackInPlace<Isa, 4> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, typename Isa::Codes out[4]) {
        for (int block = 0; block < 2; ++block) {
            const auto both = Isa::load_codes(codes + 64 * block);
            out[block] = Isa::template field<0, 0x0f>(both);
            out[2 + block] = Isa::template field<0, 0xf0>(both);
        }
    }
    static constexpr int place[4] = {0, 2, 1, 3};  // which four columns each register holds
};

template <class Isa>
struct UnpackInPlace<Isa, 2> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, typename Isa::Codes out[4]) {
        const auto all = Isa::load_codes(codes);
        const auto shifted = Isa::template field<2, 0xff>(all);
        out[0] = Isa::template field<0, 0x03>(all);
        out[1] = Isa::template field<0, 0x03>(shifted);
        out[2] = Isa::template field<0, 0x30>(all);
        out[3] = Isa::template field<0, 0x30>(shifted);
    }
    static constexpr int place[4] = {0, 1, 2, 3};
};

template <class Isa>
struct Unpack<Isa, 3> {
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t* high, typename Isa::Codes out[4]) {
        Unpack<Isa, 2>::quads(codes, nullptr, out);
        for (int quad = 0; quad < 4; ++quad) out[quad] = Isa::add_four_where(out[quad], high + 8 * quad);
    }
};

// The same where a group's products with a token add up in 16 bits, two columns at a time, in two sums: of the first and
// third register, and of the others. Two-bit codes in the latter stay in their places and count fourfold.
template <class Isa, int kBits>
struct UnpackShort : Unpack<Isa, kBits> {
    static constexpr int kLargest = kBits == 4 ? 15 : 14;  // of a code, or of one from each sum where these are added
    // Both sums in 32 bits.
    static ERNIE_LOCAL_INLINE typename Isa::Ints total(const typename Isa::Ints sums[2]) {
        if constexpr (kBits == 4)
            return Isa::add(Isa::widen_shorts(sums[0]), Isa::widen_shorts(sums[1]));
        else
            return Isa::widen_shorts(Isa::add_shorts(sums[0], sums[1]));
    }
};

template <class Isa>
struct UnpackShort<Isa, 2> {
    static constexpr int kLargest = 12;  // of a code that counts fourfold
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t*, typename Isa::Codes out[4]) {
        const auto all = Isa::load_codes(codes);
        const auto upper = Isa::template field<4, 0xff>(all);
        out[0] = Isa::template field<0, 0x03>(all);
        out[1] = Isa::template field<0, 0x0c>(all);
        out[2] = Isa::template field<0, 0x03>(upper);
        out[3] = Isa::template field<0, 0x0c>(upper);
    }
    static ERNIE_LOCAL_INLINE typename Isa::Ints total(const typename Isa::Ints sums[2]) {
        return Isa::widen_shorts(Isa::add_shorts(sums[0], Isa::quarter_shorts(sums[1])));
    }
};

// The levels of a trellis: of four steps in a byte each finds its own by three bits, two of which are parities with the
// same bits of earlier blocks. So `codes` have as many blocks of history before them.
template <class Isa>
struct UnpackTrellis {
    static constexpr int kLargest = 31;
    static_assert(highest_level() <= kLargest, "sums of so many fit into 16 bits");
    static ERNIE_LOCAL_INLINE void quads(const uint8_t* codes, const uint8_t*, typename Isa::Codes out[4]) {
        const auto earlier = [=](int i) { return Isa::load_codes(codes - 64 * kTrellisDelays[i]); };
        const auto first = earlier(0);
        const auto both = Isa::exclusive_or(earlier(1), earlier(2));
        const auto own = Isa::exclusive_or(Isa::load_codes(codes), Isa::template field<0, 0x55>(both));
        const auto even = Isa::either(Isa::template field<0, 0x33>(own), Isa::template raised<2, 0x44>(first));
        const auto odd = Isa::either(Isa::template field<2, 0x33>(own), Isa::template field<0, 0x44>(first));
        Isa::look_up_nibbles(even, kTrellisLevels, out[0], out[2]);
        Isa::look_up_nibbles(odd, kTrellisLevels, out[1], out[3]);
    }
    static ERNIE_LOCAL_INLINE typename Isa::Ints total(const typename Isa::Ints sums[2]) {
        return Isa::add(Isa::widen_shorts(sums[0]), Isa::widen_shorts(sums[1]));
    }
};

template <class Isa, class Format>
using UnpackFor = std::conditional_t<Format::is_trellis, UnpackTrellis<Isa>, Unpack<Isa, Format::bits>>;
template <class Isa, class Format>
using UnpackShortFor = std::conditional_t<Format::is_trellis, UnpackTrellis<Isa>, UnpackShort<Isa, Format::bits>>;

// Goes through the codes of a tile from a column on. A trellis reads its first groups from a copy, before which lies the
// history that a ring has there: its last blocks.
template <class Format, bool = Format::is_trellis>
class CodeReader {
public:
    ERNIE_LOCAL_INLINE CodeReader(const uint8_t* codes, int, int start) : at_(codes + kStepBytes * (start / kColumnStep)) {}
    ERNIE_LOCAL_INLINE const uint8_t* at() const { return at_; }
    ERNIE_LOCAL_INLINE const uint8_t* stored() const { return at_; }  // the same place in the tile
    ERNIE_LOCAL_INLINE void advance() { at_ += kStepBytes; }
    ERNIE_LOCAL_INLINE void end_group() {}
    template <class Isa>
    static ERNIE_LOCAL_INLINE void ask_for_history(const uint8_t*, int) {}
    // Of 16 columns; of w3 without the highest bits.
    static constexpr int kStepBytes = kTileRows * kColumnStep * (Format::bits == 3 ? 2 : Format::bits) / 8;

private:
    const uint8_t* at_;
};

template <class Format>
class CodeReader<Format, true> {
public:
    ERNIE_LOCAL_INLINE CodeReader(const uint8_t* codes, int columns, int start) : codes_(codes), read_(codes), at_(4 * start) {
        if (start > 0) return;
        const int num_blocks = columns / kColumnStep;
        for (int block = -kTrellisMemory; block < kCopied && block < num_blocks; ++block) {
            int from = block;
            while (from < 0) from += num_blocks;
            std::memcpy(lead_ + 64 * (kTrellisMemory + block), codes + 64 * from, 64);
        }
        read_ = lead_ + 64 * kTrellisMemory;
        groups_left_ = kGroups;
    }
    ERNIE_LOCAL_INLINE const uint8_t* at() const { return read_ + at_; }
    ERNIE_LOCAL_INLINE const uint8_t* stored() const { return codes_ + at_; }
    ERNIE_LOCAL_INLINE void advance() { at_ += kStepBytes; }
    ERNIE_LOCAL_INLINE void end_group() {
        if (--groups_left_ == 0) read_ = codes_;
    }
    // The history of a tile that comes next is out of the order in which memory is read.
    template <class Isa>
    static ERNIE_LOCAL_INLINE void ask_for_history(const uint8_t* codes, int columns) {
        for (int block = 1; block <= kTrellisMemory; ++block) Isa::prefetch_near(codes + 4 * columns - 64 * block);
    }
    static constexpr int kStepBytes = 64;

private:
    static constexpr int kGroupBlocks = Format::group / kColumnStep;
    static constexpr int kGroups = (kTrellisMemory + kGroupBlocks - 1) / kGroupBlocks;
    static constexpr int kCopied = kGroups * kGroupBlocks;

    const uint8_t *codes_, *read_;
    ptrdiff_t at_;
    int groups_left_ = 0;
    alignas(64) uint8_t lead_[64 * (kTrellisMemory + kCopied)];
};

// Scales of one group's 16 rows, and their zeros in units of 1 / zero_divisor.
template <class Isa, class Format>
ERNIE_LOCAL_INLINE void load_group(const uint8_t* metadata, typename Isa::Floats& scales, typename Isa::Floats& zeros) {
    if constexpr (Format::is_trellis) {
        scales = Isa::to_floats(Isa::load_from_table(metadata, kTrellisScales));
        zeros = Isa::splat(static_cast<float>(kTrellisZero));
    } else if constexpr (Format::bits == 8) {
        scales = Isa::load_halves(metadata);
        zeros = Isa::splat(Isa::kSignedW8 ? 0.0f : static_cast<float>(kW8Zero));
    } else if constexpr (Format::bits == 4) {
        scales = Isa::to_floats(Isa::load_bytes(metadata));
        zeros = Isa::to_floats(Isa::load_bytes(metadata + 16));
    } else if constexpr (Format::bits == 2) {
        const auto bytes = Isa::load_bytes(metadata);
        scales = Isa::template nibble_to_float<0>(bytes);
        zeros = Isa::template nibble_to_float<4>(bytes);
    } else {
        const auto bytes = Isa::load_bytes(metadata);
        scales = Isa::to_floats(Isa::template int_field<0, 63>(bytes));
        const auto high = Isa::to_floats(Isa::load_nibbles(metadata + 16));
        zeros = Isa::multiply_add(high, Isa::splat(4.0f), Isa::to_floats(Isa::template int_field<6, 3>(bytes)));
    }
}

// What follows soon is asked for into the first cache; before that, the same place of the next tile into the second, where
// the hardware's own prefetchers stop at the end of a page. Measured in docs/decisions.md.
template <class Isa>
ERNIE_LOCAL_INLINE void ask_ahead(const uint8_t* from, ptrdiff_t to_next) {
    if constexpr (Isa::kAsksFar) Isa::prefetch_far(from + to_next);
    Isa::prefetch_near(from + Isa::kNearBytes);
}

// 16 columns as tokens that are multiplied two at a time take them.
template <class Isa, class Format>
ERNIE_LOCAL_INLINE void join_quads(typename Isa::Codes quads[4]) {
    for (int quad = 0; quad < 4 && Format::bits == 8; ++quad) quads[quad] = Isa::signed_codes(quads[quad]);
    for (int quad = 0; quad < 4; quad += 2) Isa::join_columns(quads[quad], quads[quad + 1]);
}

// Adds 16 columns to the dots of two tokens at a time, which are parted at the end of their group (part_tokens).
template <class Isa, class Format, int kWidth>
ERNIE_LOCAL_INLINE void add_token_pairs(typename Isa::Codes quads[4], const int8_t* values, typename Isa::Ints* dots) {
    join_quads<Isa, Format>(quads);
    for (int quad = 0; quad < 4; quad += 2) {
        for (int token = 0; token < kWidth; token += 2) {
            const auto columns = Isa::two_tokens(values + (quad * kWidth + token) * 4, 4 * kWidth);
            for (int i = 0; i < 2; ++i) dots[token + i] = Isa::dot_pairs(dots[token + i], quads[quad + i], columns);
        }
    }
}

template <class Isa, class Format, int kWidth>
void tile_kernel(const uint8_t* tile, const uint8_t* next, int columns, const TokenTile& tokens, float* out) {
    using Floats = typename Isa::Floats;
    constexpr FormatInfo info = kFormats[Format::id - 1];
    // With few tokens unpacking is most of the work.
    constexpr bool kInPlace = Isa::kWholeByteDots && kWidth <= 2 && !Format::is_trellis &&
                              (Format::bits == 2 || Format::bits == 4);
    constexpr bool kPairs = Isa::kTokenPairs && kWidth % 2 == 0;
    constexpr bool kShort = Isa::kShortSums && kWidth <= 4 && Format::bits != 8;
    // With one token a single chain of dot products would wait for itself.
    constexpr int kChains = kInPlace || kShort ? 2 : kPairs ? 1 : kWidth == 1 ? 4 : kWidth == 2 ? 2 : 1;

    const ptrdiff_t to_next = next - tile;
    const uint8_t* metadata = tile + info.row_scale_bytes();
    const uint8_t* plane = tile + info.metadata_bytes(columns);
    CodeReader<Format> codes(plane, columns, 0);
    codes.template ask_for_history<Isa>(plane + to_next, columns);
    const uint8_t* high = plane + 4 * columns;  // w3 only
    const int8_t* values = tokens.values;
    const float* scales = tokens.scales;
    const float* offsets = tokens.offsets;

    Floats sums[kWidth];
    for (int token = 0; token < kWidth; ++token) sums[token] = Isa::splat(0.0f);
    typename Isa::Ints totals[kWidth];
    const auto add_group = [&] {  // whose products are in totals
        Floats row_scales, zeros;
        ask_ahead<Isa>(metadata, to_next);
        load_group<Isa, Format>(metadata, row_scales, zeros);
        for (int token = 0; token < kWidth; ++token) {
            const Floats dot = Isa::multiply(Isa::to_floats(totals[token]), Isa::splat(scales[token]));
            const Floats shifted = Isa::multiply_subtract_from(zeros, Isa::splat(offsets[token]), dot);
            sums[token] = Isa::multiply_add(row_scales, shifted, sums[token]);
        }
        metadata += Format::group_metadata;
        scales += kWidth;
        offsets += kWidth;
    };
    for (int start = 0; start < columns; start += Format::group) {
        typename Isa::Ints dots[kWidth][kChains];
        for (int token = 0; token < kWidth; ++token)
            for (int chain = 0; chain < kChains; ++chain) dots[token][chain] = Isa::zero_ints();
        const auto step = [&] {
            typename Isa::Codes quads[4];
            for (int line = 0; line < codes.kStepBytes; line += 64) ask_ahead<Isa>(codes.stored() + line, to_next);
            if constexpr (kInPlace)
                UnpackInPlace<Isa, Format::bits>::quads(codes.at(), quads);
            else if constexpr (kShort)
                UnpackShortFor<Isa, Format>::quads(codes.at(), high, quads);
            else
                UnpackFor<Isa, Format>::quads(codes.at(), high, quads);
            if constexpr (kPairs) add_token_pairs<Isa, Format, kWidth>(quads, values, &dots[0][0]);
            for (int quad = 0; quad < 4 && !kPairs; ++quad)
                for (int token = 0; token < kWidth; ++token) {
                    if constexpr (kInPlace) {
                        auto& dot = dots[token][quad / 2];
                        const int place = UnpackInPlace<Isa, Format::bits>::place[quad];
                        dot = Isa::dot(dot, quads[quad], values + (place * kWidth + token) * 4);
                    } else {
                        auto& dot = dots[token][quad % kChains];
                        const int8_t* four = values + (quad * kWidth + token) * 4;
                        if constexpr (kShort)
                            dot = Isa::dot_short(dot, quads[quad], four);
                        else if constexpr (Format::bits == 8)
                            dot = Isa::dot_w8(dot, quads[quad], four);
                        else
                            dot = Isa::dot(dot, quads[quad], four);
                    }
                }
            codes.advance();
            high += 32;
            values += 16 * kWidth;
        };
        if (columns - start >= Format::group) {
            for (int column = 0; column < Format::group; column += kColumnStep) step();
        } else {
            for (int column = start; column < columns; column += kColumnStep) step();
        }
        codes.end_group();
        if constexpr (kPairs)
            for (int token = 0; token < kWidth; token += 2) Isa::part_tokens(dots[token][0], dots[token + 1][0]);
        // The group before: its totals are there, and nothing waits.
        if constexpr (kShort) {
            static_assert(Format::group / 8 * 2 * 127 * UnpackShortFor<Isa, Format>::kLargest <= 32767);
            if (start > 0) add_group();
        }
        for (int token = 0; token < kWidth; ++token) {
            totals[token] = dots[token][0];
            if constexpr (kInPlace)
                totals[token] = Isa::add(totals[token], Isa::sixteenth(dots[token][1]));
            else if constexpr (kShort)
                totals[token] = UnpackShortFor<Isa, Format>::total(dots[token]);
            else
                for (int chain = 1; chain < kChains; ++chain) totals[token] = Isa::add(totals[token], dots[token][chain]);
        }
        if constexpr (!kShort) add_group();
    }
    if constexpr (kShort)
        if (columns > 0) add_group();
    for (int token = 0; token < kWidth; ++token) {
        Floats result = sums[token];
        if constexpr (Format::bits != 8) result = Isa::multiply(result, Isa::load_halves(tile));
        Isa::store(out + 16 * token, result);
    }
}

// Symmetric int8, a scale for each group. Written for the compiler to vectorize. kBoundFours: the absolute values of the
// four columns whose products with w8 are added in 16 bits (block_kernel.hpp) are 255 together at most, so that 128 times
// them fit. 252 are allowed before rounding, which adds a half to each at most.
template <class Isa, bool kBoundFours>
bool quantize_row(const float* row, int columns, int group, int8_t* values, float* scales, float* sums) {
    constexpr uint32_t kInfinity = 0x7f800000u;
    for (int start = 0, index = 0; start < columns; start += group, ++index) {
        const int count = columns - start < group ? columns - start : group;
        const float* x = row + start;
        uint32_t largest_bits = 0;  // of the absolute values: integers compare like them, and see NaN
        for (int i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, x + i, 4);
            bits &= 0x7fffffffu;
            largest_bits = bits > largest_bits ? bits : largest_bits;
        }
        if (largest_bits >= kInfinity) return false;
        float largest;
        std::memcpy(&largest, &largest_bits, 4);
        // Below this the reciprocal would overflow; such a group is zero in any sum that matters.
        const bool empty = largest < 1e-30f;
        float limit = 127.0f;
        if constexpr (kBoundFours) {
            constexpr float kLimit = 252.0f / 4;
            const float four = Isa::largest_four(x, count);
            if (four * 127.0f > largest * kLimit) largest = four, limit = kLimit;
        }
        const float inverse = empty ? 0.0f : limit / largest;
        const float scale = empty ? 0.0f : largest / limit;
        int32_t total = 0;
        int8_t* v = values + start;
        for (int i = 0; i < count; ++i) {
            const int32_t rounded = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
            v[i] = static_cast<int8_t>(rounded);
            total += rounded;
        }
        scales[index] = scale;
        sums[index] = scale * static_cast<float>(total);
    }
    return true;
}

template <class Isa>
void swiglu(const float* gate, const float* up, int count, float* out) {
    for (int i = 0; i < count; ++i) out[i] = gate[i] / (1.0f + exp_bounded(-gate[i])) * up[i];
}

template <class Isa, class Format>
void fill_format(KernelTable& table) {
    auto& row = table.tile[Format::id - 1];
    row[0] = &tile_kernel<Isa, Format, 1>;
    row[1] = &tile_kernel<Isa, Format, 2>;
    row[2] = &tile_kernel<Isa, Format, 4>;
    if constexpr (Isa::kNumWidths >= 4) row[3] = &tile_kernel<Isa, Format, 6>;
    if constexpr (Isa::kNumWidths >= 5) row[4] = &tile_kernel<Isa, Format, 8>;
    if constexpr (Isa::kNumWidths >= 6) row[5] = &tile_kernel<Isa, Format, 12>;
}

template <class Isa, class... Rows>
void fill_formats(KernelTable& table, FormatTable<Rows...>) {
    (fill_format<Isa, Rows>(table), ...);
}

}  // namespace ernie_local
