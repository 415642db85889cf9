// What an adapter adds to products with a matrix: outward * (inward * x), with thin matrices in bfloat16.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ernie_local {

// Of some rows of a matrix. Outward matrices lie in tiles of 16 rows, the last one filled up.
struct LowRankPart {
    const uint16_t* inward;   // [rank][columns]
    const uint16_t* outward;  // [tiles of num_rows][rank][16]
    int rank, first_row, num_rows;
};

struct LowRankCall {
    const float* tokens;  // [num_tokens][columns]
    int num_tokens, columns;
    const LowRankPart* parts;
    int num_parts;
    float* out;  // [num_tokens][rows]; the parts' rows are among them
    int rows;
};

// Adds to out. A token's sums are the same whatever tokens come with it.
void add_low_rank(const LowRankCall& call);

// Of all experts of a bank, or of one that every token visits. A rank of 0: nothing is added there.
struct ExpertAdapter {
    const uint16_t* gate_up_inward;   // [experts][2][rank][hidden_size]
    const uint16_t* gate_up_outward;  // [experts][tiles of inner_size][2][rank][16]
    const uint16_t* down_inward;      // [experts][down_rank][inner_size]
    const uint16_t* down_outward;     // [experts][tiles of hidden_size][down_rank][16]
    int rank, down_rank, inner_size;
};

}  // namespace ernie_local
