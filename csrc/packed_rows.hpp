// Chosen rows of a packed matrix as floats: the embedding of tokens.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace ernie_local {

// out[count][columns] = the rows `row_ids` of a packed matrix of `columns`; every id lies within it.
void packed_rows(const uint8_t* packed, const FormatInfo& format, int columns, const int64_t* row_ids, int count,
                 float* out);

}  // namespace ernie_local
