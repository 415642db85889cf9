// The Python face of packed_linear.hpp, packed_experts.hpp and packed_rows.hpp.
#pragma once

#include <nanobind/nanobind.h>

namespace ernie_local {

void bind_packed_ops(nanobind::module_& module);

}  // namespace ernie_local
