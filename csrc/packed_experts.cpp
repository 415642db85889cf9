#include "packed_experts.hpp"

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "expert_page.hpp"
#include "pieces.hpp"
#include "runtime.hpp"
#include "tile_products.hpp"

namespace ernie_local {
namespace {

// The products of gate and up have long tails: rounded to int8 once they cost the result 1 to 1.7 %. Of few tokens, where
// reading the weights takes the time, they go in as two rows, the second one of what the first left over.
int rows_each(const ExpertsCall& call) { return call.are_few ? 2 : 1; }

// Few tokens stay within a hundredth of the result only where they are rounded as well as can be.
bool are_bounded(const ExpertsCall& call, const KernelTable& kernels, const FormatInfo& format) {
    return rows_each(call) == 1 && kernels.takes_mirrored[format.id - 1];
}

struct Choice {
    int64_t expert;
    int token;
    float weight;
};

// One expert with the tokens that chose it.
struct Group {
    ExpertPage page;
    int first, count;  // of its choices
    size_t inner_at;   // of its [count][inner_size] activations
    const TokenTiles* input;
    TokenTiles own_input, inner;
    QuantizedRows inner_rows;
    const ExpertAdapter* adapter;
    size_t row;         // of the adapter
    size_t factors_at;  // of its [count][factors_each()], what inward matrices give: of gate, of up, of down

    int factors_each() const { return adapter == nullptr ? 0 : 2 * adapter->rank + adapter->down_rank; }
};

struct Place {
    int group, index;  // of a token, or of a tile of tokens, within the group
};

// Everything that one call needs, kept for the next one. All of it is taken before the pool begins.
struct Scratch {
    std::vector<Choice> choices;  // by expert, then by token
    std::vector<int> tokens;      // of the choices
    std::deque<Group> groups;     // more than are in use, so that their memory stays
    int num_groups;
    QuantizedRows input[kNumFormats];      // by format id - 1; of those in use
    TokenTiles shared_input[kNumFormats];  // the same, where there is one token
    bool has_input[kNumFormats];
    std::vector<float> inner, factors;
    std::vector<Place> inward;  // rows of inward matrices of gate and up: the first one's index
    std::vector<Piece> gate_up_pieces, down_pieces;
    std::vector<Place> rows, input_tiles, inner_tiles;
};

void lower_to(std::atomic<int64_t>& lowest, int64_t value) {
    int64_t seen = lowest.load();
    while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
    }
}

constexpr int64_t kSharedExpert = -1, kAllUsable = -2;
constexpr int kInwardRows = 8;  // of an adapter that are multiplied at a time

int64_t slot_of(const ExpertsCall& call, int64_t expert) { return call.places == nullptr ? expert : call.places[expert]; }

bool read_expert(const ExpertsCall& call, int64_t expert, ExpertPage& page) {
    if (expert == kSharedExpert) return read_page(call.shared_page, call.shared_bytes, call.hidden_size, page);
    const int64_t slot = slot_of(call, expert);
    const size_t available_bytes = (call.num_slots - slot) * call.slot_bytes;
    return read_page(call.slots + slot * call.slot_bytes, available_bytes, call.hidden_size, page);
}

// Groups in the order of their experts; the first whose page is unusable, or kAllUsable.
int64_t collect_groups(const ExpertsCall& call, Scratch& scratch) {
    auto& choices = scratch.choices;
    choices.clear();
    for (int token = 0; token < call.num_tokens; ++token)
        for (int i = 0; i < call.top_k; ++i) {
            const size_t at = static_cast<size_t>(token) * call.top_k + i;
            const int64_t expert = call.expert_ids[at];
            if (slot_of(call, expert) != kAbsentSlot) choices.push_back({expert, token, call.weights[at]});
        }
    std::stable_sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
    for (int token = 0; token < call.num_tokens && call.shared_page != nullptr; ++token)
        choices.push_back({kSharedExpert, token, 1.0f});
    scratch.tokens.clear();
    for (const Choice& choice : choices) scratch.tokens.push_back(choice.token);
    scratch.num_groups = 0;
    size_t inner_at = 0, factors_at = 0;
    const int num_choices = static_cast<int>(choices.size());
    for (int first = 0; first < num_choices;) {
        const int64_t expert = choices[first].expert;
        int last = first + 1;
        while (last < num_choices && choices[last].expert == expert) ++last;
        if (scratch.groups.size() == static_cast<size_t>(scratch.num_groups)) scratch.groups.emplace_back();
        Group& group = scratch.groups[scratch.num_groups++];
        if (!read_expert(call, expert, group.page)) return expert;
        group.adapter = expert == kSharedExpert ? call.shared_adapter : call.adapter;
        group.row = expert == kSharedExpert ? 0 : static_cast<size_t>(expert);
        if (group.adapter != nullptr && group.adapter->inner_size != group.page.inner_size) return expert;
        group.first = first;
        group.count = last - first;
        group.inner_at = inner_at;
        group.factors_at = factors_at;
        factors_at += static_cast<size_t>(group.count) * group.factors_each();
        inner_at += static_cast<size_t>(group.count) * group.page.inner_size;
        first = last;
    }
    scratch.inner.resize(inner_at);
    scratch.factors.resize(factors_at);
    return kAllUsable;
}

void take_memory(const ExpertsCall& call, const Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    const int inner_rows = rows_each(call);
    std::fill_n(scratch.has_input, kNumFormats, false);
    scratch.rows.clear();
    scratch.input_tiles.clear();
    scratch.inner_tiles.clear();
    scratch.inward.clear();
    for (int index = 0; index < scratch.num_groups; ++index) {
        Group& group = scratch.groups[index];
        const int format = group.page.gate_up->id - 1;
        QuantizedRows& rows = scratch.input[format];
        if (!scratch.has_input[format]) {
            scratch.has_input[format] = true;
            rows.resize(call.num_tokens, call.hidden_size, *group.page.gate_up,
                        are_bounded(call, kernels, *group.page.gate_up));
            scratch.shared_input[format].shape(kernels, rows, 1);
        }
        // A lone token may name an expert twice.
        const bool has_own = call.num_tokens > 1 || group.count > 1;
        group.input = has_own ? &group.own_input : &scratch.shared_input[format];
        if (has_own) {
            group.own_input.shape(kernels, rows, group.count);
            for (int tile = 0; tile < group.own_input.num_tiles(); ++tile) scratch.input_tiles.push_back({index, tile});
        }
        group.inner_rows.resize(inner_rows * group.count, group.page.inner_size, *group.page.down,
                                are_bounded(call, kernels, *group.page.down));
        group.inner.shape(kernels, group.inner_rows, inner_rows * group.count);
        for (int token = 0; token < group.count; ++token) scratch.rows.push_back({index, token});
        // Those of a single token are filled as soon as its row is.
        for (int tile = 0; tile < group.inner.num_tiles() && group.count > 1; ++tile)
            scratch.inner_tiles.push_back({index, tile});
        const int inward_rows = group.adapter == nullptr ? 0 : 2 * group.adapter->rank;
        for (int row = 0; row < inward_rows; row += kInwardRows) scratch.inward.push_back({index, row});
    }
}

void cut_pieces(const ExpertsCall& call, const Runtime& state, Scratch& scratch) {
    int gate_up_tiles = 0, token_tiles = 0;
    size_t gate_up_bytes = 0, down_bytes = 0;
    for (int index = 0; index < scratch.num_groups; ++index) {
        const Group& group = scratch.groups[index];
        gate_up_tiles += group.page.gate_up->num_tiles(group.page.inner_size);
        gate_up_bytes += 2 * group.page.gate_up->matrix_bytes(group.page.inner_size, call.hidden_size);
        down_bytes += group.page.down->tile_bytes(group.page.inner_size);
        token_tiles += group.input->num_tiles();
    }
    const int num_threads = state.pool.num_threads();
    scratch.gate_up_pieces.clear();
    PieceCutter gate_up(gate_up_tiles, gate_up_bytes / gate_up_tiles, token_tiles / scratch.num_groups, num_threads);
    for (int index = 0; index < scratch.num_groups; ++index) {
        const ExpertPage& page = scratch.groups[index].page;
        gate_up.cut(index, page.gate_up->num_tiles(page.inner_size), scratch.gate_up_pieces);
    }
    // A piece of down is some rows of the output, and so of all experts.
    const int down_tiles = (call.hidden_size + kTileRows - 1) / kTileRows;
    scratch.down_pieces.clear();
    PieceCutter(down_tiles, down_bytes, token_tiles / scratch.num_groups, num_threads).cut(0, down_tiles, scratch.down_pieces);
}

// The first token with a NaN or an infinity, or -1.
int64_t quantize_input(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    std::atomic<int64_t> broken{call.num_tokens};
    for (int format = 0; format < kNumFormats; ++format) {
        if (!scratch.has_input[format]) continue;
        state.pool.run(call.num_tokens, [&](int token) {
            const float* row = call.input + static_cast<size_t>(token) * call.hidden_size;
            if (!scratch.input[format].fill(kernels, token, row)) lower_to(broken, token);
        });
        if (broken.load() < call.num_tokens) return broken.load();
        if (call.num_tokens == 1) scratch.shared_input[format].fill(0, kFormats[format], scratch.input[format], nullptr);
    }
    state.pool.run(static_cast<int>(scratch.input_tiles.size()), [&](int index) {
        const Place place = scratch.input_tiles[index];
        Group& group = scratch.groups[place.group];
        const FormatInfo& format = *group.page.gate_up;
        group.own_input.fill(place.index, format, scratch.input[format.id - 1], &scratch.tokens[group.first]);
    });
    return -1;
}

float* factors_of(Scratch& scratch, const Group& group, int token) {
    return scratch.factors.data() + group.factors_at + static_cast<size_t>(token) * group.factors_each();
}

// What the inward matrices of gate and up give.
void multiply_inward(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    state.pool.run(static_cast<int>(scratch.inward.size()), [&](int index) {
        const auto [number, first_row] = scratch.inward[index];
        const Group& group = scratch.groups[number];
        const int num_rows = 2 * group.adapter->rank;
        const uint16_t* rows = group.adapter->gate_up_inward + (group.row * num_rows + first_row) * call.hidden_size;
        for (int token = 0; token < group.count; ++token) {
            const float* input = call.input + static_cast<size_t>(scratch.tokens[group.first + token]) * call.hidden_size;
            state.kernels->dot_bfloats(rows, std::min(kInwardRows, num_rows - first_row), call.hidden_size, input, 1,
                                       factors_of(scratch, group, token) + first_row, 0);
        }
    });
}

// The outward matrices of a tile of gate and up, [2][rank][16], and of down, [down_rank][16].
const uint16_t* outward_of_gate_up(const Group& group, int tile) {
    const size_t num_tiles = (group.page.inner_size + kTileRows - 1) / kTileRows;
    return group.adapter->gate_up_outward + (group.row * num_tiles + tile) * 2 * group.adapter->rank * kTileRows;
}

const uint16_t* outward_of_down(const Group& group, int tile) {
    const size_t num_tiles = (group.page.hidden_size + kTileRows - 1) / kTileRows;
    return group.adapter->down_outward + (group.row * num_tiles + tile) * group.adapter->down_rank * kTileRows;
}

// Has an outward matrix brought near while the tile is multiplied: it is too short for the processor to see it coming.
void ask_for_outward([[maybe_unused]] const uint16_t* numbers, [[maybe_unused]] int rank) {
#if defined(__GNUC__)
    for (int k = 0; k < rank; k += 2) __builtin_prefetch(numbers + kTileRows * k);  // 64 bytes
#endif
}

// Adds to the products of a tile of gate and of up, [count][16] each.
void add_to_gate_and_up(const KernelTable& kernels, Scratch& scratch, const Group& group, int tile,
                        const TokenTiles::Tile& part, float* gate, float* up) {
    const int rank = group.adapter->rank;
    const uint16_t* numbers = outward_of_gate_up(group, tile);
    for (int token = 0; token < part.count; ++token) {
        const float* factors = factors_of(scratch, group, part.first + token);
        kernels.add_low_rank_tile(numbers, rank, factors, gate + kTileRows * token);
        kernels.add_low_rank_tile(numbers + rank * kTileRows, rank, factors + rank, up + kTileRows * token);
    }
}

// What the inward matrix of down gives of one choice.
void multiply_inner_inward(const KernelTable& kernels, Scratch& scratch, const Group& group, int token, const float* inner) {
    const ExpertAdapter& adapter = *group.adapter;
    const uint16_t* rows = adapter.down_inward + group.row * adapter.down_rank * adapter.inner_size;
    kernels.dot_bfloats(rows, adapter.down_rank, adapter.inner_size, inner, 1,
                        factors_of(scratch, group, token) + 2 * adapter.rank, 0);
}

// Adds to one choice's product of a tile of down, [16].
void add_to_down(const KernelTable& kernels, Scratch& scratch, const Group& group, int tile, int token, float* result) {
    kernels.add_low_rank_tile(outward_of_down(group, tile), group.adapter->down_rank,
                              factors_of(scratch, group, token) + 2 * group.adapter->rank, result);
}

void gate_and_up(Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    state.pool.run(static_cast<int>(scratch.gate_up_pieces.size()), [&](int index) {
        const Piece& piece = scratch.gate_up_pieces[index];
        const Group& group = scratch.groups[piece.group];
        const ExpertPage& page = group.page;
        TileProducts products(kernels, *page.gate_up, page.hidden_size, *group.input);
        const size_t tile_bytes = page.gate_up->tile_bytes(page.hidden_size);
        for (int range = 0; range < products.num_ranges(); ++range)
            for (int tile = piece.first_tile; tile < piece.last_tile; ++tile) {
                const uint8_t* gate_tile = page.gate_up_tiles + 2 * tile * tile_bytes;
                const uint8_t* up_tile = gate_tile + tile_bytes;
                const uint8_t* next = tile + 1 < piece.last_tile ? up_tile + tile_bytes : up_tile;
                if (group.adapter != nullptr) ask_for_outward(outward_of_gate_up(group, tile), 2 * group.adapter->rank);
                products.multiply_both(gate_tile, up_tile, next, range,
                                       [&](const TokenTiles::Tile& part, float* gate, float* up) {
                    if (group.adapter != nullptr) add_to_gate_and_up(kernels, scratch, group, tile, part, gate, up);
                    kernels.swiglu(gate, up, kTileRows * part.count, gate);
                    for (int token = 0; token < part.count; ++token)
                        std::copy_n(gate + kTileRows * token, kTileRows,
                                    &scratch.inner[group.inner_at + static_cast<size_t>(part.first + token) * page.inner_size +
                                                   static_cast<size_t>(tile) * kTileRows]);
                });
            }
    });
}

// The first token whose activations overflowed, or -1.
int64_t quantize_inner(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    const int inner_rows = rows_each(call);
    std::atomic<int64_t> broken{call.num_tokens};
    const auto fill_tile = [&](const Place& place) {
        Group& group = scratch.groups[place.group];
        group.inner.fill(place.index, *group.page.down, group.inner_rows, nullptr);
    };
    state.pool.run(static_cast<int>(scratch.rows.size()), [&](int index) {
        const Place place = scratch.rows[index];
        Group& group = scratch.groups[place.group];
        float* row = &scratch.inner[group.inner_at + static_cast<size_t>(place.index) * group.page.inner_size];
        if (group.adapter != nullptr) multiply_inner_inward(kernels, scratch, group, place.index, row);
        const bool is_finite = inner_rows == 2 ? group.inner_rows.fill_twice(kernels, 2 * place.index, row)
                                               : group.inner_rows.fill(kernels, place.index, row);
        if (!is_finite)
            lower_to(broken, scratch.tokens[group.first + place.index]);
        else if (group.count == 1)
            fill_tile({place.group, 0});
    });
    if (broken.load() < call.num_tokens) return broken.load();
    state.pool.run(static_cast<int>(scratch.inner_tiles.size()), [&](int index) {
        fill_tile(scratch.inner_tiles[index]);
    });
    return -1;
}

void down(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    const int inner_rows = rows_each(call);
    state.pool.run(static_cast<int>(scratch.down_pieces.size()), [&](int piece) {
        const int first_tile = scratch.down_pieces[piece].first_tile, last_tile = scratch.down_pieces[piece].last_tile;
        const int first_row = first_tile * kTileRows, last_row = std::min(call.hidden_size, last_tile * kTileRows);
        for (int token = 0; token < call.num_tokens && !call.adds; ++token) {
            float* row = call.out + static_cast<size_t>(token) * call.hidden_size;
            std::fill(row + first_row, row + last_row, 0.0f);
        }
        // Experts outside, tiles inside: each expert's tiles are one stream.
        for (int number = 0; number < scratch.num_groups; ++number) {
            const Group& group = scratch.groups[number];
            const ExpertPage& page = group.page;
            const size_t tile_bytes = page.down->tile_bytes(page.inner_size);
            TileProducts products(kernels, *page.down, page.inner_size, group.inner);
            for (int range = 0; range < products.num_ranges(); ++range)
                for (int tile = first_tile; tile < last_tile; ++tile) {
                    const int at = tile * kTileRows, num_rows = std::min(kTileRows, call.hidden_size - at);
                    const uint8_t* here = page.down_tiles + tile * tile_bytes;
                    const uint8_t* next = here;
                    if (group.adapter != nullptr) ask_for_outward(outward_of_down(group, tile), group.adapter->down_rank);
                    if (tile + 1 < last_tile) {
                        next = here + tile_bytes;
                    } else if (number + 1 < scratch.num_groups) {
                        const ExpertPage& other = scratch.groups[number + 1].page;
                        next = other.down_tiles + first_tile * other.down->tile_bytes(other.inner_size);
                    }
                    products.multiply(here, next, range, [&](const TokenTiles::Tile& part, float* result) {
                        // Two rows of a choice lie side by side, in one part: widths are even. They are one number before
                        // they are added, so that a sum over choices is the same whoever makes it.
                        for (int index = 0; index < part.count; index += inner_rows) {
                            const int own_choice = (part.first + index) / inner_rows;
                            const Choice& choice = scratch.choices[group.first + own_choice];
                            float* row = call.out + static_cast<size_t>(choice.token) * call.hidden_size + at;
                            float* own = result + kTileRows * index;
                            for (int i = 0; i < num_rows && inner_rows == 2; ++i) own[i] += own[kTileRows + i];
                            if (group.adapter != nullptr) add_to_down(kernels, scratch, group, tile, own_choice, own);
                            for (int i = 0; i < num_rows; ++i) row[i] += choice.weight * own[i];
                        }
                    });
                }
        }
    });
}

}  // namespace

ExpertsResult packed_experts(const ExpertsCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    Scratch& scratch = scratch_of<Scratch>(state);
    if (const int64_t expert = collect_groups(call, scratch); expert != kAllUsable)
        return {ExpertsResult::kBrokenPage, expert};
    if (scratch.num_groups == 0) {
        if (!call.adds) std::fill_n(call.out, static_cast<size_t>(call.num_tokens) * call.hidden_size, 0.0f);
        return {ExpertsResult::kDone, 0};
    }
    take_memory(call, state, scratch);
    cut_pieces(call, state, scratch);
    if (const int64_t token = quantize_input(call, state, scratch); token >= 0)
        return {ExpertsResult::kBrokenToken, token};
    multiply_inward(call, state, scratch);
    gate_and_up(state, scratch);
    if (const int64_t token = quantize_inner(call, state, scratch); token >= 0)
        return {ExpertsResult::kBrokenToken, token};
    down(call, state, scratch);
    return {ExpertsResult::kDone, 0};
}

}  // namespace ernie_local
