// The Python face of quantize_ops.hpp.
#pragma once

#include <nanobind/nanobind.h>

namespace ernie_local {

void bind_quantize_ops(nanobind::module_& module);

}  // namespace ernie_local
