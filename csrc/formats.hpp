// The low-bit formats as the kernels see them: docs/format.md in numbers. Mirrors ernie_local/packing/formats.py.
#pragma once

#include <cstddef>
#include <cstdint>

// Files compiled for different processors include these headers. A function that is not inlined would be kept once
// for all of them, perhaps with instructions that this processor lacks; so nothing here is left to the compiler.
#if defined(_MSC_VER)
#define ERNIE_LOCAL_INLINE __forceinline
#else
#define ERNIE_LOCAL_INLINE __attribute__((always_inline)) inline
#endif

namespace ernie_local {

constexpr int kTileRows = 16;
constexpr int kColumnStep = 16;
constexpr int kAlignment = 64;
constexpr int kW8Zero = 128;

// What the kernels know of a format at run time. `format_info` of an unknown id is null.
struct FormatInfo {
    int id, bits, group, group_metadata, zero_divisor;

    ERNIE_LOCAL_INLINE bool symmetric() const { return bits == 8; }
    ERNIE_LOCAL_INLINE int num_groups(int columns) const { return (columns + group - 1) / group; }
    ERNIE_LOCAL_INLINE int row_scale_bytes() const { return symmetric() ? 0 : 2 * kTileRows; }
    ERNIE_LOCAL_INLINE size_t metadata_bytes(int columns) const {
        const size_t exact = row_scale_bytes() + static_cast<size_t>(num_groups(columns)) * group_metadata;
        return (exact + kAlignment - 1) / kAlignment * kAlignment;
    }
    ERNIE_LOCAL_INLINE size_t tile_bytes(int columns) const {
        const size_t exact = metadata_bytes(columns) + static_cast<size_t>(kTileRows) * columns * bits / 8;
        return (exact + kAlignment - 1) / kAlignment * kAlignment;
    }
    ERNIE_LOCAL_INLINE int num_tiles(int rows) const { return (rows + kTileRows - 1) / kTileRows; }
    ERNIE_LOCAL_INLINE size_t matrix_bytes(int rows, int columns) const { return num_tiles(rows) * tile_bytes(columns); }
};

// A row of ernie_local/packing/formats.py: the id in page headers, bits of a code, columns of a group, and bits of a
// group's scale and zero. Without bits of a zero the scale is fp16 and the zero is the middle code.
template <int kId, int kBits, int kGroup, int kScaleBits, int kZeroBits>
struct FormatRow {
    static constexpr int id = kId, bits = kBits, group = kGroup;
    static constexpr int group_metadata = kTileRows * (kScaleBits + kZeroBits) / 8;
    static constexpr int zero_divisor = kZeroBits == 0 ? 1 : ((1 << kZeroBits) - 1) / ((1 << kBits) - 1);
};

template <class... Rows>
struct FormatTable {
    static constexpr int size = sizeof...(Rows);
    static constexpr FormatInfo infos[] = {
        {Rows::id, Rows::bits, Rows::group, Rows::group_metadata, Rows::zero_divisor}...};
};

// All formats, by their ids. Everything else about formats is derived from these rows.
using Formats = FormatTable<
    FormatRow<1, 4, 64, 8, 8>,     // w4
    FormatRow<2, 3, 64, 6, 6>,     // w3
    FormatRow<3, 2, 16, 4, 4>,     // w2l
    FormatRow<4, 2, 32, 4, 4>,     // w2
    FormatRow<5, 2, 64, 4, 4>,     // w2s
    FormatRow<6, 8, 128, 16, 0>>;  // w8

constexpr int kNumFormats = Formats::size;
static constexpr const FormatInfo (&kFormats)[kNumFormats] = Formats::infos;

constexpr bool ids_are_in_order() {
    for (int i = 0; i < kNumFormats; ++i)
        if (kFormats[i].id != i + 1) return false;
    return true;
}
static_assert(ids_are_in_order(), "rows are found by their ids");

// Of the formats with whole scales and zeros, for which codes are chosen here.
constexpr int largest_whole_group() {
    int largest = 0;
    for (const FormatInfo& format : kFormats)
        if (format.bits != 8 && format.group > largest) largest = format.group;
    return largest;
}
constexpr int kLargestGroup = largest_whole_group();

ERNIE_LOCAL_INLINE const FormatInfo* format_info(int id) {
    return id >= 1 && id <= kNumFormats ? &kFormats[id - 1] : nullptr;
}

}  // namespace ernie_local
