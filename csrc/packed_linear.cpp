#include "packed_linear.hpp"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "runtime.hpp"
#include "tokens.hpp"

namespace ernie_local {

int packed_linear(const float* input, int num_tokens, int columns, const uint8_t* packed, const FormatInfo& format,
                  int rows, float* out) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const KernelTable& kernels = *state.kernels;
    // Kept from call to call, of whoever holds the runtime's mutex.
    static QuantizedRows quantized;
    static TokenTiles tiled;
    static std::vector<int> indices;

    quantized.resize(num_tokens, columns, format.group);
    std::atomic<int> broken{num_tokens};
    state.pool.run(num_tokens, [&](int token) {
        if (quantized.fill(kernels, token, input + static_cast<size_t>(token) * columns)) return;
        int lowest = broken.load();
        while (token < lowest && !broken.compare_exchange_weak(lowest, token)) {
        }
    });
    if (broken.load() < num_tokens) return broken.load();
    indices.resize(num_tokens);
    std::iota(indices.begin(), indices.end(), 0);
    tiled.build(kernels, format, quantized, indices.data(), num_tokens);

    // A few pieces for each thread: even loads, and each piece one stream long enough for the prefetchers.
    const int num_tiles = format.num_tiles(rows);
    const int num_pieces = std::min(num_tiles, 4 * state.pool.num_threads());
    const size_t tile_bytes = format.tile_bytes(columns);
    state.pool.run(num_pieces, [&](int piece) {
        float result[12 * kTileRows];
        const int stop = static_cast<int>(static_cast<int64_t>(num_tiles) * (piece + 1) / num_pieces);
        for (int tile = static_cast<int>(static_cast<int64_t>(num_tiles) * piece / num_pieces); tile < stop; ++tile) {
            const int first_row = tile * kTileRows, num_rows = std::min(kTileRows, rows - first_row);
            for (const auto& part : tiled.tiles()) {
                kernels.tile[format.id - 1][part.width_index](packed + tile * tile_bytes, columns, tiled.tokens(part),
                                                              result);
                for (int token = 0; token < part.count; ++token)
                    std::copy_n(result + kTileRows * token, num_rows,
                                out + static_cast<size_t>(part.first + token) * rows + first_row);
            }
        }
    });
    return -1;
}

}  // namespace ernie_local
