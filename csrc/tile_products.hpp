// Packed tiles times all tiles of some tokens: by the block kernels where there are enough tokens, else tile by tile.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "tokens.hpp"

namespace ernie_local {

class TileProducts {
public:
    TileProducts(const KernelTable& kernels, const FormatInfo& format, int columns, const TokenTiles& tokens)
        : kernels_(kernels), format_(format), columns_(columns), tokens_(tokens) {
        if (!tokens.are_for_blocks()) return;
        const int fitting = std::clamp(kRangeBytes / columns / kBlockWidth, kShortestRange, kLongestRange);
        num_ranges_ = (tokens.num_tiles() + fitting - 1) / fitting;
    }

    // Token tiles are taken in ranges that stay in the second cache: let each meet many tiles in a row.
    int num_ranges() const { return num_ranges_; }

    // done(part, result) for each token tile of the range; the result is [width][16]. `next` as in TileKernel.
    template <class Done>
    void multiply(const uint8_t* tile, const uint8_t* next, int range, const Done& done) {
        if (tokens_.are_for_blocks()) {
            run_blocks(&tile, 1, range, [&](const TokenTiles::Tile& part, float* const* results) { done(part, results[0]); });
            return;
        }
        for (const auto& part : tokens_.tiles()) {
            run_tile(tile, next, part, sums_[0]);
            done(part, sums_[0]);
        }
    }

    // done(part, gate's result, up's result)
    template <class Done>
    void multiply_both(const uint8_t* gate, const uint8_t* up, const uint8_t* next, int range, const Done& done) {
        if (tokens_.are_for_blocks()) {
            const uint8_t* const tiles[2] = {gate, up};
            run_blocks(tiles, 2, range, [&](const TokenTiles::Tile& part, float* const* results) {
                done(part, results[0], results[1]);
            });
            return;
        }
        for (const auto& part : tokens_.tiles()) {
            run_tile(gate, up, part, sums_[0]);
            run_tile(up, next, part, sums_[1]);
            done(part, sums_[0], sums_[1]);
        }
    }

private:
    static constexpr int kBlockWidth = kWidths[kNumBlockWidths - 1];
    static constexpr int kRangeBytes = 256 << 10;
    static constexpr int kShortestRange = 8, kLongestRange = 32;
    static_assert(kLongestRange * kBlockWidth >= kWidest, "the sums of a single token tile fit as well");

    void run_tile(const uint8_t* tile, const uint8_t* next, const TokenTiles::Tile& part, float* out) const {
        kernels_.tile[format_.id - 1][part.width_index](tile, next, columns_, tokens_.tokens(part), out);
    }

    template <class Done>
    void run_blocks(const uint8_t* const* tiles, int num_tiles, int range, const Done& done) {
        const int num_parts = tokens_.num_tiles();
        const auto bound = [&](int index) { return static_cast<int>(int64_t{num_parts} * index / num_ranges_); };
        const int first = bound(range), last = bound(range + 1);
        for (int start = 0; start < columns_; start += kBlockColumns) {
            const int count = std::min(kBlockColumns, columns_ - start);
            const bool is_last = start + count == columns_;
            for (int i = 0; i < num_tiles; ++i) {
                kernels_.unpack[format_.id - 1](tiles[i], columns_, start, count, unpacked_);
                for (int index = first; index < last; ++index) {
                    const TokenTiles::Tile& part = tokens_.tiles()[index];
                    const TokenTile tokens = tokens_.tokens(part, start, start / format_.group);
                    const size_t at = static_cast<size_t>(index - first) * kBlockWidth * kTileRows;
                    kernels_.block[format_.id - 1][part.width_index](unpacked_, count, is_last ? tiles[i] : nullptr, tokens,
                                                                     start == 0, sums_[i] + at);
                    if (!is_last || i + 1 < num_tiles) continue;
                    float* const results[2] = {sums_[0] + at, sums_[1] + at};
                    done(part, results);
                }
            }
        }
    }

    const KernelTable& kernels_;
    const FormatInfo& format_;
    const int columns_;
    const TokenTiles& tokens_;
    int num_ranges_ = 1;
    alignas(64) float sums_[2][kLongestRange * kBlockWidth * kTileRows];
    alignas(64) uint8_t unpacked_[kUnpackedBytes];
};

}  // namespace ernie_local
