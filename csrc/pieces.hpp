// How a row of tiles is cut into pieces of work for a few threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace ernie_local {

struct Piece {
    int group, first_tile, last_tile;  // tiles of one group; the last one is not in the piece
};

// Long pieces first, since each begins with memory that nobody asked for ahead, and ever shorter ones, so that no thread
// waits long for the last: guided self-scheduling (Polychronopoulos and Kuck, 1987).
class PieceCutter {
public:
    // `total_tiles` tiles of all groups, each of `tile_bytes`, multiplied with `num_token_tiles` tiles of tokens.
    PieceCutter(int total_tiles, size_t tile_bytes, int num_token_tiles, int num_threads)
        : left_(total_tiles), shares_(2 * num_threads) {
        constexpr size_t kShortestBytes = 64 << 10;
        shortest_ = std::max<int>(1, static_cast<int>(kShortestBytes / (tile_bytes * std::max(1, num_token_tiles))));
    }

    void cut(int group, int num_tiles, std::vector<Piece>& out) {
        for (int first = 0; first < num_tiles;) {
            const int size = std::min(num_tiles - first, std::max(shortest_, left_ / shares_));
            out.push_back({group, first, first + size});
            first += size;
            left_ -= size;
        }
    }

private:
    int left_, shares_, shortest_;
};

}  // namespace ernie_local
