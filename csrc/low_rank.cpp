#include "low_rank.hpp"

#include <algorithm>
#include <vector>

#include "runtime.hpp"

namespace ernie_local {
namespace {

constexpr int kRowsAtOnce = 8, kTilesAtOnce = 16;
constexpr int kTokensAtOnce = 32;

// Some rows of an inward matrix, or some tiles of an outward one, for some tokens.
struct Share {
    int part, first, last, first_token, last_token;
};

struct LowRankScratch {
    std::vector<float> factors;  // [num_tokens][all ranks]
    std::vector<int> factors_at;  // of each part
    std::vector<Share> inward, outward;
};

void cut(int part, int count, int at_once, int num_tokens, std::vector<Share>& out) {
    for (int token = 0; token < num_tokens; token += kTokensAtOnce)
        for (int first = 0; first < count; first += at_once)
            out.push_back({part, first, std::min(count, first + at_once), token, std::min(num_tokens, token + kTokensAtOnce)});
}

}  // namespace

void add_low_rank(const LowRankCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const KernelTable& kernels = *state.kernels;
    LowRankScratch& scratch = scratch_of<LowRankScratch>(state);
    scratch.factors_at.clear();
    scratch.inward.clear();
    scratch.outward.clear();
    int all_ranks = 0;
    for (int index = 0; index < call.num_parts; ++index) {
        const LowRankPart& part = call.parts[index];
        scratch.factors_at.push_back(all_ranks);
        all_ranks += part.rank;
        cut(index, part.rank, kRowsAtOnce, call.num_tokens, scratch.inward);
        cut(index, (part.num_rows + kTileRows - 1) / kTileRows, kTilesAtOnce, call.num_tokens, scratch.outward);
    }
    scratch.factors.resize(static_cast<size_t>(call.num_tokens) * all_ranks);
    const auto factors_of = [&](int token, int part) {
        return scratch.factors.data() + static_cast<size_t>(token) * all_ranks + scratch.factors_at[part];
    };
    state.pool.run(static_cast<int>(scratch.inward.size()), [&](int index) {
        const Share& share = scratch.inward[index];
        kernels.dot_bfloats(call.parts[share.part].inward + static_cast<size_t>(share.first) * call.columns,
                            share.last - share.first, call.columns,
                            call.tokens + static_cast<size_t>(share.first_token) * call.columns,
                            share.last_token - share.first_token, factors_of(share.first_token, share.part) + share.first,
                            all_ranks);
    });
    state.pool.run(static_cast<int>(scratch.outward.size()), [&](int index) {
        const Share& share = scratch.outward[index];
        const LowRankPart& part = call.parts[share.part];
        for (int tile = share.first; tile < share.last; ++tile) {
            const int first_row = tile * kTileRows, num_rows = std::min(kTileRows, part.num_rows - first_row);
            const uint16_t* numbers = part.outward + static_cast<size_t>(tile) * part.rank * kTileRows;
            for (int token = share.first_token; token < share.last_token; ++token) {
                float* to = call.out + static_cast<size_t>(token) * call.rows + part.first_row + first_row;
                float sums[kTileRows] = {};
                std::copy_n(to, num_rows, sums);
                kernels.add_low_rank_tile(numbers, part.rank, factors_of(token, share.part), sums);
                std::copy_n(sums, num_rows, to);
            }
        }
    });
}

}  // namespace ernie_local
