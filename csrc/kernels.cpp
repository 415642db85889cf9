// The Python face of the native module: what is bound here is typed in ernie_local/_kernels.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cpu_features.hpp"
#include "decode_bindings.hpp"
#include "packed_experts.hpp"
#include "packed_linear.hpp"
#include "packed_rows.hpp"
#include "runtime.hpp"

namespace nb = nanobind;

namespace {

std::map<std::string, std::string> build_info() {
    return {
        {"version", ERNIE_LOCAL_VERSION},
        {"build_type", ERNIE_LOCAL_BUILD_TYPE},
        {"compiler", ERNIE_LOCAL_COMPILER},
        {"nanobind", std::to_string(NB_VERSION_MAJOR) + "." + std::to_string(NB_VERSION_MINOR) + "." +
                         std::to_string(NB_VERSION_PATCH)},
        {"python", PY_VERSION},
    };
}

std::vector<std::tuple<std::string, std::vector<std::string>, bool>> known_instruction_sets() {
    std::vector<std::tuple<std::string, std::vector<std::string>, bool>> known;
    for (const auto& set : ernie_local::known_instruction_sets())
        known.emplace_back(set.name, set.features, set.kernels != nullptr);
    return known;
}

template <class Scalar, int kDimensions>
using Array = nb::ndarray<Scalar, nb::ndim<kDimensions>, nb::c_contig, nb::device::cpu>;

// Python has checked shapes against each other (ernie_local/kernels/checks.py); what would read or write outside of a
// buffer is checked here again, since a wrong number must never end the process.
[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

int64_t packed_linear(const Array<const float, 2>& input, const Array<const uint8_t, 1>& packed, int format_id, int rows,
                      const Array<float, 2>& out) {
    const int columns = static_cast<int>(input.shape(1));
    const auto* format = ernie_local::format_info(format_id);
    if (format == nullptr) refuse("format id " + std::to_string(format_id) + " is unknown");
    if (columns % ernie_local::kColumnStep || rows < 1) refuse("columns must be a multiple of 16, rows at least 1");
    if (packed.size() != format->matrix_bytes(rows, columns)) refuse("packed bytes do not fit rows and columns");
    if (out.shape(0) != input.shape(0) || out.shape(1) != static_cast<size_t>(rows)) refuse("out has the wrong shape");
    const nb::gil_scoped_release released;
    return ernie_local::packed_linear(input.data(), static_cast<int>(input.shape(0)), columns, packed.data(), *format,
                                      rows, out.data());
}

std::pair<int, int64_t> packed_experts(const Array<const float, 2>& input, const Array<const uint8_t, 2>& slots,
                                       const Array<const int64_t, 2>& slot_ids, const Array<const float, 2>& weights,
                                       const Array<float, 2>& out) {
    const size_t num_tokens = input.shape(0), top_k = slot_ids.shape(1);
    if (input.shape(1) % ernie_local::kColumnStep) refuse("hidden size must be a multiple of 16");
    if (slot_ids.shape(0) != num_tokens || weights.shape(0) != num_tokens || weights.shape(1) != top_k)
        refuse("slot_ids and weights must have a row for each token");
    if (out.shape(0) != num_tokens || out.shape(1) != input.shape(1)) refuse("out has the wrong shape");
    for (size_t i = 0; i < num_tokens * top_k; ++i)
        if (slot_ids.data()[i] < 0 || slot_ids.data()[i] >= static_cast<int64_t>(slots.shape(0)))
            refuse("slot id " + std::to_string(slot_ids.data()[i]) + " is outside of 0 to " +
                   std::to_string(static_cast<int64_t>(slots.shape(0)) - 1));
    const nb::gil_scoped_release released;
    const auto result = ernie_local::packed_experts(
        {input.data(), static_cast<int>(num_tokens), static_cast<int>(input.shape(1)), slots.data(), slots.shape(1),
         slot_ids.data(), weights.data(), static_cast<int>(top_k), out.data()});
    return {static_cast<int>(result.kind), result.index};
}

void packed_rows(const Array<const uint8_t, 1>& packed, int format_id, int rows, const Array<const int64_t, 1>& row_ids,
                 const Array<float, 2>& out) {
    const auto* format = ernie_local::format_info(format_id);
    if (format == nullptr) refuse("format id " + std::to_string(format_id) + " is unknown");
    const int columns = static_cast<int>(out.shape(1));
    if (columns % ernie_local::kColumnStep || rows < 1) refuse("columns must be a multiple of 16, rows at least 1");
    if (packed.size() != format->matrix_bytes(rows, columns)) refuse("packed bytes do not fit rows and columns");
    if (out.shape(0) != row_ids.size()) refuse("out has the wrong shape");
    for (size_t i = 0; i < row_ids.size(); ++i)
        if (row_ids.data()[i] < 0 || row_ids.data()[i] >= rows)
            refuse("row id " + std::to_string(row_ids.data()[i]) + " is outside of 0 to " + std::to_string(rows - 1));
    const nb::gil_scoped_release released;
    ernie_local::packed_rows(packed.data(), *format, columns, row_ids.data(), static_cast<int>(row_ids.size()), out.data());
}

}  // namespace

NB_MODULE(_kernels, module) {
    module.doc() = "Native code of ernie-local.";
    module.def("cpu_features", &ernie_local::cpu_features,
               "Instruction sets that processor and operating system both offer, by name.");
    module.def("build_info", &build_info, "How this module was built: version, build_type, compiler, nanobind, python.");
    module.def("known_instruction_sets", &known_instruction_sets,
               "(name, features it needs, whether it was built) of every instruction set with kernels, best first.");
    module.def("instruction_sets", &ernie_local::available_instruction_sets,
               "Instruction sets whose kernels can run here, best first.");
    module.def("instruction_set", [] { return std::string(ernie_local::runtime().kernels->name); },
               "The instruction set in use.");
    module.def("use_instruction_set", &ernie_local::use_instruction_set, nb::arg("name"),
               "Use this one from now on; ValueError for one that is not available.");
    module.def("set_num_threads", [](int count) {
        if (count < 1) refuse("at least 1 thread is needed");
        auto& state = ernie_local::runtime();
        const nb::gil_scoped_release released;
        const std::lock_guard<std::mutex> lock(state.mutex);
        state.pool.resize(count);
    }, nb::arg("count"), "Threads that the kernels use, the caller's own among them.");
    module.def("num_threads", [] { return ernie_local::runtime().pool.num_threads(); }, "Threads that the kernels use.");
    module.def("packed_linear", &packed_linear, nb::arg("tokens"), nb::arg("packed"), nb::arg("format_id"),
               nb::arg("rows"), nb::arg("out"), "Fills out; the first token that is not finite, or -1.");
    module.def("packed_rows", &packed_rows, nb::arg("packed"), nb::arg("format_id"), nb::arg("rows"), nb::arg("row_ids"),
               nb::arg("out"), "Fills out with the rows that are asked for, dequantized.");
    module.def("packed_experts", &packed_experts, nb::arg("hidden"), nb::arg("slots"), nb::arg("slot_ids"),
               nb::arg("weights"), nb::arg("out"),
               "Fills out; (0, 0), or (1, first token that is not finite), or (2, first slot with a broken page).");
    ernie_local::bind_decode_ops(module);
}
