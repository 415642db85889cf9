#include "quantize_bindings.hpp"

#include <limits>

#include "formats.hpp"
#include "quantize_ops.hpp"
#include "tensor_view.hpp"

namespace nb = nanobind;

namespace ernie_local {
namespace {

// Every function gives back false, and has done nothing, where its arguments do not fit each other.

constexpr auto kFloat = NumberType::kFloat32;
constexpr auto kByte = NumberType::kUInt8;

bool is_size(int64_t size) { return size >= 1 && size <= std::numeric_limits<int>::max() / 64; }

// As in ernie_local/packing/formats.py. Of asymmetric formats only: the others have no zeros.
bool read_range(int format_id, CodeRange& range) {
    const FormatInfo* format = format_info(format_id);
    if (format == nullptr || !format->has_zeros()) return false;
    const auto highest = [](int bits) { return static_cast<float>((1 << bits) - 1); };
    const int metadata_bits = format->group_metadata * 8 / kTileRows / 2;  // of a scale, and as many of a zero
    range.group_size = format->group;
    range.highest_code = highest(format->bits);
    range.highest_scale = highest(metadata_bits);
    range.highest_zero = highest(metadata_bits);
    range.zero_divisor = static_cast<float>(format->zero_divisor);
    return true;
}

int64_t num_groups(const CodeRange& range, int64_t columns) {
    return (columns + range.group_size - 1) / range.group_size;
}

bool bound_search_ranges(nb::handle weights_tensor, int format_id, nb::handle matters_tensor, float least_scale,
                         nb::handle steps_tensor, nb::handle shifts_tensor) {
    const TensorView weights(weights_tensor), matters(matters_tensor), steps(steps_tensor), shifts(shifts_tensor);
    SearchTask task{};
    if (!read_range(format_id, task.range) || !weights.has_dimensions(2)) return false;
    const int64_t columns = weights.size(0), rows = weights.size(1), groups = num_groups(task.range, columns);
    if (!is_size(columns) || !is_size(rows) || !weights.is(kFloat, {columns, rows}) || !matters.is(kFloat, {columns}) ||
        !steps.is(kFloat, {groups, rows}) || !shifts.is(kFloat, {groups, rows}))
        return false;
    task.rows = rows;
    task.columns = static_cast<int>(columns);
    task.least_scale = least_scale;
    task.weights = weights.data<const float>();
    task.matters = matters.data<const float>();
    task.steps = steps.data<float>();
    task.shifts = shifts.data<float>();
    const nb::gil_scoped_release released;
    search_ranges(task);
    return true;
}

bool bound_choose_whole(nb::handle weights_tensor, int format_id, nb::handle matters_tensor, nb::handle steps_tensor,
                        nb::handle shifts_tensor, nb::handle row_steps_tensor, nb::handle scales_tensor,
                        nb::handle zeros_tensor) {
    const TensorView weights(weights_tensor), matters(matters_tensor), steps(steps_tensor), shifts(shifts_tensor),
        row_steps(row_steps_tensor), scales(scales_tensor), zeros(zeros_tensor);
    WholeTask task{};
    if (!read_range(format_id, task.range) || !weights.has_dimensions(2)) return false;
    const int64_t columns = weights.size(0), rows = weights.size(1), groups = num_groups(task.range, columns);
    if (!is_size(columns) || !is_size(rows) || !weights.is(kFloat, {columns, rows}) || !matters.is(kFloat, {columns}) ||
        !steps.is(kFloat, {groups, rows}) || !shifts.is(kFloat, {groups, rows}) || !row_steps.is(kFloat, {rows}) ||
        !scales.is(kByte, {groups, rows}) || !zeros.is(kByte, {groups, rows}))
        return false;
    task.rows = rows;
    task.columns = static_cast<int>(columns);
    task.weights = weights.data<const float>();
    task.matters = matters.data<const float>();
    task.steps = steps.data<const float>();
    task.shifts = shifts.data<const float>();
    task.row_steps = row_steps.data<const float>();
    task.scales = scales.data<uint8_t>();
    task.zeros = zeros.data<uint8_t>();
    const nb::gil_scoped_release released;
    choose_whole(task);
    return true;
}

bool bound_gptq_block(nb::handle left_tensor, nb::handle factor_tensor, nb::handle group_ids_tensor,
                      nb::handle steps_tensor, nb::handle shifts_tensor, int format_id, int64_t start, int64_t stop,
                      nb::handle codes_tensor, nb::handle errors_tensor) {
    const TensorView left(left_tensor), factor(factor_tensor), group_ids(group_ids_tensor), steps(steps_tensor),
        shifts(shifts_tensor), codes(codes_tensor), errors(errors_tensor);
    CodeRange range{};
    if (!read_range(format_id, range) || !left.has_dimensions(2)) return false;
    const int64_t columns = left.size(0), rows = left.size(1), groups = num_groups(range, columns);
    if (!is_size(columns) || !is_size(rows) || start < 0 || start >= stop || stop > columns ||
        stop - start > kQuantizeBlock || !left.is(kFloat, {columns, rows}) || !factor.is(kFloat, {columns, columns}) ||
        !group_ids.is(NumberType::kInt64, {columns}) || !steps.is(kFloat, {groups, rows}) ||
        !shifts.is(kFloat, {groups, rows}) || !codes.is(kByte, {columns, rows}) ||
        !errors.is(kFloat, {stop - start, rows}))
        return false;
    for (int64_t column = start; column < stop; ++column)
        if (group_ids.data<const int64_t>()[column] < 0 || group_ids.data<const int64_t>()[column] >= groups) return false;
    GptqTask task{};
    task.highest_code = range.highest_code;
    task.rows = rows;
    task.columns = columns;
    task.start = static_cast<int>(start);
    task.stop = static_cast<int>(stop);
    task.left = left.data<const float>();
    task.factor = factor.data<const float>();
    task.group_ids = group_ids.data<const int64_t>();
    task.steps = steps.data<const float>();
    task.shifts = shifts.data<const float>();
    task.codes = codes.data<uint8_t>();
    task.errors = errors.data<float>();
    const nb::gil_scoped_release released;
    gptq_block(task);
    return true;
}

bool bound_refine_block(nb::handle hessian_tensor, nb::handle pull_tensor, nb::handle row_scales_tensor, int format_id,
                        int64_t start, int64_t stop, bool with_codes, bool with_scales, nb::handle codes_tensor,
                        nb::handle scales_tensor, nb::handle zeros_tensor, nb::handle change_tensor) {
    const TensorView hessian(hessian_tensor), pull(pull_tensor), row_scales(row_scales_tensor), codes(codes_tensor),
        scales(scales_tensor), zeros(zeros_tensor), change(change_tensor);
    RefineTask task{};
    if (!read_range(format_id, task.range) || !pull.has_dimensions(2)) return false;
    const int64_t columns = pull.size(0), rows = pull.size(1), groups = num_groups(task.range, columns);
    if (!is_size(columns) || !is_size(rows) || start < 0 || start >= stop || stop > columns ||
        stop - start > kQuantizeBlock || start % task.range.group_size ||
        (stop % task.range.group_size && stop != columns) || !hessian.is(kFloat, {columns, columns}) ||
        !pull.is(kFloat, {columns, rows}) || !row_scales.is(kFloat, {rows}) || !codes.is(kByte, {columns, rows}) ||
        !scales.is(kByte, {groups, rows}) || !zeros.is(kByte, {groups, rows}) ||
        !change.is(kFloat, {stop - start, rows}))
        return false;
    task.rows = rows;
    task.columns = columns;
    task.start = static_cast<int>(start);
    task.stop = static_cast<int>(stop);
    task.with_codes = with_codes;
    task.with_scales = with_scales;
    task.hessian = hessian.data<const float>();
    task.pull = pull.data<const float>();
    task.row_scales = row_scales.data<const float>();
    task.codes = codes.data<uint8_t>();
    task.scales = scales.data<uint8_t>();
    task.zeros = zeros.data<uint8_t>();
    task.change = change.data<float>();
    const nb::gil_scoped_release released;
    refine_block(task);
    return true;
}

bool bound_walk_trellis(nb::handle left_tensor, nb::handle factor_tensor, nb::handle group_ids_tensor,
                        nb::handle steps_tensor, int64_t first, int64_t start, int64_t stop, int64_t end,
                        nb::handle states_tensor, nb::handle codes_tensor, nb::handle errors_tensor) {
    const TensorView left(left_tensor), factor(factor_tensor), group_ids(group_ids_tensor), steps(steps_tensor),
        states(states_tensor), codes(codes_tensor), errors(errors_tensor);
    if (!left.has_dimensions(2) || !steps.has_dimensions(2)) return false;
    const int64_t columns = left.size(0), rows = left.size(1), groups = steps.size(0);
    if (!is_size(columns) || !is_size(rows) || !is_size(groups) || first < 0 || first > start || start >= stop ||
        stop > end || end > columns || stop - start > kQuantizeBlock || !left.is(kFloat, {columns, rows}) ||
        !factor.is(kFloat, {columns, columns}) || !group_ids.is(NumberType::kInt64, {columns}) ||
        !steps.is(kFloat, {groups, rows}) || !states.is(kByte, {2, rows}) || !codes.is(kByte, {columns, rows}) ||
        !errors.is(kFloat, {stop - start, rows}))
        return false;
    for (int64_t column = start; column < end; ++column)
        if (group_ids.data<const int64_t>()[column] < 0 || group_ids.data<const int64_t>()[column] >= groups) return false;
    WalkTask task{};
    task.rows = rows;
    task.columns = columns;
    task.first = static_cast<int>(first);
    task.start = static_cast<int>(start);
    task.stop = static_cast<int>(stop);
    task.end = static_cast<int>(end);
    task.left = left.data<const float>();
    task.factor = factor.data<const float>();
    task.group_ids = group_ids.data<const int64_t>();
    task.steps = steps.data<const float>();
    task.states = states.data<uint8_t>();
    task.codes = codes.data<uint8_t>();
    task.errors = errors.data<float>();
    const nb::gil_scoped_release released;
    walk_trellis(task);
    return true;
}

bool bound_decide_block(nb::handle own_tensor, nb::handle inverses_tensor, nb::handle factors_tensor,
                        nb::handle pull_tensor, nb::handle steps_tensor, nb::handle states_tensor, bool is_ring,
                        nb::handle codes_tensor, nb::handle change_tensor) {
    const TensorView own(own_tensor), inverses(inverses_tensor), factors(factors_tensor), pull(pull_tensor),
        steps(steps_tensor), states(states_tensor), codes(codes_tensor), change(change_tensor);
    if (!pull.has_dimensions(2) || !factors.has_dimensions(3)) return false;
    const int64_t size = pull.size(0), rows = pull.size(1), stretches = factors.size(0), stretch = factors.size(1);
    if (!is_size(size) || !is_size(rows) || size > kQuantizeBlock || stretch < 1 || stretch > kLongestStretch ||
        stretches * stretch != size || !own.is(kFloat, {size, size}) ||
        !inverses.is(kFloat, {stretches, stretch, stretch}) || !factors.is(kFloat, {stretches, stretch, stretch}) ||
        !pull.is(kFloat, {size, rows}) || !steps.is(kFloat, {size, rows}) || !states.is(kByte, {stretches, rows}) ||
        !codes.is(kByte, {size, rows}) || !change.is(kFloat, {size, rows}))
        return false;
    DecideTask task{};
    task.rows = rows;
    task.size = static_cast<int>(size);
    task.stretch = static_cast<int>(stretch);
    task.is_ring = is_ring;
    task.own = own.data<const float>();
    task.inverses = inverses.data<const float>();
    task.factors = factors.data<const float>();
    task.pull = pull.data<const float>();
    task.steps = steps.data<const float>();
    task.states = states.data<const uint8_t>();
    task.codes = codes.data<uint8_t>();
    task.change = change.data<float>();
    const nb::gil_scoped_release released;
    decide_block(task);
    return true;
}

bool bound_refit_scales(nb::handle own_tensor, nb::handle levels_tensor, nb::handle pull_tensor,
                        nb::handle row_scales_tensor, int group_size, nb::handle scales_tensor,
                        nb::handle change_tensor) {
    const TensorView own(own_tensor), levels(levels_tensor), pull(pull_tensor), row_scales(row_scales_tensor),
        scales(scales_tensor), change(change_tensor);
    if (!pull.has_dimensions(2) || group_size < 1 || group_size > kLargestGroup) return false;
    const int64_t size = pull.size(0), rows = pull.size(1), groups = (size + group_size - 1) / group_size;
    if (!is_size(size) || !is_size(rows) || size > kQuantizeBlock || !own.is(kFloat, {size, size}) ||
        !levels.is(kFloat, {size, rows}) || !pull.is(kFloat, {size, rows}) || !row_scales.is(kFloat, {rows}) ||
        !scales.is(kByte, {groups, rows}) || !change.is(kFloat, {size, rows}))
        return false;
    RefitTask task{};
    task.rows = rows;
    task.size = static_cast<int>(size);
    task.group_size = group_size;
    task.own = own.data<const float>();
    task.levels = levels.data<const float>();
    task.pull = pull.data<const float>();
    task.row_scales = row_scales.data<const float>();
    task.scales = scales.data<uint8_t>();
    task.change = change.data<float>();
    const nb::gil_scoped_release released;
    refit_scales(task);
    return true;
}

}  // namespace

void bind_quantize_ops(nb::module_& module) {
    module.def("search_ranges", &bound_search_ranges, nb::arg("weights"), nb::arg("format_id"), nb::arg("matters"),
               nb::arg("least_scale"), nb::arg("steps"), nb::arg("shifts"),
               "Fills the last two; False, having done nothing, if the arguments do not fit each other.");
    module.def("choose_whole", &bound_choose_whole, nb::arg("weights"), nb::arg("format_id"), nb::arg("matters"),
               nb::arg("steps"), nb::arg("shifts"), nb::arg("row_steps"), nb::arg("scales"), nb::arg("zeros"),
               "Fills the last two; False, having done nothing, if the arguments do not fit each other.");
    module.def("gptq_block", &bound_gptq_block, nb::arg("left"), nb::arg("factor"), nb::arg("group_ids"),
               nb::arg("steps"), nb::arg("shifts"), nb::arg("format_id"), nb::arg("start"), nb::arg("stop"),
               nb::arg("codes"), nb::arg("errors"),
               "Fills rows [start, stop) of codes, and errors; False, having done nothing, if the arguments do not fit.");
    module.def("refine_block", &bound_refine_block, nb::arg("hessian"), nb::arg("pull"), nb::arg("row_scales"),
               nb::arg("format_id"), nb::arg("start"), nb::arg("stop"), nb::arg("with_codes"), nb::arg("with_scales"),
               nb::arg("codes"), nb::arg("scales"), nb::arg("zeros"), nb::arg("change"),
               "Changes the block's codes, scales and zeros, fills change; False, having done nothing, if the arguments do not fit.");
    module.def("walk_trellis", &bound_walk_trellis, nb::arg("left"), nb::arg("factor"), nb::arg("group_ids"),
               nb::arg("steps"), nb::arg("first"), nb::arg("start"), nb::arg("stop"), nb::arg("end"), nb::arg("states"),
               nb::arg("codes"), nb::arg("errors"),
               "Fills rows [start, stop) of codes, and errors, and changes states; False, having done nothing, if the arguments do not fit.");
    module.def("decide_block", &bound_decide_block, nb::arg("own"), nb::arg("inverses"), nb::arg("factors"),
               nb::arg("pull"), nb::arg("steps"), nb::arg("states"), nb::arg("is_ring"), nb::arg("codes"),
               nb::arg("change"), "Changes codes, fills change; False, having done nothing, if the arguments do not fit.");
    module.def("refit_scales", &bound_refit_scales, nb::arg("own"), nb::arg("levels"), nb::arg("pull"),
               nb::arg("row_scales"), nb::arg("group_size"), nb::arg("scales"), nb::arg("change"),
               "Changes scales, fills change; False, having done nothing, if the arguments do not fit.");
}

}  // namespace ernie_local
