#include "block_attention.hpp"

#include <algorithm>
#include <vector>

#include "runtime.hpp"

namespace ernie_local {
namespace {

// Blocks of keys that are held rounded at a time, 65 KiB each: some 8 MiB, which stay in the caches.
constexpr int kBlocksHeld = 128;

struct BlockScratch {
    std::vector<KeyBlock> blocks;
    std::vector<float> largest, total;
};

struct Attention {
    const float* queries;
    size_t query_stride, query_head_stride;  // in floats; of a key-value head
    const uint8_t *keys, *values;
    size_t token_bytes, head_bytes;
    const float *key_scales, *value_scales;
    size_t scale_stride;  // from head to head
    const float *query_cosines, *query_sines, *key_cosines, *key_sines;
    Turn turn;
    CacheFormat format;
    int kv_heads, group, head_dim;
    int64_t num_tokens, num_keys, first_sees;
    float* out;
};

int blocks_at_once(int kv_heads, int64_t num_keys) {
    const int64_t all = (num_keys + kKeyBlock - 1) / kKeyBlock;
    return static_cast<int>(std::min<int64_t>(all, std::max(1, kBlocksHeld / kv_heads)));
}

void prepare(BlockScratch& scratch, int kv_heads, int group, int64_t num_tokens, int64_t num_keys) {
    scratch.blocks.resize(static_cast<size_t>(kv_heads) * blocks_at_once(kv_heads, num_keys));
    scratch.largest.resize(static_cast<size_t>(kv_heads) * group * num_tokens);
    scratch.total.resize(scratch.largest.size());
}

// Rounds some blocks of every head, lets all rows attend to them, and goes on to the next ones.
void attend(Runtime& state, BlockScratch& scratch, const Attention& call) {
    const KernelTable& kernels = *state.kernels;
    const auto round_keys = kernels.round_keys[static_cast<int>(call.format)];
    const int held = blocks_at_once(call.kv_heads, call.num_keys);
    const int64_t rows = call.num_tokens * call.group;
    const int row_blocks = static_cast<int>((rows + kRowBlock - 1) / kRowBlock);
    const int half = call.head_dim / 2;
    for (int64_t start = 0; start < call.num_keys; start += static_cast<int64_t>(held) * kKeyBlock) {
        const int64_t stop = std::min(call.num_keys, start + static_cast<int64_t>(held) * kKeyBlock);
        const int num_blocks = static_cast<int>((stop - start + kKeyBlock - 1) / kKeyBlock);
        state.pool.run(call.kv_heads * num_blocks, [&](int index) {
            const int head = index / num_blocks;
            const int64_t first = start + static_cast<int64_t>(index % num_blocks) * kKeyBlock;
            const size_t at = call.head_bytes * head + call.token_bytes * first, scales_at = call.scale_stride * head + first;
            KeyBlockTask task{};
            task.keys = call.keys + at;
            task.values = call.values + at;
            task.token_bytes = call.token_bytes;
            task.key_scales = call.key_scales == nullptr ? nullptr : call.key_scales + scales_at;
            task.value_scales = call.value_scales == nullptr ? nullptr : call.value_scales + scales_at;
            task.cosines = call.key_cosines == nullptr ? nullptr : call.key_cosines + first * half;
            task.sines = call.key_sines == nullptr ? nullptr : call.key_sines + first * half;
            task.count = static_cast<int>(std::min<int64_t>(kKeyBlock, stop - first));
            task.head_dim = call.head_dim;
            task.out = &scratch.blocks[static_cast<size_t>(head) * held + index % num_blocks];
            round_keys(task);
        });
        state.pool.run(call.kv_heads * row_blocks, [&](int index) {
            // The last rows see most: they begin first, for the threads to end together.
            const int head = index % call.kv_heads, block = row_blocks - 1 - index / call.kv_heads;
            const int64_t first_row = static_cast<int64_t>(block) * kRowBlock, token = first_row / call.group;
            const size_t out_stride = static_cast<size_t>(call.kv_heads) * call.group * call.head_dim;
            RowBlockTask task{};
            task.queries = call.queries + call.query_stride * token + call.query_head_stride * head;
            task.token_stride = call.query_stride;
            task.cosines = call.query_cosines + token * half;
            task.sines = call.query_sines + token * half;
            task.turn = call.turn;
            task.group = call.group;
            task.first_row = static_cast<int>(first_row % call.group);
            task.count = static_cast<int>(std::min<int64_t>(kRowBlock, rows - first_row));
            task.head_dim = call.head_dim;
            task.blocks = &scratch.blocks[static_cast<size_t>(head) * held];
            task.num_blocks = num_blocks;
            task.num_keys = stop - start;
            task.first_sees = call.first_sees == kSeesAll ? kSeesAll : call.first_sees + token - start;
            task.is_first = start == 0;
            task.is_last = stop == call.num_keys;
            task.largest = &scratch.largest[static_cast<size_t>(rows) * head + first_row];
            task.total = &scratch.total[static_cast<size_t>(rows) * head + first_row];
            task.out = call.out + out_stride * token + static_cast<size_t>(head) * call.group * call.head_dim;
            task.out_stride = out_stride;
            kernels.attend_rows(task);
        });
    }
}

size_t bytes_of(CacheFormat format) { return format == CacheFormat::kFloat32 ? 4 : format == CacheFormat::kInt8 ? 1 : 2; }

}  // namespace

void chunk_attention(const ChunkCall& chunk) {
    const AttentionCall& call = chunk.call;
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    BlockScratch& scratch = scratch_of<BlockScratch>(state);
    const int group = call.heads / call.kv_heads, half = call.head_dim / 2;
    const int64_t num_keys = call.length + chunk.num_tokens;
    prepare(scratch, call.kv_heads, group, chunk.num_tokens, num_keys);

    const size_t row_bytes = bytes_of(call.format) * call.head_dim;
    const auto store_token = state.kernels->store_token[static_cast<int>(call.format)];
    state.pool.run(chunk.num_tokens, [&](int token) {
        for (int head = 0; head < call.kv_heads; ++head) {
            const size_t state_at = row_bytes * call.capacity * head, scales_at = static_cast<size_t>(call.capacity) * head;
            AttendTask task{};
            task.new_key = call.keys + chunk.key_stride * token + static_cast<size_t>(head) * call.head_dim;
            task.new_value = call.values + chunk.value_stride * token + static_cast<size_t>(head) * call.head_dim;
            task.cosines = call.cosines + static_cast<size_t>(token) * half;
            task.sines = call.sines + static_cast<size_t>(token) * half;
            task.keys = call.cached_keys + state_at;
            task.values = call.cached_values + state_at;
            task.key_scales = call.key_scales == nullptr ? nullptr : call.key_scales + scales_at;
            task.value_scales = call.value_scales == nullptr ? nullptr : call.value_scales + scales_at;
            task.last = call.length + token + 1;
            task.head_dim = call.head_dim;
            store_token(task);
        }
    });

    Attention attention{};
    attention.queries = call.queries;
    attention.query_stride = chunk.query_stride;
    attention.query_head_stride = static_cast<size_t>(group) * call.head_dim;
    attention.keys = call.cached_keys;
    attention.values = call.cached_values;
    attention.token_bytes = row_bytes;
    attention.head_bytes = row_bytes * call.capacity;
    attention.key_scales = call.key_scales;
    attention.value_scales = call.value_scales;
    attention.scale_stride = call.capacity;
    attention.query_cosines = call.cosines;
    attention.query_sines = call.sines;
    attention.turn = Turn::kPairs;
    attention.format = call.format;
    attention.kv_heads = call.kv_heads;
    attention.group = group;
    attention.head_dim = call.head_dim;
    attention.num_tokens = chunk.num_tokens;
    attention.num_keys = num_keys;
    attention.first_sees = call.length + 1;
    attention.out = call.out;
    attend(state, scratch, attention);
}

void frame_attention(const FramesCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    BlockScratch& scratch = scratch_of<BlockScratch>(state);
    const int64_t most = *std::max_element(call.frame_sizes, call.frame_sizes + call.num_frames);
    prepare(scratch, call.heads, 1, most, most);
    const size_t width = static_cast<size_t>(call.heads) * call.head_dim;
    int64_t start = 0;
    for (int frame = 0; frame < call.num_frames; start += call.frame_sizes[frame++]) {
        const float* states = call.states + 3 * width * start;
        Attention attention{};
        attention.queries = states;
        attention.query_stride = 3 * width;
        attention.query_head_stride = call.head_dim;
        attention.keys = reinterpret_cast<const uint8_t*>(states + width);
        attention.values = reinterpret_cast<const uint8_t*>(states + 2 * width);
        attention.token_bytes = sizeof(float) * 3 * width;
        attention.head_bytes = sizeof(float) * call.head_dim;
        attention.query_cosines = attention.key_cosines = call.cosines + start * (call.head_dim / 2);
        attention.query_sines = attention.key_sines = call.sines + start * (call.head_dim / 2);
        attention.turn = Turn::kHalves;
        attention.format = CacheFormat::kFloat32;
        attention.kv_heads = call.heads;
        attention.group = 1;
        attention.head_dim = call.head_dim;
        attention.num_tokens = attention.num_keys = call.frame_sizes[frame];
        attention.first_sees = kSeesAll;
        attention.out = call.out + width * start;
        attend(state, scratch, attention);
    }
}

}  // namespace ernie_local
