// The routed experts of a few or many tokens, from packed pages, in one call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "low_rank.hpp"

namespace ernie_local {

constexpr int64_t kAbsentSlot = -1;  // of an expert that somebody else computes

struct ExpertsCall {
    const float* input;        // [num_tokens][hidden_size]
    int num_tokens, hidden_size;
    const uint8_t* slots;      // [num_slots][slot_bytes]; a page begins at a slot and may take several
    int64_t num_slots;
    size_t slot_bytes;
    const int64_t* expert_ids;  // [num_tokens][top_k]
    const int64_t* places;     // the slot of each expert, or kAbsentSlot; null where expert i lies in slot i. All ids and
                               // slots are within their bounds: checked by the caller
    const float* weights;      // [num_tokens][top_k]
    int top_k;
    const uint8_t* shared_page;  // of an expert that every token visits with weight 1, or null
    size_t shared_bytes;
    float* out;                // [num_tokens][hidden_size]
    bool adds = false;         // to what is in out
    bool are_few = false;      // the tokens are rounded as well as can be
    // Of the experts, and of the shared one; null without. A page of another inner size is of no use with one.
    const ExpertAdapter *adapter = nullptr, *shared_adapter = nullptr;
};

struct ExpertsResult {
    enum Kind { kDone, kBrokenToken, kBrokenPage } kind;
    int64_t index;  // the first token with a NaN or an infinity, or the first expert (-1: shared) whose page is of no use
};

// out = (adds: out +) sum over the token's experts of weight * down(silu(gate(x)) * up(x)), where an adapter adds to each
// of the three products, experts in the order of their ids, the
// shared one last, one addition after the other: so calls that add are the same as one call. Out changes only with kDone.
ExpertsResult packed_experts(const ExpertsCall& call);

}  // namespace ernie_local
