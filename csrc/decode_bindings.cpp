#include "decode_bindings.hpp"

#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>

#include "decode_ops.hpp"
#include "tensor_view.hpp"

namespace nb = nanobind;

namespace ernie_local {
namespace {

// Every function gives back false, and has done nothing, where its arguments do not fit each other: Python then says
// which (ernie_local/kernels/checks.py). On the way that matters nothing is checked twice.

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
    const TensorView queries(queries_tensor), keys(keys_tensor), values(values_tensor), cosines(cosines_tensor),
        sines(sines_tensor), cached_keys(cached_keys_tensor), cached_values(cached_values_tensor), out(out_tensor);
    if (!queries.has_dimensions(2) || !cached_keys.has_dimensions(3)) return false;
    const auto format = cache_format(cached_keys.type());
    const int64_t heads = queries.size(0), head_dim = queries.size(1);
    const int64_t kv_heads = cached_keys.size(0), capacity = cached_keys.size(1);
    if (!format || heads < 1 || kv_heads < 1 || head_dim < 2 || head_dim % 2 || heads % kv_heads) return false;
    if (length < 0 || length >= capacity || !is_int(heads) || !is_int(head_dim)) return false;
    if (!queries.is(kFloat, {heads, head_dim}) || !keys.is(kFloat, {kv_heads, head_dim}) ||
        !values.is(kFloat, {kv_heads, head_dim}) || !cosines.is(kFloat, {head_dim / 2}) ||
        !sines.is(kFloat, {head_dim / 2}) || !cached_keys.is(cached_keys.type(), {kv_heads, capacity, head_dim}) ||
        !cached_values.is(cached_keys.type(), {kv_heads, capacity, head_dim}) || !out.is(kFloat, {heads, head_dim}))
        return false;
    float *key_scales = nullptr, *value_scales = nullptr;
    const bool with_scales = *format == CacheFormat::kInt8;
    if (key_scales_tensor.has_value() != with_scales || value_scales_tensor.has_value() != with_scales) return false;
    if (with_scales) {
        const TensorView for_keys(*key_scales_tensor), for_values(*value_scales_tensor);
        if (!for_keys.is(kFloat, {kv_heads, capacity, 1}) || !for_values.is(kFloat, {kv_heads, capacity, 1}))
            return false;
        key_scales = for_keys.data<float>();
        value_scales = for_values.data<float>();
    }
    const nb::gil_scoped_release released;
    decode_attention({queries.data<const float>(), keys.data<const float>(), values.data<const float>(),
                      cosines.data<const float>(), sines.data<const float>(), *format, cached_keys.data<uint8_t>(),
                      cached_values.data<uint8_t>(), key_scales, value_scales, static_cast<int>(heads),
                      static_cast<int>(kv_heads), static_cast<int>(head_dim), capacity, length, out.data<float>()});
    return true;
}

}  // namespace

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
}

}  // namespace ernie_local
