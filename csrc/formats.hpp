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

struct W4 {
    static constexpr int id = 1, bits = 4, group = 64, group_metadata = 32, zero_divisor = 17;
};
struct W3 {
    static constexpr int id = 2, bits = 3, group = 64, group_metadata = 24, zero_divisor = 9;
};
struct W2L {
    static constexpr int id = 3, bits = 2, group = 16, group_metadata = 16, zero_divisor = 5;
};
struct W2 {
    static constexpr int id = 4, bits = 2, group = 32, group_metadata = 16, zero_divisor = 5;
};
struct W2S {
    static constexpr int id = 5, bits = 2, group = 64, group_metadata = 16, zero_divisor = 5;
};
struct W8 {
    static constexpr int id = 6, bits = 8, group = 128, group_metadata = 32, zero_divisor = 1;
};
constexpr int kNumFormats = 6;

// The same at run time. `format_info` of an unknown id is null.
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

template <class Format>
constexpr FormatInfo make_info() {
    return {Format::id, Format::bits, Format::group, Format::group_metadata, Format::zero_divisor};
}

constexpr FormatInfo kFormats[kNumFormats] = {make_info<W4>(), make_info<W3>(),  make_info<W2L>(),
                                              make_info<W2>(), make_info<W2S>(), make_info<W8>()};

ERNIE_LOCAL_INLINE const FormatInfo* format_info(int id) {
    return id >= 1 && id <= kNumFormats ? &kFormats[id - 1] : nullptr;
}

}  // namespace ernie_local
