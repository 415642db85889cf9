#include "packed_rows.hpp"

#include <cstring>

#include "runtime.hpp"

namespace ernie_local {
namespace {

// fp16 without an instruction for it: zeros and subnormals, numbers, infinities and NaN.
float half_to_float(const uint8_t* from) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
    const uint32_t exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
    float value;
    if (exponent == 0) {
        value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -value : value;
    }
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    const uint32_t bits = sign | (wide << 23) | (fraction << 13);
    std::memcpy(&value, &bits, 4);
    return value;
}

struct GroupNumbers {
    float scale, zero;  // of one row; the zero in codes
};

GroupNumbers group_numbers(const FormatInfo& format, const uint8_t* metadata, int row, float row_scale) {
    const float divisor = static_cast<float>(format.zero_divisor);
    if (format.is_trellis) {
        const int scale = kTrellisScales[(metadata[row / 2] >> (4 * (row % 2))) & 15];
        return {row_scale * static_cast<float>(scale), static_cast<float>(kTrellisZero)};
    }
    switch (format.bits) {
        case 8: return {half_to_float(metadata + 2 * row), static_cast<float>(kW8Zero)};
        case 4: return {row_scale * metadata[row], metadata[16 + row] / divisor};
        case 2: return {row_scale * (metadata[row] & 15), (metadata[row] >> 4) / divisor};
        default: {
            const int high = (metadata[16 + row / 2] >> (4 * (row % 2))) & 15;
            return {row_scale * (metadata[row] & 63), ((metadata[row] >> 6) + 4 * high) / divisor};
        }
    }
}

// By the step's own two bits and first bits that the same path stored before.
int level_of(const uint8_t* codes, int columns, int row, int column) {
    const auto bits = [=](int delay) {
        int block = column / kColumnStep - delay;
        while (block < 0) block += columns / kColumnStep;
        return codes[64 * block + 4 * row + column % 4] >> (column / 4 % 4 * 2) & 3;
    };
    const int parity = (bits(kTrellisDelays[1]) ^ bits(kTrellisDelays[2])) & 1;
    return kTrellisLevels[(bits(0) ^ parity) | (bits(kTrellisDelays[0]) & 1) << 2];
}

int code_of(const FormatInfo& format, const uint8_t* codes, int columns, int row, int column) {
    if (format.is_trellis) return level_of(codes, columns, row, column);
    const int lane = 4 * row + column % 4;
    switch (format.bits) {
        case 8: return codes[64 * (column / 4) + lane];
        case 4: return (codes[64 * (column / 8) + lane] >> (column / 4 % 2 * 4)) & 15;
        default: break;
    }
    const int low = (codes[64 * (column / 16) + lane] >> (column / 4 % 4 * 2)) & 3;
    if (format.bits == 2) return low;
    const uint8_t* high = codes + 4 * columns + 8 * (column / 4);
    return low + 4 * ((high[lane / 8] >> (lane % 8)) & 1);
}

}  // namespace

void packed_rows(const uint8_t* packed, const FormatInfo& format, int columns, const int64_t* row_ids, int count,
                 float* out) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.pool.run(count, [&](int index) {
        const int row = static_cast<int>(row_ids[index] % kTileRows);
        const uint8_t* tile = packed + static_cast<size_t>(row_ids[index] / kTileRows) * format.tile_bytes(columns);
        const uint8_t* codes = tile + format.metadata_bytes(columns);
        const float row_scale = format.has_fp16_scales() ? 1.0f : half_to_float(tile + 2 * row);
        float* to = out + static_cast<size_t>(index) * columns;
        for (int start = 0, group = 0; start < columns; start += format.group, ++group) {
            const uint8_t* metadata = tile + format.row_scale_bytes() + static_cast<size_t>(group) * format.group_metadata;
            const GroupNumbers numbers = group_numbers(format, metadata, row, row_scale);
            const int stop = start + format.group < columns ? start + format.group : columns;
            for (int column = start; column < stop; ++column)
                to[column] = (static_cast<float>(code_of(format, codes, columns, row, column)) - numbers.zero) * numbers.scale;
        }
    });
}

}  // namespace ernie_local
