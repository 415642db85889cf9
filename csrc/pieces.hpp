// How a row of tiles is cut into pieces of work.
#pragma once

#include <algorithm>
#include <cstddef>

namespace ernie_local {

// At least four pieces a thread, so that a thread that was held up leaves its share to the others; where there is more
// work, pieces of about half a megabyte, so that the last one to end is not waited for.
inline int num_pieces(int num_tiles, size_t tile_bytes, int num_threads) {
    constexpr size_t kPieceBytes = 512 << 10;
    const auto by_size = static_cast<int>(num_tiles * tile_bytes / kPieceBytes);
    return std::min(num_tiles, std::max(4 * num_threads, by_size));
}

// First tile of piece `index` of `count`.
inline int piece_start(int num_tiles, int index, int count) {
    return static_cast<int>(static_cast<long long>(num_tiles) * index / count);
}

}  // namespace ernie_local
