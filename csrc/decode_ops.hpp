// What decoding a token needs beside packed matrices: RMS norm, the router's choice, attention over the cache.
#pragma once

#include <cstdint>

#include "kernel_table.hpp"

namespace ernie_local {

// out[num_tokens][size] = weight * row / sqrt(mean(square(row)) + eps).
void rms_norm(const float* hidden, int num_tokens, const float* weight, int size, float eps, float* out);

struct RouteCall {
    const float* hidden;  // [num_tokens][hidden_size]
    int num_tokens, hidden_size;
    const float* weight;  // [num_experts][hidden_size]
    const float* bias;    // [num_experts]
    int num_experts, top_k;  // top_k at most num_experts: checked by the caller
    float norm_min;
    int64_t* expert_ids;   // [num_tokens][top_k]
    float* expert_weights;  // [num_tokens][top_k]
};

// Experts by softmax score plus bias, greatest first; of equal ones the lower id, and NaN before every number. Their
// weights are the scores alone over max(their sum, norm_min).
void route(const RouteCall& call);

struct AttentionCall {
    const float* queries;             // [heads][head_dim]
    const float *keys, *values;       // [kv_heads][head_dim]
    const float *cosines, *sines;     // [head_dim / 2]
    CacheFormat format;
    uint8_t *cached_keys, *cached_values;  // [kv_heads][capacity][head_dim] in `format`
    float *key_scales, *value_scales;      // [kv_heads][capacity], int8 only
    int heads, kv_heads, head_dim;    // heads a multiple of kv_heads, head_dim even: checked by the caller
    int64_t capacity, length;         // length below capacity: checked by the caller
    float* out;                       // [heads][head_dim]
};

// Turns queries and keys, writes the new token behind the `length` cached ones, and attends to all of them. Throws
// std::bad_alloc before it has written anything.
void decode_attention(const AttentionCall& call);

}  // namespace ernie_local
