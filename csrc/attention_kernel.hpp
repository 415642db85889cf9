// One new token's attention over a piece of one key-value head's context, for all query heads that share it.
//
// Scores go through a running maximum, so that no exponential overflows however the context is cut.
#pragma once

#include "row_kernels.hpp"

namespace ernie_local {

// Neighbouring pairs turned, as rotate_pairs does (ernie_local/model/rope.py): products are rounded before they are
// added (-ffp-contract=off), for a key to round into the cache as it does there.
ERNIE_LOCAL_INLINE void turn_pairs(const float* state, const float* cosines, const float* sines, int head_dim,
                                   float scale, float* out) {
    for (int i = 0; i < head_dim / 2; ++i) {
        const float even = state[2 * i], odd = state[2 * i + 1];
        out[2 * i] = (even * cosines[i] - odd * sines[i]) * scale;
        out[2 * i + 1] = (odd * cosines[i] + even * sines[i]) * scale;
    }
}

template <class Isa, class Numbers>
ERNIE_LOCAL_INLINE void store_new_token(const AttendTask& task, float* turned) {
    const int64_t token = task.last - 1;
    const size_t row_at = Numbers::kBytes * task.head_dim * token;
    turn_pairs(task.new_key, task.cosines, task.sines, task.head_dim, 1.0f, turned);
    const float key_scale = Numbers::write(turned, task.head_dim, task.keys + row_at);
    const float value_scale = Numbers::write(task.new_value, task.head_dim, task.values + row_at);
    if constexpr (Numbers::kHasScales) {
        task.key_scales[token] = key_scale;
        task.value_scales[token] = value_scale;
    }
}

template <class Isa, CacheFormat kFormat>
void store_token(const AttendTask& task) {
    float turned[kMostHeadDim];
    store_new_token<Isa, Stored<Isa, kFormat>>(task, turned);
}

ERNIE_LOCAL_INLINE void multiply_by(float* values, const float* factors, int count) {
    for (int i = 0; i < count; ++i) values[i] *= factors[i];
}

// Scores of one query become weights; what was summed under a smaller maximum is brought to the new one.
template <class Isa>
ERNIE_LOCAL_INLINE void weigh(float* scores, int count, float* out, int out_size, float& largest, float& total) {
    const float greatest = greatest_of<Isa>(scores, count, largest);
    if (greatest > largest) {
        const float factor = exp_bounded(largest - greatest);
        for (int i = 0; i < out_size; ++i) out[i] *= factor;
        total *= factor;
        largest = greatest;
    }
    total += exponentials<Isa>(scores, count, largest);
}

template <class Isa, CacheFormat kFormat>
void attend(const AttendTask& task) {
    using Numbers = Stored<Isa, kFormat>;
    const int head_dim = task.head_dim, group = task.group, stride = attend_stride(head_dim);
    float* queries = task.scratch;
    float* turned = queries + static_cast<size_t>(group) * head_dim;
    float* scores = turned + head_dim;
    const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    for (int query = 0; query < group; ++query)
        turn_pairs(task.queries + static_cast<size_t>(query) * head_dim, task.cosines, task.sines, head_dim, scale,
                   queries + static_cast<size_t>(query) * head_dim);
    if (task.new_key != nullptr) store_new_token<Isa, Numbers>(task, turned);

    const AttendPart& part = task.part;
    for (int i = 0; i < group * stride; ++i) part.sums[i] = 0.0f;
    for (int query = 0; query < group; ++query) {
        part.largest[query] = -FLT_MAX;
        part.total[query] = 0.0f;
    }
    for (int64_t token = task.first; token < task.last; token += kAttendBlock) {
        const int count = static_cast<int>(task.last - token < kAttendBlock ? task.last - token : kAttendBlock);
        const size_t at = Numbers::kBytes * head_dim * token;
        const uint8_t* values = task.values + at;
        dot_rows<Isa, Numbers>(task.keys + at, count, head_dim, queries, group, scores, kAttendBlock, values);
        for (int query = 0; query < group; ++query) {
            float* of_query = scores + query * kAttendBlock;
            if constexpr (Numbers::kHasScales) multiply_by(of_query, task.key_scales + token, count);
            weigh<Isa>(of_query, count, part.sums + query * stride, head_dim, part.largest[query], part.total[query]);
            if constexpr (Numbers::kHasScales) multiply_by(of_query, task.value_scales + token, count);
        }
        const uint8_t* next_keys = task.keys + at + Numbers::kBytes * head_dim * count;
        add_rows<Isa, Numbers>(values, count, head_dim, scores, kAttendBlock, group, part.sums, stride, next_keys);
    }
}

// out[head_dim]: one query's pieces, each under its own maximum, brought to the greatest and divided by the total.
template <class Isa>
void merge_parts(const AttendPart* parts, int num_parts, int query, int head_dim, float* out) {
    float largest = -FLT_MAX, total = 0.0f;
    for (int i = 0; i < num_parts; ++i) {
        const float candidate = parts[i].largest[query];
        largest = candidate > largest ? candidate : largest;
    }
    for (int i = 0; i < head_dim; ++i) out[i] = 0.0f;
    for (int part = 0; part < num_parts; ++part) {
        const float factor = exp_bounded(parts[part].largest[query] - largest);
        const float* sums = parts[part].sums + query * attend_stride(head_dim);
        total += factor * parts[part].total[query];
        for (int i = 0; i < head_dim; ++i) out[i] += factor * sums[i];
    }
    for (int i = 0; i < head_dim; ++i) out[i] /= total;
}

}  // namespace ernie_local
