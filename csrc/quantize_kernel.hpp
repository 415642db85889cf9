// The inner loops of choosing codes: a strip of 16 rows at a time, each row in a lane of its own.
//
// Rows of a matrix do not touch each other, so nothing is summed across lanes. Matrices are transposed, [columns][rows]. The Python beside each (quant/ernie_quant/grid.py, gptq.py,
// refine.py) says what is computed, in whole matrices. Knows no threads.
#pragma once

#include <cmath>

#include "kernel_table.hpp"
#include "vector_math.hpp"

namespace ernie_local {
namespace quantizing {

using Strip = float[kLanes];

ERNIE_LOCAL_INLINE void load_strip(const float* from, int count, Strip& to) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = 0.0f;
    std::memcpy(to, from, sizeof(float) * count);
}

ERNIE_LOCAL_INLINE void load_strip(const uint8_t* from, int count, Strip& to) {
    uint8_t bytes[kLanes] = {};
    std::memcpy(bytes, from, count);
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = bytes[lane];
}

ERNIE_LOCAL_INLINE void store_strip(const Strip& from, int count, float* to) {
    std::memcpy(to, from, sizeof(float) * count);
}

ERNIE_LOCAL_INLINE void store_strip(const Strip& from, int count, uint8_t* to) {
    uint8_t bytes[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) bytes[lane] = static_cast<uint8_t>(from[lane]);
    std::memcpy(to, bytes, count);
}

ERNIE_LOCAL_INLINE float smaller(float a, float b) { return a < b ? a : b; }
ERNIE_LOCAL_INLINE float larger(float a, float b) { return a > b ? a : b; }
ERNIE_LOCAL_INLINE int smaller(int a, int b) { return a < b ? a : b; }
ERNIE_LOCAL_INLINE float clamped(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// The code nearest to a weight that is `in_steps` steps from the code that means zero, that code added.
ERNIE_LOCAL_INLINE float nearest_code(float in_steps, float highest) {
    return clamped(std::nearbyint(in_steps), 0.0f, highest);
}

// to[i] -= sum of factors[i * stride + j * step] * from[j], j < size: four at a time, so that no sum waits for itself.
template <class Isa>
ERNIE_LOCAL_INLINE void subtract_products(const float* factors, size_t stride, size_t step, const Strip* from, int size,
                                          Strip* to, int count) {
    using Floats = typename Isa::Floats;
    int i = 0;
    for (; i + 4 <= count; i += 4) {
        const float* at = factors + stride * i;
        Floats sums[4] = {Isa::load(to[i]), Isa::load(to[i + 1]), Isa::load(to[i + 2]), Isa::load(to[i + 3])};
        for (int j = 0; j < size; ++j) {
            const Floats numbers = Isa::load(from[j]);
            for (int k = 0; k < 4; ++k)
                sums[k] = Isa::multiply_subtract_from(Isa::splat(at[stride * k + step * j]), numbers, sums[k]);
        }
        for (int k = 0; k < 4; ++k) Isa::store(to[i + k], sums[k]);
    }
    for (; i < count; ++i) {
        Floats sum = Isa::load(to[i]);
        for (int j = 0; j < size; ++j)
            sum = Isa::multiply_subtract_from(Isa::splat(factors[stride * i + step * j]), Isa::load(from[j]), sum);
        Isa::store(to[i], sum);
    }
}

// Weighted squared error of a group whose weights go to the nearest code.
ERNIE_LOCAL_INLINE void group_error(const Strip* weights, const float* matters, int size, const Strip& step,
                                    const Strip& shift, float highest, Strip& error) {
    Strip inverse;
    for (int lane = 0; lane < kLanes; ++lane) {
        error[lane] = 0.0f;
        inverse[lane] = 1.0f / step[lane];
    }
    for (int column = 0; column < size; ++column) {
        const float weight = matters[column];
        for (int lane = 0; lane < kLanes; ++lane) {
            const float in_steps = weights[column][lane] * inverse[lane] + shift[lane];
            const float away = in_steps - nearest_code(in_steps, highest);
            error[lane] += away * away * weight;
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) error[lane] *= step[lane] * step[lane];
}

ERNIE_LOCAL_INLINE void keep_if_less(const Strip& error, const Strip& first, const Strip& second, Strip& least,
                                     Strip& best_first, Strip& best_second) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const bool better = error[lane] < least[lane];
        least[lane] = better ? error[lane] : least[lane];
        best_first[lane] = better ? first[lane] : best_first[lane];
        best_second[lane] = better ? second[lane] : best_second[lane];
    }
}

// Whole scale and zero around wanted ones, the pair of least `cost(scale, zero, out)`; what `scale` and `zero` hold
// with their cost `least` stays where no pair is better.
template <class WantedZero, class Cost>
ERNIE_LOCAL_INLINE void best_whole_pair(const CodeRange& range, const Strip& wanted_scale, const WantedZero& wanted_zero,
                                        const Cost& cost, Strip& least, Strip& scale, Strip& zero) {
    Strip tried_scale, tried_zero, exact_zero, error;
    for (int up = 0; up < 2; ++up) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float whole = up ? std::ceil(wanted_scale[lane]) : std::floor(wanted_scale[lane]);
            tried_scale[lane] = clamped(whole, 1.0f, range.highest_scale);
        }
        wanted_zero(tried_scale, exact_zero);
        for (int zero_up = 0; zero_up < 2; ++zero_up) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const float whole = zero_up ? std::ceil(exact_zero[lane]) : std::floor(exact_zero[lane]);
                tried_zero[lane] = clamped(whole, 0.0f, range.highest_zero);
            }
            cost(tried_scale, tried_zero, error);
            keep_if_less(error, tried_scale, tried_zero, least, scale, zero);
        }
    }
}

template <class Isa>
void search_ranges(const SearchTask& task, int first_row, int count) {
    constexpr int kFactors = 13;  // shares of the range, 1 to 0.4
    Strip weights[kLargestGroup];
    const CodeRange& range = task.range;
    for (int group = 0, start = 0; start < task.columns; ++group, start += range.group_size) {
        const int size = smaller(range.group_size, task.columns - start);
        Strip low = {}, high = {};
        for (int column = 0; column < size; ++column) {
            load_strip(task.weights + task.rows * (start + column) + first_row, count, weights[column]);
            for (int lane = 0; lane < kLanes; ++lane) {
                low[lane] = smaller(low[lane], weights[column][lane]);
                high[lane] = larger(high[lane], weights[column][lane]);
            }
        }
        Strip step, shift, error, least, best_step = {}, best_shift = {};
        for (int lane = 0; lane < kLanes; ++lane) least[lane] = INFINITY;
        for (int tried = 0; tried < kFactors; ++tried) {
            const float factor = 1.0f - 0.05f * static_cast<float>(tried);
            for (int lane = 0; lane < kLanes; ++lane) {
                const float wanted = (high[lane] - low[lane]) * (factor / range.highest_code);
                step[lane] = larger(wanted, task.least_scale);
                shift[lane] = -low[lane] * factor / step[lane];
            }
            group_error(weights, task.matters + start, size, step, shift, range.highest_code, error);
            keep_if_less(error, step, shift, least, best_step, best_shift);
        }
        store_strip(best_step, count, task.steps + task.rows * group + first_row);
        store_strip(best_shift, count, task.shifts + task.rows * group + first_row);
    }
}

template <class Isa>
void choose_whole(const WholeTask& task, int first_row, int count) {
    Strip weights[kLargestGroup];
    Strip row_steps;
    const CodeRange& range = task.range;
    load_strip(task.row_steps + first_row, count, row_steps);
    for (int lane = count; lane < kLanes; ++lane) row_steps[lane] = 1.0f;
    for (int group = 0, start = 0; start < task.columns; ++group, start += range.group_size) {
        const int size = smaller(range.group_size, task.columns - start);
        for (int column = 0; column < size; ++column)
            load_strip(task.weights + task.rows * (start + column) + first_row, count, weights[column]);
        Strip wanted, shift, least, scale = {}, zero = {};
        load_strip(task.steps + task.rows * group + first_row, count, wanted);
        load_strip(task.shifts + task.rows * group + first_row, count, shift);
        for (int lane = 0; lane < kLanes; ++lane) {
            wanted[lane] /= row_steps[lane];
            least[lane] = INFINITY;
        }
        const auto wanted_zero = [&](const Strip&, Strip& exact) {
            for (int lane = 0; lane < kLanes; ++lane) exact[lane] = shift[lane] * range.zero_divisor;
        };
        const auto cost = [&](const Strip& tried_scale, const Strip& tried_zero, Strip& error) {
            Strip step, in_codes;
            for (int lane = 0; lane < kLanes; ++lane) {
                step[lane] = tried_scale[lane] * row_steps[lane];
                in_codes[lane] = tried_zero[lane] / range.zero_divisor;
            }
            group_error(weights, task.matters + start, size, step, in_codes, range.highest_code, error);
        };
        best_whole_pair(range, wanted, wanted_zero, cost, least, scale, zero);
        store_strip(scale, count, task.scales + task.rows * group + first_row);
        store_strip(zero, count, task.zeros + task.rows * group + first_row);
    }
}

// Columns [start, stop) one after the other; each one's error goes into those after it within the block: at once into
// the next few, into the others when these are done.
template <class Isa>
void gptq_block(const GptqTask& task, int first_row, int count) {
    constexpr int kFew = 16;
    Strip left[kQuantizeBlock], errors[kFew];
    const int size = task.stop - task.start;
    for (int column = 0; column < size; ++column)
        load_strip(task.left + task.rows * (task.start + column) + first_row, count, left[column]);
    for (int few = 0; few < size; few += kFew) {
        const int end = smaller(few + kFew, size);
        for (int column = few; column < end; ++column) {
            const size_t at = task.start + column;
            const float* factor = task.factor + task.columns * at + task.start;
            const size_t group = task.group_ids[at];
            Strip step, shift, code;
            Strip& error = errors[column - few];
            load_strip(task.steps + task.rows * group + first_row, count, step);
            load_strip(task.shifts + task.rows * group + first_row, count, shift);
            for (int lane = count; lane < kLanes; ++lane) step[lane] = 1.0f;
            const float own = factor[column];
            for (int lane = 0; lane < kLanes; ++lane) {
                code[lane] = nearest_code(left[column][lane] / step[lane] + shift[lane], task.highest_code);
                error[lane] = (left[column][lane] - (code[lane] - shift[lane]) * step[lane]) / own;
            }
            subtract_products<Isa>(factor + column + 1, 1, 0, &error, 1, left + column + 1, end - column - 1);
            store_strip(code, count, task.codes + task.rows * at + first_row);
            store_strip(error, count, task.errors + task.rows * column + first_row);
        }
        const float* factor = task.factor + task.columns * (task.start + few) + task.start;
        subtract_products<Isa>(factor + end, 1, task.columns, errors, end - few, left + end, size - end);
    }
}

// One group of a strip: its columns' codes and pulls, with what the group's scale and zero mean.
struct RefinedGroup {
    int size;
    const float* own;  // the group's square of the Hessian, rows `stride` apart
    size_t stride;
    Strip codes[kLargestGroup];
    Strip pull[kLargestGroup];
    Strip row_scales, scale, zero, step, shift;

    ERNIE_LOCAL_INLINE void follow(const CodeRange& range) {
        for (int lane = 0; lane < kLanes; ++lane) {
            step[lane] = scale[lane] * row_scales[lane];
            shift[lane] = zero[lane] / range.zero_divisor;
        }
    }
};

// Each column's codes in turn: the least of the parabola in a value lies at value + pull / H_jj.
template <class Isa>
ERNIE_LOCAL_INLINE void descend(RefinedGroup& group, const CodeRange& range) {
    Strip change;
    for (int column = 0; column < group.size; ++column) {
        const float* own = group.own + group.stride * column;
        for (int lane = 0; lane < kLanes; ++lane) {
            const float wanted = group.pull[column][lane] / own[column] / group.step[lane] + group.codes[column][lane];
            const float code = nearest_code(wanted, range.highest_code);
            change[lane] = (code - group.codes[column][lane]) * group.step[lane];
            group.codes[column][lane] = code;
        }
        subtract_products<Isa>(own, 1, 0, &change, 1, group.pull, group.size);
    }
}

// A value is s c + b with b = -s z; the error is a parabola in (s, b).
template <class Isa>
ERNIE_LOCAL_INLINE void refit(RefinedGroup& group, const CodeRange& range) {
    Strip code_code = {}, code_one = {}, code_target = {}, one_target = {};
    // The group's square times its codes, and times its values, both with their signs turned.
    Strip values[kLargestGroup], moved[kLargestGroup] = {};
    float one_one = 0.0f;
    for (int column = 0; column < group.size; ++column) {
        for (int other = 0; other < group.size; ++other) one_one += group.own[group.stride * column + other];
        for (int lane = 0; lane < kLanes; ++lane)
            values[column][lane] = (group.shift[lane] - group.codes[column][lane]) * group.step[lane];
    }
    subtract_products<Isa>(group.own, group.stride, 1, values, group.size, group.pull, group.size);
    subtract_products<Isa>(group.own, group.stride, 1, group.codes, group.size, moved, group.size);
    for (int column = 0; column < group.size; ++column) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float code = group.codes[column][lane], target = group.pull[column][lane];
            code_code[lane] -= code * moved[column][lane];
            code_one[lane] -= moved[column][lane];
            code_target[lane] += code * target;
            one_target[lane] += target;
        }
    }
    Strip wanted, least;
    for (int lane = 0; lane < kLanes; ++lane) {
        const float determinant = code_code[lane] * one_one - code_one[lane] * code_one[lane];
        const float step = (code_target[lane] * one_one - one_target[lane] * code_one[lane]) / determinant;
        const float whole = step / group.row_scales[lane];
        wanted[lane] = whole == whole ? whole : 1.0f;
    }
    const auto wanted_zero = [&](const Strip& scale, Strip& exact) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float step = scale[lane] * group.row_scales[lane];
            const float offset = (one_target[lane] - step * code_one[lane]) / one_one;
            exact[lane] = -offset / step * range.zero_divisor;
        }
    };
    const auto cost = [&](const Strip& scale, const Strip& zero, Strip& error) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const float step = scale[lane] * group.row_scales[lane];
            const float offset = -step * zero[lane] / range.zero_divisor;
            error[lane] = step * step * code_code[lane] + 2.0f * step * offset * code_one[lane] +
                          offset * offset * one_one -
                          2.0f * (step * code_target[lane] + offset * one_target[lane]);
        }
    };
    cost(group.scale, group.zero, least);
    best_whole_pair(range, wanted, wanted_zero, cost, least, group.scale, group.zero);
    group.follow(range);
}

// The groups of columns [start, stop) one after the other. Pulls are read only: what all columns of the matrix are
// pulled by the changes is one product for the caller.
template <class Isa>
void refine_block(const RefineTask& task, int first_row, int count) {
    const CodeRange& range = task.range;
    const int block = task.stop - task.start;
    Strip pull[kQuantizeBlock], change[kLargestGroup];
    RefinedGroup group;
    group.stride = task.columns;
    load_strip(task.row_scales + first_row, count, group.row_scales);
    for (int lane = count; lane < kLanes; ++lane) group.row_scales[lane] = 1.0f;
    for (int column = 0; column < block; ++column)
        load_strip(task.pull + task.rows * (task.start + column) + first_row, count, pull[column]);
    for (int start = 0; start < block; start += range.group_size) {
        const size_t first_column = task.start + start;
        const size_t metadata_at = task.rows * (first_column / range.group_size) + first_row;
        group.size = smaller(range.group_size, block - start);
        group.own = task.hessian + task.columns * first_column + first_column;
        load_strip(task.scales + metadata_at, count, group.scale);
        load_strip(task.zeros + metadata_at, count, group.zero);
        for (int lane = count; lane < kLanes; ++lane) group.scale[lane] = 1.0f;
        group.follow(range);
        for (int column = 0; column < group.size; ++column) {
            load_strip(task.codes + task.rows * (first_column + column) + first_row, count, group.codes[column]);
            for (int lane = 0; lane < kLanes; ++lane) {
                group.pull[column][lane] = pull[start + column][lane];
                change[column][lane] = (group.codes[column][lane] - group.shift[lane]) * group.step[lane];
            }
        }
        if (task.with_codes) descend<Isa>(group, range);
        if (task.with_scales) refit<Isa>(group, range);
        for (int column = 0; column < group.size; ++column) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const float value = (group.codes[column][lane] - group.shift[lane]) * group.step[lane];
                change[column][lane] = value - change[column][lane];
            }
            store_strip(group.codes[column], count, task.codes + task.rows * (first_column + column) + first_row);
            store_strip(change[column], count, task.change + task.rows * (start + column) + first_row);
        }
        store_strip(group.scale, count, task.scales + metadata_at);
        store_strip(group.zero, count, task.zeros + metadata_at);
        // The groups before it in the block are done, and the caller brings all pulls up to date afterwards.
        const int later = start + group.size;
        subtract_products<Isa>(task.hessian + task.columns * (task.start + later) + first_column, task.columns, 1, change,
                               group.size, pull + later, block - later);
    }
}

}  // namespace quantizing
}  // namespace ernie_local
