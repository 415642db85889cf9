// A packed matrix times tokens.
#pragma once

#include <cstdint>

#include "formats.hpp"

namespace ernie_local {

// out[tokens][rows] = input[tokens][columns] * transpose(matrix). `packed` is checked by the caller to be
// matrix_bytes long. Returns the first token that holds a NaN or an infinity, or -1.
int packed_linear(const float* input, int num_tokens, int columns, const uint8_t* packed, const FormatInfo& format,
                  int rows, float* out);

}  // namespace ernie_local
