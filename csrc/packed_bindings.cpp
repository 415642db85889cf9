#include "packed_bindings.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <limits>
#include <optional>
#include <utility>

#include "decode_bindings.hpp"
#include "packed_attention.hpp"
#include "packed_experts.hpp"
#include "packed_linear.hpp"
#include "packed_rows.hpp"
#include "tensor_view.hpp"

namespace nb = nanobind;

namespace ernie_local {
namespace {

// As in decode_bindings.cpp: arguments that do not fit each other are refused without a word and without harm, and
// Python says which of them it is (ernie_local/kernels/arguments.py).
constexpr int kDone = 0, kBrokenToken = 1, kBrokenPage = 2, kRefused = 3;
constexpr auto kFloat = NumberType::kFloat32;
using Outcome = std::pair<int, int64_t>;
constexpr int64_t kFewTokens = 16;

// With room for what rounds it up to whole tiles and groups.
bool fits_int(int64_t size) { return size >= 1 && size <= std::numeric_limits<int>::max() - 128; }

bool can_be_packed(int64_t rows, int64_t columns) { return fits_int(rows) && fits_int(columns) && columns % kColumnStep == 0; }

Outcome bound_packed_linear(nb::handle tokens_tensor, nb::handle packed_tensor, int format_id, int64_t rows,
                            nb::handle out_tensor) {
    const TensorView tokens(tokens_tensor), packed(packed_tensor), out(out_tensor);
    const FormatInfo* format = format_info(format_id);
    if (format == nullptr || !tokens.has_dimensions(2)) return {kRefused, 0};
    const int64_t num_tokens = tokens.size(0), columns = tokens.size(1);
    if (!fits_int(num_tokens) || !can_be_packed(rows, columns)) return {kRefused, 0};
    const size_t bytes = format->matrix_bytes(static_cast<int>(rows), static_cast<int>(columns));
    if (!tokens.is(kFloat, {num_tokens, columns}) || !out.is(kFloat, {num_tokens, rows}) ||
        !packed.is(NumberType::kUInt8, {static_cast<int64_t>(bytes)}))
        return {kRefused, 0};
    const nb::gil_scoped_release released;
    const int broken = packed_linear(tokens.data<const float>(), static_cast<int>(num_tokens), static_cast<int>(columns),
                                     packed.data<const uint8_t>(), *format, static_cast<int>(rows), out.data<float>());
    return {broken < 0 ? kDone : kBrokenToken, broken};
}

Outcome bound_packed_experts(nb::handle hidden_tensor, nb::handle slots_tensor, nb::handle expert_ids_tensor,
                             nb::handle weights_tensor, std::optional<nb::handle> shared_tensor,
                             std::optional<nb::handle> places_tensor, std::optional<bool> are_few, nb::handle out_tensor,
                             bool adds) {
    const TensorView hidden(hidden_tensor), slots(slots_tensor), expert_ids(expert_ids_tensor), weights(weights_tensor),
        out(out_tensor);
    if (!hidden.has_dimensions(2) || !slots.has_dimensions(2) || !expert_ids.has_dimensions(2)) return {kRefused, 0};
    const int64_t num_tokens = hidden.size(0), hidden_size = hidden.size(1), top_k = expert_ids.size(1);
    const int64_t num_slots = slots.size(0);
    if (!fits_int(num_tokens) || !fits_int(top_k) || !fits_int(num_tokens * (top_k + 1)) || !can_be_packed(1, hidden_size))
        return {kRefused, 0};
    if (!hidden.is(kFloat, {num_tokens, hidden_size}) || !slots.is(NumberType::kUInt8, {num_slots, slots.size(1)}) ||
        !expert_ids.is(NumberType::kInt64, {num_tokens, top_k}) || !weights.is(kFloat, {num_tokens, top_k}) ||
        !out.is(kFloat, {num_tokens, hidden_size}))
        return {kRefused, 0};
    const int64_t* places = nullptr;
    int64_t num_experts = num_slots;
    if (places_tensor.has_value()) {
        const TensorView table(*places_tensor);
        if (!table.has_dimensions(1) || !table.is(NumberType::kInt64, {table.size(0)})) return {kRefused, 0};
        places = table.data<const int64_t>();
        num_experts = table.size(0);
        for (int64_t i = 0; i < num_experts; ++i)
            if ((places[i] < 0 && places[i] != kAbsentSlot) || places[i] >= num_slots) return {kRefused, 0};
    }
    const auto* ids = expert_ids.data<const int64_t>();
    for (int64_t i = 0; i < num_tokens * top_k; ++i)
        if (ids[i] < 0 || ids[i] >= num_experts) return {kRefused, 0};
    const uint8_t* shared_page = nullptr;
    size_t shared_bytes = 0;
    if (shared_tensor.has_value()) {
        const TensorView shared(*shared_tensor);
        if (!shared.has_dimensions(2) || !shared.is(NumberType::kUInt8, {1, shared.size(1)})) return {kRefused, 0};
        shared_page = shared.data<const uint8_t>();
        shared_bytes = static_cast<size_t>(shared.size(1));
    }
    const nb::gil_scoped_release released;
    const auto result = packed_experts({hidden.data<const float>(), static_cast<int>(num_tokens),
                                        static_cast<int>(hidden_size), slots.data<const uint8_t>(),
                                        num_slots, static_cast<size_t>(slots.size(1)), ids, places, weights.data<const float>(),
                                        static_cast<int>(top_k), shared_page, shared_bytes, out.data<float>(), adds,
                                        are_few.value_or(num_tokens <= kFewTokens)});
    switch (result.kind) {
        case ExpertsResult::kBrokenToken: return {kBrokenToken, result.index};
        case ExpertsResult::kBrokenPage: return {kBrokenPage, result.index};
        default: return {kDone, 0};
    }
}

bool bound_packed_attention(nb::handle hidden_tensor, nb::handle norm_tensor, float eps, nb::handle qkv_tensor,
                            int qkv_format, nb::handle o_tensor, int o_format, int64_t heads, nb::handle cosines_tensor,
                            nb::handle sines_tensor, nb::handle cached_keys_tensor, nb::handle cached_values_tensor,
                            std::optional<nb::handle> key_scales_tensor, std::optional<nb::handle> value_scales_tensor,
                            int64_t length, nb::handle out_tensor) {
    const TensorView hidden(hidden_tensor), norm(norm_tensor), qkv(qkv_tensor), o(o_tensor), out(out_tensor);
    PackedAttentionCall call{};
    if (!hidden.has_dimensions(2)) return false;
    const int64_t hidden_size = hidden.size(1);
    if (!read_cache({cached_keys_tensor, cached_values_tensor, key_scales_tensor, value_scales_tensor}, length, heads,
                    call.attention) ||
        !read_angles(cosines_tensor, sines_tensor, true, call.attention))
        return false;
    call.qkv_format = format_info(qkv_format);
    call.o_format = format_info(o_format);
    const int64_t query_size = heads * call.attention.head_dim;
    const int64_t qkv_rows = query_size + 2 * int64_t{call.attention.kv_heads} * call.attention.head_dim;
    if (call.qkv_format == nullptr || call.o_format == nullptr || !can_be_packed(qkv_rows, hidden_size) ||
        !can_be_packed(hidden_size, query_size))
        return false;
    const auto bytes = [](const FormatInfo& format, int64_t rows, int64_t columns) {
        return static_cast<int64_t>(format.matrix_bytes(static_cast<int>(rows), static_cast<int>(columns)));
    };
    if (!hidden.is(kFloat, {1, hidden_size}) || !norm.is(kFloat, {hidden_size}) || !out.is(kFloat, {1, hidden_size}) ||
        !qkv.is(NumberType::kUInt8, {bytes(*call.qkv_format, qkv_rows, hidden_size)}) ||
        !o.is(NumberType::kUInt8, {bytes(*call.o_format, hidden_size, query_size)}))
        return false;
    call.hidden = hidden.data<const float>();
    call.hidden_size = static_cast<int>(hidden_size);
    call.norm = norm.data<const float>();
    call.eps = eps;
    call.qkv = qkv.data<const uint8_t>();
    call.o = o.data<const uint8_t>();
    call.out = out.data<float>();
    const nb::gil_scoped_release released;
    return packed_attention(call);
}

bool bound_packed_rows(nb::handle packed_tensor, int format_id, int64_t rows, nb::handle row_ids_tensor,
                       nb::handle out_tensor) {
    const TensorView packed(packed_tensor), row_ids(row_ids_tensor), out(out_tensor);
    const FormatInfo* format = format_info(format_id);
    if (format == nullptr || !row_ids.has_dimensions(1) || !out.has_dimensions(2)) return false;
    const int64_t count = row_ids.size(0), columns = out.size(1);
    if (!fits_int(count) || !can_be_packed(rows, columns)) return false;
    const size_t bytes = format->matrix_bytes(static_cast<int>(rows), static_cast<int>(columns));
    if (!row_ids.is(NumberType::kInt64, {count}) || !out.is(kFloat, {count, columns}) ||
        !packed.is(NumberType::kUInt8, {static_cast<int64_t>(bytes)}))
        return false;
    const auto* ids = row_ids.data<const int64_t>();
    for (int64_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= rows) return false;
    const nb::gil_scoped_release released;
    packed_rows(packed.data<const uint8_t>(), *format, static_cast<int>(columns), ids, static_cast<int>(count),
                out.data<float>());
    return true;
}

}  // namespace

void bind_packed_ops(nb::module_& module) {
    module.def("packed_linear", &bound_packed_linear, nb::arg("tokens"), nb::arg("packed"), nb::arg("format_id"),
               nb::arg("rows"), nb::arg("out"),
               "Fills out: (0, _); or (1, first token that is not finite); or (3, _), having done nothing, if the arguments "
               "do not fit each other.");
    module.def("packed_experts", &bound_packed_experts, nb::arg("hidden"), nb::arg("slots"), nb::arg("expert_ids"),
               nb::arg("weights"), nb::arg("shared_page").none(), nb::arg("places").none(), nb::arg("are_few").none(), nb::arg("out"),
               nb::arg("adds"),
               "As packed_linear; or (2, first expert with a broken page, -1 for the shared one). Adds to out if asked.");
    module.def("packed_attention", &bound_packed_attention, nb::arg("hidden"), nb::arg("norm"), nb::arg("eps"),
               nb::arg("qkv"), nb::arg("qkv_format"), nb::arg("o"), nb::arg("o_format"), nb::arg("heads"),
               nb::arg("cosines"), nb::arg("sines"), nb::arg("cached_keys"), nb::arg("cached_values"),
               nb::arg("key_scales").none(), nb::arg("value_scales").none(), nb::arg("length"), nb::arg("out"),
               "Fills out and the cache's row `length`; False if the arguments do not fit each other or a number is not "
               "finite: then at most that row was changed.");
    module.def("packed_rows", &bound_packed_rows, nb::arg("packed"), nb::arg("format_id"), nb::arg("rows"),
               nb::arg("row_ids"), nb::arg("out"),
               "Fills out with the rows that are asked for, dequantized; False if the arguments do not fit each other.");
}

}  // namespace ernie_local
