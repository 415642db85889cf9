#include "decode_ops.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime.hpp"

namespace ernie_local {
namespace {

// A piece of the context worth a thread's while.
constexpr int64_t kLeastPiece = 64;
// Numbers of a norm that are worth more than one thread.
constexpr size_t kLeastNumbers = 1 << 16;

struct RouteScratch {
    std::vector<float> scores, biased;
};

struct AttentionScratch {
    std::vector<float> numbers;
    std::vector<AttendPart> parts;
};

// Where the parts of one thread's work start: no two threads write to one cache line.
size_t padded(size_t floats) { return (floats + 15) / 16 * 16; }

bool goes_before(float one, float other) { return one > other || (std::isnan(one) && !std::isnan(other)); }

// The router's choice for one token; `scores` are spent.
void choose(const RouteCall& call, int token, float* scores, float* biased) {
    int64_t* ids = call.expert_ids + static_cast<size_t>(token) * call.top_k;
    float* weights = call.expert_weights + static_cast<size_t>(token) * call.top_k;
    constexpr float kTaken = -1.0f;  // no score is below 0
    for (int expert = 0; expert < call.num_experts; ++expert) biased[expert] = scores[expert] + call.bias[expert];
    float total = 0.0f;
    for (int choice = 0; choice < call.top_k; ++choice) {
        int best = -1;
        for (int expert = 0; expert < call.num_experts; ++expert)
            if (scores[expert] != kTaken && (best < 0 || goes_before(biased[expert], biased[best]))) best = expert;
        ids[choice] = best;
        weights[choice] = scores[best];
        total += scores[best];
        scores[best] = kTaken;
    }
    const float divisor = total < call.norm_min ? call.norm_min : total;
    for (int choice = 0; choice < call.top_k; ++choice) weights[choice] /= divisor;
}

}  // namespace

void rms_norm(const float* hidden, int num_tokens, const float* weight, int size, float eps, float* out) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const auto task = [&](int token) {
        const size_t at = static_cast<size_t>(token) * size;
        state.kernels->rms_norm(hidden + at, weight, size, eps, out + at);
    };
    // To wake threads takes longer than a few rows.
    if (static_cast<size_t>(num_tokens) * size <= kLeastNumbers)
        for (int token = 0; token < num_tokens; ++token) task(token);
    else
        state.pool.run(num_tokens, task);
}

void route(const RouteCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const KernelTable& kernels = *state.kernels;
    RouteScratch& scratch = scratch_of<RouteScratch>(state);
    std::vector<float>&scores = scratch.scores, &biased = scratch.biased;
    const size_t num_experts = call.num_experts;
    scores.resize(call.num_tokens * num_experts);
    biased.resize(scores.size());
    // Two pieces for each thread even out their start; rows of one piece lie together.
    const int pieces = std::min((call.num_experts + 3) / 4, 2 * state.pool.num_threads());
    state.pool.run(pieces, [&](int piece) {
        const size_t first = num_experts * piece / pieces, last = num_experts * (piece + 1) / pieces;
        kernels.dot(call.weight + first * call.hidden_size, static_cast<int>(last - first), call.hidden_size, call.hidden,
                    call.num_tokens, scores.data() + first, num_experts);
    });
    state.pool.run(call.num_tokens, [&](int token) {
        float* row = scores.data() + token * num_experts;
        kernels.softmax(row, call.num_experts);
        choose(call, token, row, biased.data() + token * num_experts);
    });
}

void decode_attention(const AttentionCall& call) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const KernelTable& kernels = *state.kernels;
    const int head_dim = call.head_dim, group = call.heads / call.kv_heads, num_threads = state.pool.num_threads();
    const int64_t visible = call.length + 1;
    // A few pieces for each thread: even loads, and each piece one stream long enough for the prefetchers.
    const int64_t wanted = num_threads == 1 ? 1 : (4 * num_threads + call.kv_heads - 1) / call.kv_heads;
    const int pieces = static_cast<int>(std::min(wanted, (visible + kLeastPiece - 1) / kLeastPiece));
    const int num_tasks = call.kv_heads * pieces;

    AttentionScratch& kept = scratch_of<AttentionScratch>(state);
    std::vector<float>& scratch = kept.numbers;
    std::vector<AttendPart>& parts = kept.parts;
    const size_t sums = padded(static_cast<size_t>(group) * attend_stride(head_dim)), numbers = padded(2 * group);
    const size_t own = sums + numbers + padded(attend_scratch(group, head_dim));
    scratch.resize(own * num_tasks);
    parts.resize(num_tasks);

    const auto attend = kernels.attend[static_cast<int>(call.format)];
    const size_t number_bytes = call.format == CacheFormat::kFloat32 ? 4 : call.format == CacheFormat::kInt8 ? 1 : 2;
    state.pool.run(num_tasks, [&](int index) {
        const size_t head = index / pieces, piece = index % pieces;
        float* mine = &scratch[own * index];
        parts[index] = {mine, mine + sums, mine + sums + group};
        const size_t state_at = head * call.capacity * head_dim * number_bytes, scales_at = head * call.capacity;
        const bool is_last = static_cast<int>(piece) == pieces - 1, has_scales = call.key_scales != nullptr;
        AttendTask task{};
        task.queries = call.queries + head * group * head_dim;
        task.new_key = is_last ? call.keys + head * head_dim : nullptr;
        task.new_value = is_last ? call.values + head * head_dim : nullptr;
        task.cosines = call.cosines;
        task.sines = call.sines;
        task.keys = call.cached_keys + state_at;
        task.values = call.cached_values + state_at;
        task.key_scales = has_scales ? call.key_scales + scales_at : nullptr;
        task.value_scales = has_scales ? call.value_scales + scales_at : nullptr;
        task.first = visible * static_cast<int64_t>(piece) / pieces;
        task.last = visible * static_cast<int64_t>(piece + 1) / pieces;
        task.group = group;
        task.head_dim = head_dim;
        task.scratch = mine + sums + numbers;
        task.part = parts[index];
        attend(task);
    });
    for (int head = 0; head < call.heads; ++head)
        kernels.merge(&parts[static_cast<size_t>(head / group) * pieces], pieces, head % group, head_dim,
                      call.out + static_cast<size_t>(head) * head_dim);
}

}  // namespace ernie_local
