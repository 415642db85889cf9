// The Python face of decode_ops.hpp.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>

#include "decode_ops.hpp"

namespace ernie_local {

// One layer's cache as Python holds it: (kv_heads, capacity, head_dim), scales (kv_heads, capacity, 1) for int8 alone.
struct CacheTensors {
    nanobind::handle keys, values;
    std::optional<nanobind::handle> key_scales, value_scales;
};

// Fill their parts of `call`, `heads` and `length` among them; false if something does not fit. Angles are (head_dim / 2)
// or, as the only row of a table, (1, head_dim / 2).
bool read_cache(const CacheTensors& cache, int64_t length, int64_t heads, AttentionCall& call);
bool read_angles(nanobind::handle cosines, nanobind::handle sines, bool as_row, AttentionCall& call);

void bind_decode_ops(nanobind::module_& module);

}  // namespace ernie_local
