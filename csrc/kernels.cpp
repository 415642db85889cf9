// The Python face of the native module: what is bound here is typed in ernie_local/_kernels.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <string>

#include "cpu_features.hpp"

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

}  // namespace

NB_MODULE(_kernels, module) {
    module.doc() = "Native code of ernie-local.";
    module.def("cpu_features", &ernie_local::cpu_features,
               "Instruction sets that processor and operating system both offer, by name.");
    module.def("build_info", &build_info, "How this module was built: version, build_type, compiler, nanobind, python.");
}
