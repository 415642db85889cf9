#include "packed_experts.hpp"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <vector>

#include "expert_page.hpp"
#include "runtime.hpp"
#include "tokens.hpp"

namespace ernie_local {
namespace {

// One expert with the tokens that chose it.
struct Group {
    ExpertPage page;
    std::vector<int> tokens;
    std::vector<float> weights;
    size_t inner_at = 0;  // of its [tokens][inner_size] activations
    const TokenTiles* input = nullptr;
    TokenTiles own_input, inner;
    QuantizedRows inner_rows;
};

struct Piece {
    int group, first_tile, last_tile;
};

// Everything that one call needs, kept for the next one.
struct Scratch {
    std::map<int64_t, int> group_of_slot;
    std::deque<Group> groups;
    std::map<int, QuantizedRows> input_by_group_size;
    std::map<int, TokenTiles> shared_input;  // by format id, where there is one token
    std::vector<float> inner;
    std::vector<Piece> pieces;
    std::vector<std::pair<int, int>> rows;  // (group, token within it)
};

void lower_to(std::atomic<int64_t>& lowest, int64_t value) {
    int64_t seen = lowest.load();
    while (value < seen && !lowest.compare_exchange_weak(seen, value)) {
    }
}

// Groups in the order of their slots; the first unusable page's slot, or -1.
int64_t collect_groups(const ExpertsCall& call, Scratch& scratch) {
    scratch.group_of_slot.clear();
    const int64_t num_choices = static_cast<int64_t>(call.num_tokens) * call.top_k;
    for (int64_t i = 0; i < num_choices; ++i) scratch.group_of_slot.emplace(call.slot_ids[i], 0);
    scratch.groups.resize(scratch.group_of_slot.size());
    int index = 0;
    for (auto& [slot, group_index] : scratch.group_of_slot) {
        Group& group = scratch.groups[index];
        group.tokens.clear();
        group.weights.clear();
        if (!read_page(call.slots + slot * call.slot_bytes, call.slot_bytes, call.hidden_size, group.page)) return slot;
        group_index = index++;
    }
    for (int64_t i = 0; i < num_choices; ++i) {
        Group& group = scratch.groups[scratch.group_of_slot[call.slot_ids[i]]];
        group.tokens.push_back(static_cast<int>(i / call.top_k));
        group.weights.push_back(call.weights[i]);
    }
    size_t inner_at = 0;
    scratch.rows.clear();
    for (size_t i = 0; i < scratch.groups.size(); ++i) {
        Group& group = scratch.groups[i];
        const int count = static_cast<int>(group.tokens.size());
        group.inner_at = inner_at;
        inner_at += static_cast<size_t>(count) * group.page.inner_size;
        for (int token = 0; token < count; ++token) scratch.rows.emplace_back(static_cast<int>(i), token);
    }
    scratch.inner.resize(inner_at);
    return -1;
}

// The first token with a NaN or an infinity, or -1.
int64_t quantize_input(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    scratch.input_by_group_size.clear();
    for (const Group& group : scratch.groups) scratch.input_by_group_size[group.page.gate_up->group];
    std::atomic<int64_t> broken{call.num_tokens};
    for (auto& [group_size, rows] : scratch.input_by_group_size) {
        rows.resize(call.num_tokens, call.hidden_size, group_size);
        state.pool.run(call.num_tokens, [&, quantized = &rows](int token) {
            const float* row = call.input + static_cast<size_t>(token) * call.hidden_size;
            if (!quantized->fill(kernels, token, row)) lower_to(broken, token);
        });
    }
    if (broken.load() < call.num_tokens) return broken.load();
    scratch.shared_input.clear();
    const int only = 0;
    for (Group& group : scratch.groups) {
        if (call.num_tokens > 1) {
            group.input = &group.own_input;
            continue;
        }
        const FormatInfo& format = *group.page.gate_up;
        auto [found, is_new] = scratch.shared_input.try_emplace(format.id);
        if (is_new) found->second.build(kernels, format, scratch.input_by_group_size[format.group], &only, 1);
        group.input = &found->second;
    }
    if (call.num_tokens > 1) {
        state.pool.run(static_cast<int>(scratch.groups.size()), [&](int index) {
            Group& group = scratch.groups[index];
            const FormatInfo& format = *group.page.gate_up;
            group.own_input.build(kernels, format, scratch.input_by_group_size[format.group], group.tokens.data(),
                                  static_cast<int>(group.tokens.size()));
        });
    }
    return -1;
}

void gate_and_up(Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    const int num_groups = static_cast<int>(scratch.groups.size());
    // Even loads need a few pieces for each thread, streams that the prefetchers follow need long ones.
    const int pieces_each = std::max(1, (4 * state.pool.num_threads() + num_groups - 1) / num_groups);
    scratch.pieces.clear();
    for (int index = 0; index < num_groups; ++index) {
        const int num_tiles = scratch.groups[index].page.gate_up->num_tiles(scratch.groups[index].page.inner_size);
        const int count = std::min(num_tiles, pieces_each);
        for (int piece = 0; piece < count; ++piece)
            scratch.pieces.push_back({index, num_tiles * piece / count, num_tiles * (piece + 1) / count});
    }
    state.pool.run(static_cast<int>(scratch.pieces.size()), [&](int index) {
        float gate[12 * kTileRows], up[12 * kTileRows];
        const Piece& piece = scratch.pieces[index];
        const Group& group = scratch.groups[piece.group];
        const ExpertPage& page = group.page;
        const auto* kernel = kernels.tile[page.gate_up->id - 1];
        const size_t tile_bytes = page.gate_up->tile_bytes(page.hidden_size);
        for (int tile = piece.first_tile; tile < piece.last_tile; ++tile) {
            const uint8_t* gate_tile = page.gate_up_tiles + 2 * tile * tile_bytes;
            for (const auto& part : group.input->tiles()) {
                const TokenTile tokens = group.input->tokens(part);
                kernel[part.width_index](gate_tile, page.hidden_size, tokens, gate);
                kernel[part.width_index](gate_tile + tile_bytes, page.hidden_size, tokens, up);
                kernels.swiglu(gate, up, kTileRows * part.count, gate);
                for (int token = 0; token < part.count; ++token)
                    std::copy_n(gate + kTileRows * token, kTileRows,
                                &scratch.inner[group.inner_at + static_cast<size_t>(part.first + token) * page.inner_size +
                                               static_cast<size_t>(tile) * kTileRows]);
            }
        }
    });
}

// The first token whose activations overflowed, or -1.
int64_t quantize_inner(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    for (Group& group : scratch.groups)
        group.inner_rows.resize(static_cast<int>(group.tokens.size()), group.page.inner_size, group.page.down->group);
    std::atomic<int64_t> broken{call.num_tokens};
    state.pool.run(static_cast<int>(scratch.rows.size()), [&](int index) {
        const auto [group_index, token] = scratch.rows[index];
        Group& group = scratch.groups[group_index];
        const float* row = &scratch.inner[group.inner_at + static_cast<size_t>(token) * group.page.inner_size];
        if (!group.inner_rows.fill(kernels, token, row)) lower_to(broken, group.tokens[token]);
    });
    if (broken.load() < call.num_tokens) return broken.load();
    state.pool.run(static_cast<int>(scratch.groups.size()), [&](int index) {
        Group& group = scratch.groups[index];
        std::vector<int> all(group.tokens.size());
        for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int>(i);
        group.inner.build(kernels, *group.page.down, group.inner_rows, all.data(), static_cast<int>(all.size()));
    });
    return -1;
}

void down(const ExpertsCall& call, Runtime& state, Scratch& scratch) {
    const KernelTable& kernels = *state.kernels;
    const int num_tiles = (call.hidden_size + kTileRows - 1) / kTileRows;
    const int num_pieces = std::min(num_tiles, 4 * state.pool.num_threads());
    state.pool.run(num_pieces, [&](int piece) {
        float result[12 * kTileRows];
        const int first_tile = num_tiles * piece / num_pieces, last_tile = num_tiles * (piece + 1) / num_pieces;
        const int first_row = first_tile * kTileRows, last_row = std::min(call.hidden_size, last_tile * kTileRows);
        for (int token = 0; token < call.num_tokens; ++token) {
            float* row = call.out + static_cast<size_t>(token) * call.hidden_size;
            std::fill(row + first_row, row + last_row, 0.0f);
        }
        // Experts outside, tiles inside: each expert's tiles are one stream.
        for (const Group& group : scratch.groups) {
            const ExpertPage& page = group.page;
            const size_t tile_bytes = page.down->tile_bytes(page.inner_size);
            for (int tile = first_tile; tile < last_tile; ++tile) {
                const int at = tile * kTileRows, num_rows = std::min(kTileRows, call.hidden_size - at);
                for (const auto& part : group.inner.tiles()) {
                    kernels.tile[page.down->id - 1][part.width_index](page.down_tiles + tile * tile_bytes, page.inner_size,
                                                                      group.inner.tokens(part), result);
                    for (int token = 0; token < part.count; ++token) {
                        const float weight = group.weights[part.first + token];
                        float* row = call.out + static_cast<size_t>(group.tokens[part.first + token]) * call.hidden_size + at;
                        for (int i = 0; i < num_rows; ++i) row[i] += weight * result[kTileRows * token + i];
                    }
                }
            }
        }
    });
}

}  // namespace

ExpertsResult packed_experts(const ExpertsCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    static Scratch scratch;  // of whoever holds the runtime's mutex
    if (const int64_t slot = collect_groups(call, scratch); slot >= 0) return {ExpertsResult::kBrokenPage, slot};
    if (const int64_t token = quantize_input(call, state, scratch); token >= 0)
        return {ExpertsResult::kBrokenToken, token};
    gate_and_up(state, scratch);
    if (const int64_t token = quantize_inner(call, state, scratch); token >= 0)
        return {ExpertsResult::kBrokenToken, token};
    down(call, state, scratch);
    return {ExpertsResult::kDone, 0};
}

}  // namespace ernie_local
