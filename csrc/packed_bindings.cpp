#include "packed_bindings.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "decode_bindings.hpp"
#include "low_rank.hpp"
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

// What an adapter adds to experts of `hidden_size`: four tensors, as LowRankExperts (ernie_local/kernels/arguments.py).
struct AdapterTensors {
    explicit AdapterTensors(nb::handle four) {
        const nb::sequence tensors = nb::cast<nb::sequence>(four);
        num_tensors = nb::len(tensors);
        if (num_tensors != 4) return;
        for (int i = 0; i < 4; ++i) views[i].emplace(nb::object(tensors[i]));
    }

    bool read(int64_t hidden_size, ExpertAdapter& out) const {
        if (num_tensors != 4) return false;
        for (const auto& view : views)
            if (!view->has_dimensions(&view == &views[0] || &view == &views[2] ? 3 : 4)) return false;
        const int64_t experts = views[0]->size(0), both_ranks = views[0]->size(1);
        const int64_t down_rank = views[2]->size(1), inner_size = views[2]->size(2);
        const auto tiles = [](int64_t rows) { return (rows + kTileRows - 1) / kTileRows; };
        if (both_ranks % 2 || !fits_int(both_ranks + 1) || !fits_int(down_rank + 1) || !fits_int(inner_size)) return false;
        constexpr auto kBFloat = NumberType::kBFloat16;
        if (both_ranks && (!views[0]->is(kBFloat, {experts, both_ranks, hidden_size}) ||
                           !views[1]->is(kBFloat, {experts, tiles(inner_size), both_ranks, kTileRows})))
            return false;
        if (down_rank && (!views[2]->is(kBFloat, {experts, down_rank, inner_size}) ||
                          !views[3]->is(kBFloat, {experts, tiles(hidden_size), down_rank, kTileRows})))
            return false;
        out = {views[0]->data<const uint16_t>(), views[1]->data<const uint16_t>(), views[2]->data<const uint16_t>(),
               views[3]->data<const uint16_t>(), static_cast<int>(both_ranks / 2), static_cast<int>(down_rank),
               static_cast<int>(inner_size)};
        return true;
    }

    int64_t num_experts() const { return views[0]->size(0); }

    size_t num_tensors;
    std::optional<TensorView> views[4];
};

Outcome bound_packed_experts(nb::handle hidden_tensor, nb::handle slots_tensor, nb::handle expert_ids_tensor,
                             nb::handle weights_tensor, std::optional<nb::handle> shared_tensor,
                             std::optional<nb::handle> places_tensor, std::optional<bool> are_few,
                             std::optional<nb::handle> adapter_tensors, std::optional<nb::handle> shared_adapter_tensors,
                             nb::handle out_tensor, bool adds) {
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
    ExpertAdapter adapter{}, shared_adapter{};
    if (adapter_tensors.has_value()) {
        const AdapterTensors tensors(*adapter_tensors);
        if (!tensors.read(hidden_size, adapter) || tensors.num_experts() != num_experts) return {kRefused, 0};
    }
    if (shared_adapter_tensors.has_value()) {
        const AdapterTensors tensors(*shared_adapter_tensors);
        if (!tensors.read(hidden_size, shared_adapter) || tensors.num_experts() != 1) return {kRefused, 0};
    }
    const nb::gil_scoped_release released;
    const auto result = packed_experts({hidden.data<const float>(), static_cast<int>(num_tokens),
                                        static_cast<int>(hidden_size), slots.data<const uint8_t>(),
                                        num_slots, static_cast<size_t>(slots.size(1)), ids, places, weights.data<const float>(),
                                        static_cast<int>(top_k), shared_page, shared_bytes, out.data<float>(), adds,
                                        are_few.value_or(num_tokens <= kFewTokens),
                                        adapter_tensors.has_value() ? &adapter : nullptr,
                                        shared_adapter_tensors.has_value() ? &shared_adapter : nullptr});
    switch (result.kind) {
        case ExpertsResult::kBrokenToken: return {kBrokenToken, result.index};
        case ExpertsResult::kBrokenPage: return {kBrokenPage, result.index};
        default: return {kDone, 0};
    }
}

// What LowRankParts in ernie_local/kernels/arguments.py has, as far as it fits a matrix of this shape.
class LowRankTensors {
public:
    bool read(const nb::sequence& inward, const nb::sequence& outward, const std::vector<int64_t>& first_rows,
              const std::vector<int64_t>& num_rows, int64_t columns, int64_t rows) {
        const size_t num_parts = first_rows.size();
        if (num_rows.size() != num_parts || nb::len(inward) != num_parts || nb::len(outward) != num_parts) return false;
        int64_t all_ranks = 0;
        for (size_t i = 0; i < num_parts; ++i) {
            const nb::object in_tensor(inward[i]), out_tensor(outward[i]);
            const TensorView in_view(in_tensor), out_view(out_tensor);
            if (!in_view.has_dimensions(2) || !out_view.has_dimensions(3)) return false;
            const int64_t rank = in_view.size(0), first = first_rows[i], count = num_rows[i];
            if (first < 0 || count < 1 || first > rows - count || !fits_int(rank)) return false;
            all_ranks += rank;
            if (!in_view.is(NumberType::kBFloat16, {rank, columns}) ||
                !out_view.is(NumberType::kBFloat16, {(count + kTileRows - 1) / kTileRows, rank, kTileRows}))
                return false;
            parts.push_back({in_view.data<const uint16_t>(), out_view.data<const uint16_t>(), static_cast<int>(rank),
                             static_cast<int>(first), static_cast<int>(count)});
        }
        return num_parts == 0 || (fits_int(static_cast<int64_t>(num_parts)) && fits_int(all_ranks));
    }

    // As the four fields of a tuple.
    bool read(const nb::tuple& fields, int64_t columns, int64_t rows) {
        if (fields.size() != 4) return false;
        return read(nb::cast<nb::sequence>(fields[0]), nb::cast<nb::sequence>(fields[1]),
                    nb::cast<std::vector<int64_t>>(fields[2]), nb::cast<std::vector<int64_t>>(fields[3]), columns, rows);
    }

    int count() const { return static_cast<int>(parts.size()); }

    std::vector<LowRankPart> parts;
};

bool bound_add_low_rank(nb::handle out_tensor, nb::handle tokens_tensor, const nb::sequence& inward, const nb::sequence& outward,
                        const std::vector<int64_t>& first_rows, const std::vector<int64_t>& num_rows) {
    const TensorView tokens(tokens_tensor), out(out_tensor);
    if (!tokens.has_dimensions(2) || !out.has_dimensions(2)) return false;
    const int64_t num_tokens = tokens.size(0), columns = tokens.size(1), rows = out.size(1);
    if (!fits_int(num_tokens) || !fits_int(columns) || !fits_int(rows)) return false;
    if (!tokens.is(kFloat, {num_tokens, columns}) || !out.is(kFloat, {num_tokens, rows})) return false;
    LowRankTensors tensors;
    if (!tensors.read(inward, outward, first_rows, num_rows, columns, rows) || tensors.count() == 0) return false;
    const nb::gil_scoped_release released;
    add_low_rank({tokens.data<const float>(), static_cast<int>(num_tokens), static_cast<int>(columns), tensors.parts.data(),
                  tensors.count(), out.data<float>(), static_cast<int>(rows)});
    return true;
}

bool bound_packed_attention(nb::handle hidden_tensor, nb::handle norm_tensor, float eps, nb::handle qkv_tensor,
                            int qkv_format, nb::handle o_tensor, int o_format, int64_t heads, nb::handle cosines_tensor,
                            nb::handle sines_tensor, const nb::tuple& qkv_added, const nb::tuple& o_added,
                            nb::handle cached_keys_tensor, nb::handle cached_values_tensor,
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
    LowRankTensors qkv_tensors, o_tensors;
    if (!qkv_tensors.read(qkv_added, hidden_size, qkv_rows) || !o_tensors.read(o_added, query_size, hidden_size)) return false;
    call.qkv_parts = qkv_tensors.parts.data();
    call.num_qkv_parts = qkv_tensors.count();
    call.o_parts = o_tensors.parts.data();
    call.num_o_parts = o_tensors.count();
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
               nb::arg("weights"), nb::arg("shared_page").none(), nb::arg("places").none(), nb::arg("are_few").none(),
               nb::arg("adapter").none(), nb::arg("shared_adapter").none(), nb::arg("out"), nb::arg("adds"),
               "As packed_linear; or (2, first expert with a broken page, -1 for the shared one). Adds to out if asked.");
    module.def("add_low_rank", &bound_add_low_rank, nb::arg("out"), nb::arg("tokens"), nb::arg("inward"), nb::arg("outward"),
               nb::arg("first_rows"), nb::arg("num_rows"),
               "Adds to out; False, having done nothing, if the arguments do not fit each other.");
    module.def("packed_attention", &bound_packed_attention, nb::arg("hidden"), nb::arg("norm"), nb::arg("eps"),
               nb::arg("qkv"), nb::arg("qkv_format"), nb::arg("o"), nb::arg("o_format"), nb::arg("heads"),
               nb::arg("cosines"), nb::arg("sines"), nb::arg("qkv_added"), nb::arg("o_added"), nb::arg("cached_keys"),
               nb::arg("cached_values"), nb::arg("key_scales").none(), nb::arg("value_scales").none(), nb::arg("length"), nb::arg("out"),
               "Fills out and the cache's row `length`; False if the arguments do not fit each other or a number is not "
               "finite: then at most that row was changed.");
    module.def("packed_rows", &bound_packed_rows, nb::arg("packed"), nb::arg("format_id"), nb::arg("rows"),
               nb::arg("row_ids"), nb::arg("out"),
               "Fills out with the rows that are asked for, dequantized; False if the arguments do not fit each other.");
}

}  // namespace ernie_local
