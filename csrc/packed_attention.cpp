#include "packed_attention.hpp"

#include <vector>

#include "packed_linear.hpp"

namespace ernie_local {

bool packed_attention(const PackedAttentionCall& call) {
    thread_local std::vector<float> normed, states, attended;
    AttentionCall attention = call.attention;
    const int query_size = attention.heads * attention.head_dim, key_size = attention.kv_heads * attention.head_dim;
    normed.resize(call.hidden_size);
    states.resize(query_size + 2 * key_size);
    attended.resize(query_size);

    rms_norm(call.hidden, 1, call.norm, call.hidden_size, call.eps, normed.data());
    if (packed_linear(normed.data(), 1, call.hidden_size, call.qkv, *call.qkv_format, query_size + 2 * key_size,
                      states.data()) >= 0)
        return false;
    if (call.num_qkv_parts > 0)
        add_low_rank({normed.data(), 1, call.hidden_size, call.qkv_parts, call.num_qkv_parts, states.data(),
                      query_size + 2 * key_size});
    attention.queries = states.data();
    attention.keys = states.data() + query_size;
    attention.values = states.data() + query_size + key_size;
    attention.out = attended.data();
    decode_attention(attention);
    if (packed_linear(attended.data(), 1, query_size, call.o, *call.o_format, call.hidden_size, call.out) >= 0) return false;
    if (call.num_o_parts > 0)
        add_low_rank({attended.data(), 1, query_size, call.o_parts, call.num_o_parts, call.out, call.hidden_size});
    for (int i = 0; i < call.hidden_size; ++i) call.out[i] += call.hidden[i];
    return true;
}

}  // namespace ernie_local
