// Attention of many tokens at once: of a chunk of text to a KV cache, and within the frames of an image.
#pragma once

#include <cstdint>

#include "decode_ops.hpp"
#include "kernel_table.hpp"

namespace ernie_local {

// New tokens behind those in the cache. The call's queries, keys, values and angles are those of the first one.
struct ChunkCall {
    AttentionCall call;  // head_dim at most kMostHeadDim, length + num_tokens at most capacity: checked by the caller
    int num_tokens;
    size_t query_stride, key_stride, value_stride;  // from one token to the next; out lies without gaps
};

// Turns queries and keys by pairs, writes keys and values behind the `length` cached ones, and attends to all that a
// token may see. Throws std::bad_alloc before it has written anything.
void chunk_attention(const ChunkCall& chunk);

// Patches that attend within their frames, frames one after another.
struct FramesCall {
    const float* states;           // [patches][queries | keys | values][heads][head_dim]
    const float *cosines, *sines;  // [patches][head_dim / 2]
    const int64_t* frame_sizes;    // patches of each frame, at least 1
    int num_frames, heads, head_dim;  // head_dim at most kMostHeadDim
    float* out;                    // [patches][heads][head_dim]
};

// Turns queries and keys by halves.
void frame_attention(const FramesCall& call);

}  // namespace ernie_local
