#include "packed_linear.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "pieces.hpp"
#include "runtime.hpp"
#include "tile_products.hpp"

namespace ernie_local {
namespace {

struct LinearScratch {
    QuantizedRows quantized;
    TokenTiles tiled;
    std::vector<Piece> pieces;
};

}  // namespace

int packed_linear(const float* input, int num_tokens, int columns, const uint8_t* packed, const FormatInfo& format,
                  int rows, float* out) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const KernelTable& kernels = *state.kernels;
    LinearScratch& scratch = scratch_of<LinearScratch>(state);
    QuantizedRows& quantized = scratch.quantized;
    TokenTiles& tiled = scratch.tiled;
    std::vector<Piece>& pieces = scratch.pieces;

    quantized.resize(num_tokens, columns, format, kernels.takes_mirrored[format.id - 1]);
    tiled.shape(kernels, quantized, num_tokens);
    const int num_tiles = format.num_tiles(rows);
    const size_t tile_bytes = format.tile_bytes(columns);
    pieces.clear();
    PieceCutter(num_tiles, tile_bytes, tiled.num_tiles(), state.pool.num_threads()).cut(0, num_tiles, pieces);
    std::atomic<int> broken{num_tokens};
    state.pool.run(num_tokens, [&](int token) {
        if (quantized.fill(kernels, token, input + static_cast<size_t>(token) * columns)) return;
        int lowest = broken.load();
        while (token < lowest && !broken.compare_exchange_weak(lowest, token)) {
        }
    });
    if (broken.load() < num_tokens) return broken.load();
    state.pool.run(tiled.num_tiles(), [&](int tile) { tiled.fill(tile, format, quantized, nullptr); });

    state.pool.run(static_cast<int>(pieces.size()), [&](int piece) {
        TileProducts products(kernels, format, columns, tiled);
        const int stop = pieces[piece].last_tile;
        for (int range = 0; range < products.num_ranges(); ++range)
            for (int tile = pieces[piece].first_tile; tile < stop; ++tile) {
                const int first_row = tile * kTileRows, num_rows = std::min(kTileRows, rows - first_row);
                const uint8_t* here = packed + tile * tile_bytes;
                const uint8_t* next = tile + 1 < stop ? here + tile_bytes : here;
                products.multiply(here, next, range, [&](const TokenTiles::Tile& part, const float* result) {
                    for (int token = 0; token < part.count; ++token) {
                        const float* from = result + kTileRows * token;
                        float* to = out + static_cast<size_t>(part.first + token) * rows + first_row;
                        if (num_rows == kTileRows)
                            std::memcpy(to, from, sizeof(float) * kTileRows);  // a few moves, where a call takes longer
                        else
                            std::copy_n(from, num_rows, to);
                    }
                });
            }
    });
    return -1;
}

}  // namespace ernie_local
