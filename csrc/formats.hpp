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

// The trellis of w2t; ernie_local/packing/formats.py has the same numbers and says what they are.
constexpr int kTrellisDelays[3] = {2, 3, 4};
constexpr uint8_t kTrellisLevels[16] = {0, 6, 10, 14, 4, 8, 12, 18};  // of 8 places; a register of a table has 16
constexpr int kTrellisZero = 9;
constexpr uint8_t kTrellisScales[16] = {16, 17, 19, 21, 23, 25, 27, 29, 32, 35, 38, 41, 45, 49, 54, 59};

constexpr int longest_delay() {
    int longest = 0;
    for (const int delay : kTrellisDelays) longest = delay > longest ? delay : longest;
    return longest;
}
constexpr int kTrellisMemory = longest_delay();

constexpr int highest_level() {
    int highest = 0;
    for (const uint8_t level : kTrellisLevels) highest = level > highest ? level : highest;
    return highest;
}

// What the kernels know of a format at run time. `format_info` of an unknown id is null.
struct FormatInfo {
    int id, bits, group, group_metadata, zero_divisor, scale_bits;
    bool is_trellis;

    // Of each group, and none of rows; the others' whole scales count in row scales.
    ERNIE_LOCAL_INLINE constexpr bool has_fp16_scales() const { return scale_bits == 16; }
    // For these codes, scales and zeros are chosen here.
    ERNIE_LOCAL_INLINE constexpr bool has_zeros() const { return !has_fp16_scales() && !is_trellis; }
    ERNIE_LOCAL_INLINE int num_groups(int columns) const { return (columns + group - 1) / group; }
    ERNIE_LOCAL_INLINE int row_scale_bytes() const { return has_fp16_scales() ? 0 : 2 * kTileRows; }
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
// group's scale and zero. Without bits of a zero it is the middle of the codes, or of a trellis's levels.
template <int kId, int kBits, int kGroup, int kScaleBits, int kZeroBits, bool kIsTrellis = false>
struct FormatRow {
    static constexpr int id = kId, bits = kBits, group = kGroup, scale_bits = kScaleBits;
    static constexpr bool is_trellis = kIsTrellis;
    static constexpr int highest = kIsTrellis ? highest_level() : (1 << kBits) - 1;  // that is multiplied
    static constexpr int group_metadata = kTileRows * (kScaleBits + kZeroBits) / 8;
    static constexpr int zero_divisor = kZeroBits == 0 ? 1 : ((1 << kZeroBits) - 1) / ((1 << kBits) - 1);
};

template <class... Rows>
struct FormatTable {
    static constexpr int size = sizeof...(Rows);
    static constexpr FormatInfo infos[] = {
        {Rows::id, Rows::bits, Rows::group, Rows::group_metadata, Rows::zero_divisor, Rows::scale_bits, Rows::is_trellis}...};
};

// All formats, by their ids. Everything else about formats is derived from these rows.
using Formats = FormatTable<
    FormatRow<1, 4, 64, 8, 8>,     // w4
    FormatRow<2, 3, 64, 6, 6>,     // w3
    FormatRow<3, 2, 16, 4, 4>,     // w2l
    FormatRow<4, 2, 32, 4, 4>,     // w2
    FormatRow<5, 2, 64, 4, 4>,     // w2s
    FormatRow<6, 8, 128, 16, 0>,   // w8
    FormatRow<7, 2, 32, 4, 0, true>>;  // w2t

constexpr int kNumFormats = Formats::size;
static constexpr const FormatInfo (&kFormats)[kNumFormats] = Formats::infos;

constexpr bool ids_are_in_order() {
    for (int i = 0; i < kNumFormats; ++i)
        if (kFormats[i].id != i + 1) return false;
    return true;
}
static_assert(ids_are_in_order(), "rows are found by their ids");

constexpr int largest_whole_group() {
    int largest = 0;
    for (const FormatInfo& format : kFormats)
        if (format.has_zeros() && format.group > largest) largest = format.group;
    return largest;
}
constexpr int kLargestGroup = largest_whole_group();

ERNIE_LOCAL_INLINE const FormatInfo* format_info(int id) {
    return id >= 1 && id <= kNumFormats ? &kFormats[id - 1] : nullptr;
}

}  // namespace ernie_local
