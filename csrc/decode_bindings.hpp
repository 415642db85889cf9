// The Python face of decode_ops.hpp.
#pragma once

#include <nanobind/nanobind.h>

namespace ernie_local {

void bind_decode_ops(nanobind::module_& module);

}  // namespace ernie_local
