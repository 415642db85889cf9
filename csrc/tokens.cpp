#include "tokens.hpp"

#include <algorithm>
#include <cstring>

namespace ernie_local {
namespace {

// So few tokens gain nothing from codes that are unpacked for all of them.
constexpr int kFewestForBlocks = 5;

}  // namespace

void QuantizedRows::resize(int rows, int columns, const FormatInfo& format, bool are_bounded) {
    columns_ = columns;
    format_ = &format;
    are_bounded_ = are_bounded;
    groups_ = format.num_groups(columns);
    values_.resize(static_cast<size_t>(rows) * columns);
    scales_.resize(static_cast<size_t>(rows) * groups_);
    sums_.resize(static_cast<size_t>(rows) * groups_);
}

bool QuantizedRows::fill(const KernelTable& kernels, int index, const float* row) {
    const size_t at = static_cast<size_t>(index) * groups_;
    const QuantizeKernel quantize = are_bounded_ ? kernels.quantize_bounded : kernels.quantize;
    return quantize(row, columns_, format_->group, &values_[static_cast<size_t>(index) * columns_], &scales_[at], &sums_[at]);
}

bool QuantizedRows::fill_twice(const KernelTable& kernels, int index, float* row) {
    if (!fill(kernels, index, row)) return false;
    const int8_t* whole = values(index);
    for (int start = 0, group = 0; start < columns_; start += format_->group, ++group) {
        const float scale = scales(index)[group];
        const int stop = std::min(columns_, start + format_->group);
        for (int column = start; column < stop; ++column) row[column] -= scale * static_cast<float>(whole[column]);
    }
    return fill(kernels, index + 1, row);
}

void TokenTiles::shape(const KernelTable& kernels, const QuantizedRows& rows, int count) {
    tiles_.clear();
    const int columns = rows.columns(), groups = rows.groups();
    const bool takes_mirrored = kernels.takes_mirrored[rows.format().id - 1];
    are_for_blocks_ = kernels.has_blocks && count >= kFewestForBlocks && (rows.are_bounded() || !takes_mirrored);
    are_mirrored_ = are_for_blocks_ && takes_mirrored;
    size_t width_total = 0;
    const int widest = kWidths[kernels.num_widths - 1];
    for (int first = 0; first < count;) {
        const int left = count - first;
        int width_index = kernels.num_widths - 1;
        if (left < widest)
            width_index = static_cast<int>(std::lower_bound(kWidths, kWidths + kernels.num_widths, left) - kWidths);
        const int taken = std::min(left, kWidths[width_index]);
        tiles_.push_back({first, taken, width_index, width_total * columns * value_bytes(), width_total * groups});
        width_total += kWidths[width_index];
        first += taken;
    }
    values_.resize(width_total * columns * value_bytes());
    scales_.resize(width_total * groups);
    offsets_.resize(width_total * groups);
}

void TokenTiles::fill(int index, const FormatInfo& format, const QuantizedRows& rows, const int* indices) {
    const Tile& tile = tiles_[index];
    const int width = kWidths[tile.width_index], columns = rows.columns(), groups = rows.groups();
    const float zero_unit = 1.0f / static_cast<float>(format.zero_divisor);
    int8_t* values = &values_[tile.values_at];
    float* scales = &scales_[tile.groups_at];
    float* offsets = &offsets_[tile.groups_at];
    if (tile.count < width) {
        std::memset(values, 0, static_cast<size_t>(width) * columns * value_bytes());
        std::fill_n(scales, static_cast<size_t>(width) * groups, 0.0f);
        std::fill_n(offsets, static_cast<size_t>(width) * groups, 0.0f);
    }
    for (int token = 0; token < tile.count; ++token) {
        const int row = indices == nullptr ? tile.first + token : indices[tile.first + token];
        const int8_t* source = rows.values(row);
        if (are_mirrored_)
            for (int eight = 0; eight < columns / 8; ++eight) {
                int8_t* to = values + 16 * (width * eight + token);
                for (int i = 0; i < 4; ++i) {
                    to[i] = source[8 * eight + i];
                    to[4 + i] = static_cast<int8_t>(-source[8 * eight + i]);
                    to[8 + i] = source[8 * eight + 4 + i];
                    to[12 + i] = static_cast<int8_t>(-source[8 * eight + 4 + i]);
                }
            }
        else if (width == 1)
            std::memcpy(values, source, columns);
        else
            for (int quad = 0; quad < columns / 4; ++quad)
                std::memcpy(values + 4 * (width * quad + token), source + 4 * quad, 4);
        for (int group = 0; group < groups; ++group) {
            scales[group * width + token] = rows.scales(row)[group];
            offsets[group * width + token] = rows.sums(row)[group] * zero_unit;
        }
    }
}

}  // namespace ernie_local
