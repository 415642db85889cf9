// One expert as one page: docs/format.md, and ernie_local/packing/page.py in C++.
#pragma once

#include <cstddef>
#include <cstdint>

#include "formats.hpp"

namespace ernie_local {

struct ExpertPage {
    const FormatInfo* gate_up;
    const FormatInfo* down;
    int hidden_size, inner_size;
    const uint8_t* gate_up_tiles;  // gate tile i, then up tile i
    const uint8_t* down_tiles;
};

// Reads the header at `page` and checks it against `hidden_size` and the bytes that are there. False if the page is
// damaged, of another version, or larger than `available_bytes`. Whoever read the page checked its checksum.
bool read_page(const uint8_t* page, size_t available_bytes, int hidden_size, ExpertPage& out);

}  // namespace ernie_local
