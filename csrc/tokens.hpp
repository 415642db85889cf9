// Tokens as the tile kernels take them: int8 by group, interleaved in widths that there are kernels for.
//
// Memory is taken by `resize` and `shape`, on the thread that calls; `fill` takes none, and so may run in the pool.
#pragma once

#include <cstdint>
#include <vector>

#include "formats.hpp"
#include "kernel_table.hpp"

namespace ernie_local {

// Rows made int8, one after the other.
class QuantizedRows {
public:
    // Bounded rows lose a little more (a tenth of 0.6 % with normal numbers) and may be mirrored.
    void resize(int rows, int columns, const FormatInfo& format, bool are_bounded);
    // Fills row `index`; false if it holds a NaN or an infinity. Rows may be filled from different threads.
    bool fill(const KernelTable& kernels, int index, const float* row);
    // Fills row `index`, and the row after it with what rounding left over; `row` is lost.
    bool fill_twice(const KernelTable& kernels, int index, float* row);

    int columns() const { return columns_; }
    int groups() const { return groups_; }
    const FormatInfo& format() const { return *format_; }
    bool are_bounded() const { return are_bounded_; }
    const int8_t* values(int row) const { return &values_[static_cast<size_t>(row) * columns_]; }
    const float* scales(int row) const { return &scales_[static_cast<size_t>(row) * groups_]; }
    const float* sums(int row) const { return &sums_[static_cast<size_t>(row) * groups_]; }

private:
    int columns_ = 0, groups_ = 0;
    const FormatInfo* format_ = nullptr;
    bool are_bounded_ = false;
    std::vector<int8_t> values_;
    std::vector<float> scales_, sums_;
};

// Some rows of QuantizedRows, cut into tiles: as many of the largest width as fit, then one that holds the rest with
// rows of zeros behind it. Enough of them are made for the block kernels; mirrored, each four columns are followed by
// their negatives: [columns / 8][width][16].
class TokenTiles {
public:
    struct Tile {
        int first, count, width_index;
        size_t values_at, groups_at;
    };

    void shape(const KernelTable& kernels, const QuantizedRows& rows, int count);
    // Fills tile `index` with the rows `indices[tile.first]` and on; null for the rows tile.first and on.
    void fill(int index, const FormatInfo& format, const QuantizedRows& rows, const int* indices);

    const std::vector<Tile>& tiles() const { return tiles_; }
    int num_tiles() const { return static_cast<int>(tiles_.size()); }
    bool are_for_blocks() const { return are_for_blocks_; }
    // From the first column of a group on.
    TokenTile tokens(const Tile& tile, int column = 0, int group = 0) const {
        const int width = kWidths[tile.width_index];
        return {&values_[tile.values_at + static_cast<size_t>(column) * width * value_bytes()],
                &scales_[tile.groups_at + static_cast<size_t>(group) * width],
                &offsets_[tile.groups_at + static_cast<size_t>(group) * width]};
    }

private:
    int value_bytes() const { return are_mirrored_ ? 2 : 1; }  // of a column

    bool are_for_blocks_ = false;
    bool are_mirrored_ = false;
    std::vector<Tile> tiles_;
    std::vector<int8_t> values_;
    std::vector<float> scales_, offsets_;
};

}  // namespace ernie_local
