// The attention half of a layer for one new token, from packed projections, in one call.
#pragma once

#include "decode_ops.hpp"
#include "formats.hpp"
#include "low_rank.hpp"

namespace ernie_local {

struct PackedAttentionCall {
    const float* hidden;  // [hidden_size]
    int hidden_size;
    const float* norm;    // [hidden_size]
    float eps;
    const uint8_t* qkv;   // rows of queries, keys, values x hidden_size
    const FormatInfo* qkv_format;
    const uint8_t* o;     // hidden_size x rows of queries
    const FormatInfo* o_format;
    // What an adapter adds to the products with qkv and o, if anything.
    const LowRankPart* qkv_parts;
    int num_qkv_parts;
    const LowRankPart* o_parts;
    int num_o_parts;
    AttentionCall attention;  // without queries, keys, values and out
    float* out;           // [hidden_size]
};

// out = hidden + o(attention(qkv(norm(hidden)))); false if a NaN or an infinity came up, and then only the cache's row
// behind its last token may have changed.
bool packed_attention(const PackedAttentionCall& call);

}  // namespace ernie_local
