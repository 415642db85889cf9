// The Python face of the native module.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cpu_features.hpp"
#include "decode_bindings.hpp"
#include "packed_bindings.hpp"
#include "quantize_bindings.hpp"
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

[[noreturn]] void refuse(const std::string& what) { throw nb::value_error(what.c_str()); }

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
    ernie_local::bind_packed_ops(module);
    ernie_local::bind_decode_ops(module);
    ernie_local::bind_quantize_ops(module);
}
