#include "decode_bindings.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <vector>

#include "block_attention.hpp"
#include "decode_ops.hpp"
#include "tensor_view.hpp"

namespace nb = nanobind;

namespace ernie_local {
namespace {

// Every function gives back false, and has done nothing, where its arguments do not fit each other: Python then says
// which (ernie_local/kernels/arguments.py). On the way that matters nothing is checked twice.

constexpr auto kFloat = NumberType::kFloat32;

bool is_int(int64_t size) { return size <= std::numeric_limits<int>::max(); }

bool bound_rms_norm(nb::handle hidden_tensor, nb::handle weight_tensor, float eps, nb::handle out_tensor) {
    const TensorView hidden(hidden_tensor), weight(weight_tensor), out(out_tensor);
    if (!hidden.has_dimensions(2)) return false;
    const int64_t num_tokens = hidden.size(0), size = hidden.size(1);
    if (!hidden.is(kFloat, {num_tokens, size}) || !weight.is(kFloat, {size}) || !out.is(kFloat, {num_tokens, size}) ||
        !is_int(num_tokens) || !is_int(size))
        return false;
    const nb::gil_scoped_release released;
    rms_norm(hidden.data<const float>(), static_cast<int>(num_tokens), weight.data<const float>(),
             static_cast<int>(size), eps, out.data<float>());
    return true;
}

bool bound_route(nb::handle hidden_tensor, nb::handle weight_tensor, nb::handle bias_tensor, int64_t top_k,
                 float norm_min, nb::handle ids_tensor, nb::handle weights_tensor) {
    const TensorView hidden(hidden_tensor), weight(weight_tensor), bias(bias_tensor), ids(ids_tensor),
        weights(weights_tensor);
    if (!hidden.has_dimensions(2) || !weight.has_dimensions(2)) return false;
    const int64_t num_tokens = hidden.size(0), hidden_size = hidden.size(1), num_experts = weight.size(0);
    if (!hidden.is(kFloat, {num_tokens, hidden_size}) || !weight.is(kFloat, {num_experts, hidden_size}) ||
        !bias.is(kFloat, {num_experts}) || !ids.is(NumberType::kInt64, {num_tokens, top_k}) ||
        !weights.is(kFloat, {num_tokens, top_k}))
        return false;
    if (top_k < 1 || top_k > num_experts || !is_int(num_tokens) || !is_int(hidden_size) || !is_int(num_experts))
        return false;
    const nb::gil_scoped_release released;
    route({hidden.data<const float>(), static_cast<int>(num_tokens), static_cast<int>(hidden_size),
           weight.data<const float>(), bias.data<const float>(), static_cast<int>(num_experts), static_cast<int>(top_k),
           norm_min, ids.data<int64_t>(), weights.data<float>()});
    return true;
}

std::optional<CacheFormat> cache_format(NumberType type) {
    switch (type) {
        case NumberType::kFloat32: return CacheFormat::kFloat32;
        case NumberType::kBFloat16: return CacheFormat::kBFloat16;
        case NumberType::kFloat16: return CacheFormat::kFloat16;
        case NumberType::kInt8: return CacheFormat::kInt8;
        default: return std::nullopt;
    }
}

bool bound_decode_attention(nb::handle queries_tensor, nb::handle keys_tensor, nb::handle values_tensor,
                            nb::handle cosines_tensor, nb::handle sines_tensor, nb::handle cached_keys_tensor,
                            nb::handle cached_values_tensor, std::optional<nb::handle> key_scales_tensor,
                            std::optional<nb::handle> value_scales_tensor, int64_t length, nb::handle out_tensor) {
    const TensorView queries(queries_tensor), keys(keys_tensor), values(values_tensor), out(out_tensor);
    if (!queries.has_dimensions(2)) return false;
    const int64_t heads = queries.size(0);
    AttentionCall call{};
    if (!read_cache({cached_keys_tensor, cached_values_tensor, key_scales_tensor, value_scales_tensor}, length, heads, call) ||
        !read_angles(cosines_tensor, sines_tensor, false, call))
        return false;
    if (!queries.is(kFloat, {heads, call.head_dim}) || !keys.is(kFloat, {call.kv_heads, call.head_dim}) ||
        !values.is(kFloat, {call.kv_heads, call.head_dim}) || !out.is(kFloat, {heads, call.head_dim}))
        return false;
    call.queries = queries.data<const float>();
    call.keys = keys.data<const float>();
    call.values = values.data<const float>();
    call.out = out.data<float>();
    const nb::gil_scoped_release released;
    decode_attention(call);
    return true;
}

bool bound_chunk_attention(nb::handle queries_tensor, nb::handle keys_tensor, nb::handle values_tensor,
                           nb::handle cosines_tensor, nb::handle sines_tensor, nb::handle cached_keys_tensor,
                           nb::handle cached_values_tensor, std::optional<nb::handle> key_scales_tensor,
                           std::optional<nb::handle> value_scales_tensor, int64_t length, nb::handle out_tensor) {
    const TensorView queries(queries_tensor), keys(keys_tensor), values(values_tensor), cosines(cosines_tensor),
        sines(sines_tensor), out(out_tensor);
    if (!queries.has_dimensions(3)) return false;
    const int64_t num_tokens = queries.size(0), heads = queries.size(1);
    ChunkCall chunk{};
    AttentionCall& call = chunk.call;
    if (!read_cache({cached_keys_tensor, cached_values_tensor, key_scales_tensor, value_scales_tensor}, length, heads, call))
        return false;
    const int64_t head_dim = call.head_dim, angles = head_dim / 2;
    if (head_dim > kMostHeadDim || num_tokens < 1 || num_tokens > call.capacity - length || !is_int(num_tokens * heads))
        return false;
    if (!queries.is_rows(kFloat, {num_tokens, heads, head_dim}) || !keys.is_rows(kFloat, {num_tokens, call.kv_heads, head_dim}) ||
        !values.is_rows(kFloat, {num_tokens, call.kv_heads, head_dim}) || !cosines.is(kFloat, {num_tokens, angles}) ||
        !sines.is(kFloat, {num_tokens, angles}) || !out.is(kFloat, {num_tokens, heads, head_dim}))
        return false;
    call.queries = queries.data<const float>();
    call.keys = keys.data<const float>();
    call.values = values.data<const float>();
    call.cosines = cosines.data<const float>();
    call.sines = sines.data<const float>();
    call.out = out.data<float>();
    chunk.num_tokens = static_cast<int>(num_tokens);
    chunk.query_stride = queries.row_stride();
    chunk.key_stride = keys.row_stride();
    chunk.value_stride = values.row_stride();
    const nb::gil_scoped_release released;
    chunk_attention(chunk);
    return true;
}

bool bound_frame_attention(nb::handle states_tensor, nb::handle cosines_tensor, nb::handle sines_tensor, int64_t heads,
                           const std::vector<int64_t>& frame_sizes, nb::handle out_tensor) {
    const TensorView states(states_tensor), cosines(cosines_tensor), sines(sines_tensor), out(out_tensor);
    if (!states.has_dimensions(2) || heads < 1 || states.size(1) % (3 * heads) != 0) return false;
    const int64_t patches = states.size(0), head_dim = states.size(1) / (3 * heads);
    if (head_dim < 2 || head_dim % 2 || head_dim > kMostHeadDim || !is_int(patches) || !is_int(heads)) return false;
    if (!states.is(kFloat, {patches, 3 * heads * head_dim}) || !cosines.is(kFloat, {patches, head_dim / 2}) ||
        !sines.is(kFloat, {patches, head_dim / 2}) || !out.is(kFloat, {patches, heads * head_dim}))
        return false;
    int64_t left = patches;
    for (const int64_t size : frame_sizes) {
        if (size < 1 || size > left || !is_int(size * heads)) return false;
        left -= size;
    }
    if (left != 0 || frame_sizes.empty() || !is_int(static_cast<int64_t>(frame_sizes.size()))) return false;
    const nb::gil_scoped_release released;
    frame_attention({states.data<const float>(), cosines.data<const float>(), sines.data<const float>(), frame_sizes.data(),
                     static_cast<int>(frame_sizes.size()), static_cast<int>(heads), static_cast<int>(head_dim),
                     out.data<float>()});
    return true;
}

}  // namespace

bool read_cache(const CacheTensors& cache, int64_t length, int64_t heads, AttentionCall& call) {
    const TensorView keys(cache.keys), values(cache.values);
    if (!keys.has_dimensions(3)) return false;
    const auto format = cache_format(keys.type());
    const int64_t kv_heads = keys.size(0), capacity = keys.size(1), head_dim = keys.size(2);
    if (!format || heads < 1 || kv_heads < 1 || head_dim < 2 || head_dim % 2 || heads % kv_heads) return false;
    if (length < 0 || length >= capacity || !is_int(heads) || !is_int(head_dim) || !is_int(heads * head_dim)) return false;
    // What the kernel counts in int: a group's scores, and its sums with their padding.
    const int64_t group = heads / kv_heads;
    if (!is_int(group * kAttendBlock) || !is_int(group * (head_dim + 16))) return false;
    if (!keys.is(keys.type(), {kv_heads, capacity, head_dim}) || !values.is(keys.type(), {kv_heads, capacity, head_dim}))
        return false;
    const bool with_scales = *format == CacheFormat::kInt8;
    if (cache.key_scales.has_value() != with_scales || cache.value_scales.has_value() != with_scales) return false;
    if (with_scales) {
        const TensorView for_keys(*cache.key_scales), for_values(*cache.value_scales);
        if (!for_keys.is(kFloat, {kv_heads, capacity, 1}) || !for_values.is(kFloat, {kv_heads, capacity, 1}))
            return false;
        call.key_scales = for_keys.data<float>();
        call.value_scales = for_values.data<float>();
    }
    call.format = *format;
    call.cached_keys = keys.data<uint8_t>();
    call.cached_values = values.data<uint8_t>();
    call.heads = static_cast<int>(heads);
    call.kv_heads = static_cast<int>(kv_heads);
    call.head_dim = static_cast<int>(head_dim);
    call.capacity = capacity;
    call.length = length;
    return true;
}

bool read_angles(nb::handle cosines_tensor, nb::handle sines_tensor, bool as_row, AttentionCall& call) {
    const TensorView cosines(cosines_tensor), sines(sines_tensor);
    const int64_t count = call.head_dim / 2;
    const auto fits = [&](const TensorView& view) {
        return as_row ? view.is(kFloat, {1, count}) : view.is(kFloat, {count});
    };
    if (!fits(cosines) || !fits(sines)) return false;
    call.cosines = cosines.data<const float>();
    call.sines = sines.data<const float>();
    return true;
}

void bind_decode_ops(nb::module_& module) {
    module.def("rms_norm", &bound_rms_norm, nb::arg("hidden"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
               "Fills out; False, having done nothing, if the arguments do not fit each other.");
    module.def("route", &bound_route, nb::arg("hidden"), nb::arg("weight"), nb::arg("bias"), nb::arg("top_k"),
               nb::arg("norm_min"), nb::arg("expert_ids"), nb::arg("expert_weights"),
               "Fills the last two; False, having done nothing, if the arguments do not fit each other.");
    module.def("decode_attention", &bound_decode_attention, nb::arg("queries"), nb::arg("keys"), nb::arg("values"),
               nb::arg("cosines"), nb::arg("sines"), nb::arg("cached_keys"), nb::arg("cached_values"),
               nb::arg("key_scales").none(), nb::arg("value_scales").none(), nb::arg("length"), nb::arg("out"),
               "Fills out and the cache's row `length`; False, having done nothing, if the arguments do not fit.");
    module.def("chunk_attention", &bound_chunk_attention, nb::arg("queries"), nb::arg("keys"), nb::arg("values"),
               nb::arg("cosines"), nb::arg("sines"), nb::arg("cached_keys"), nb::arg("cached_values"),
               nb::arg("key_scales").none(), nb::arg("value_scales").none(), nb::arg("length"), nb::arg("out"),
               "As decode_attention, for tokens one behind the other: rows of queries, keys and values may have gaps.");
    module.def("frame_attention", &bound_frame_attention, nb::arg("states"), nb::arg("cosines"), nb::arg("sines"),
               nb::arg("heads"), nb::arg("frame_sizes"), nb::arg("out"),
               "Fills out; False, having done nothing, if the arguments do not fit each other.");
}

}  // namespace ernie_local
