#include "tokens.hpp"

#include <algorithm>
#include <cstring>

namespace ernie_local {

void QuantizedRows::resize(int rows, int columns, int group) {
    columns_ = columns;
    group_ = group;
    groups_ = (columns + group - 1) / group;
    values_.resize(static_cast<size_t>(rows) * columns);
    scales_.resize(static_cast<size_t>(rows) * groups_);
    sums_.resize(static_cast<size_t>(rows) * groups_);
}

bool QuantizedRows::fill(const KernelTable& kernels, int index, const float* row) {
    const size_t at = static_cast<size_t>(index) * groups_;
    return kernels.quantize(row, columns_, group_, &values_[static_cast<size_t>(index) * columns_], &scales_[at],
                            &sums_[at]);
}

void TokenTiles::build(const KernelTable& kernels, const FormatInfo& format, const QuantizedRows& rows,
                       const int* indices, int count) {
    tiles_.clear();
    const int columns = rows.columns(), groups = rows.groups();
    size_t width_total = 0;
    const int widest = kWidths[kernels.num_widths - 1];
    for (int first = 0; first < count;) {
        const int left = count - first;
        int width_index = kernels.num_widths - 1;
        if (left < widest)
            width_index = static_cast<int>(std::lower_bound(kWidths, kWidths + kernels.num_widths, left) - kWidths);
        const int taken = std::min(left, kWidths[width_index]);
        tiles_.push_back({first, taken, width_index, width_total * columns, width_total * groups});
        width_total += kWidths[width_index];
        first += taken;
    }
    values_.assign(width_total * columns, 0);
    scales_.assign(width_total * groups, 0.0f);
    offsets_.assign(width_total * groups, 0.0f);
    const float zero_unit = 1.0f / static_cast<float>(format.zero_divisor);
    for (const Tile& tile : tiles_) {
        const int width = kWidths[tile.width_index];
        for (int token = 0; token < tile.count; ++token) {
            const int row = indices[tile.first + token];
            const int8_t* source = rows.values(row);
            int8_t* target = &values_[tile.values_at] + 4 * token;
            for (int quad = 0; quad < columns / 4; ++quad) std::memcpy(target + 4 * width * quad, source + 4 * quad, 4);
            for (int group = 0; group < groups; ++group) {
                const size_t at = tile.groups_at + static_cast<size_t>(group) * width + token;
                scales_[at] = rows.scales(row)[group];
                offsets_[at] = rows.sums(row)[group] * zero_unit;
            }
        }
    }
}

}  // namespace ernie_local
