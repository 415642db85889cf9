// The inner loops of choosing the codes of w2t, which are steps along a ring of columns: what level a code means depends
// on the first bits of those before it, and before the first column comes the last one.
//
// Viterbi's search: of all codes so far one survivor is kept for each state, which is the last kTrellisMemory of these
// bits. Each survivor carries its own error feedback (per-survivor processing), because what the columns after it should
// become depends on its codes. quant/ernie_quant/trellis_gptq.py and trellis_refine.py say what is computed.
#pragma once

#include "quantize_kernel.hpp"

namespace ernie_local {
namespace quantizing {

constexpr int kStates = 1 << kTrellisMemory;
constexpr int kWindows = 2 * kStates;  // a state and, above it, the bit that follows
// The next three mirror quant/ernie_quant/trellis_gptq.py.
constexpr int kDecided = 24;           // columns that are decided at a time: so few that survivors stay in the first cache
constexpr int kLookAhead = 24;         // columns after them that have a say
constexpr int kLongestRing = 24;       // up to so many columns, every state is tried as the first one
static_assert(kLongestRing <= kDecided && kLongestStretch <= kDecided, "arrays are that long");
constexpr float kNoWay = INFINITY;     // the cost of a state that cannot be

// Of a code's second bit and a window, less the zero. Mirrors pairs_of_windows in ernie_local/packing/trellis.py.
struct WindowLevels {
    float of[2][kWindows];
};
constexpr WindowLevels window_levels() {
    WindowLevels levels{};
    for (int window = 0; window < kWindows; ++window) {
        const auto bit = [=](int delay) { return window >> (kTrellisMemory - delay) & 1; };
        const int parity = bit(0) ^ bit(kTrellisDelays[1]) ^ bit(kTrellisDelays[2]);
        for (int second = 0; second < 2; ++second)
            levels.of[second][window] =
                static_cast<float>(kTrellisLevels[parity | second << 1 | bit(kTrellisDelays[0]) << 2] - kTrellisZero);
    }
    return levels;
}
constexpr WindowLevels kLevels = window_levels();

using Marks = int32_t[kLanes];

// Columns one after the other. What is minimized is the sum of square((left - value) / factor's diagonal), with each
// column's error taken from those after it by the factor's row.
struct Stretch {
    int count;            // up to kDecided + kLookAhead
    const Strip* left;
    const Strip* steps;
    const float* factor;  // rows `stride` apart
    size_t stride;
};

struct Survivors {
    Strip rest[kStates][kDecided + kLookAhead];  // what is left of the columns, for each survivor
    Strip cost[kStates];
    // A bit for each state: which of two states came before it; the second bit of the code.
    Marks from[kDecided + kLookAhead], second[kDecided + kLookAhead];
};

// A state's bits turned `times` to the left. Survivors stay where they are while states move through them: the two
// states that follow from 2k and 2k + 1 take their places.
ERNIE_LOCAL_INLINE int turned(int state, int times) {
    times %= kTrellisMemory;
    return (state << times | state >> (kTrellisMemory - times)) & (kStates - 1);
}

// The nearer of a window's two levels: its error over the factor's diagonal, whether it is the second one, and the cost.
ERNIE_LOCAL_INLINE void nearer_level(const Strip& rest, const Strip& step, int window, float inverse,
                                     const Strip& before, Strip& error, Marks& second, Strip& cost) {
    const float first_level = kLevels.of[0][window], second_level = kLevels.of[1][window];
    for (int lane = 0; lane < kLanes; ++lane) {
        const float first = rest[lane] - first_level * step[lane], other = rest[lane] - second_level * step[lane];
        const bool is_second = other * other < first * first;
        const float nearer = (is_second ? other : first) * inverse;
        error[lane] = nearer;
        second[lane] = is_second ? 1 : 0;
        cost[lane] = before[lane] + nearer * nearer;
    }
}

// What is left of later columns for the two states that follow a pair of states; each takes one of the pair's.
template <class Isa>
ERNIE_LOCAL_INLINE void follow_pair(Strip* first, Strip* second, const float* factor, int count, const Marks (&from)[2],
                                    const Strip (&errors)[2]) {
    using Floats = typename Isa::Floats;
    const auto first_is_other = Isa::marked(from[0]), second_is_other = Isa::marked(from[1]);
    const Floats first_error = Isa::load(errors[0]), second_error = Isa::load(errors[1]);
    for (int column = 0; column < count; ++column) {
        const Floats share = Isa::splat(factor[column]);
        const Floats a = Isa::load(first[column]), b = Isa::load(second[column]);
        const Floats one = Isa::choose(first_is_other, b, a), other = Isa::choose(second_is_other, b, a);
        Isa::store(first[column], Isa::multiply_subtract_from(share, first_error, one));
        Isa::store(second[column], Isa::multiply_subtract_from(share, second_error, other));
    }
}

template <class Isa>
ERNIE_LOCAL_INLINE void walk_column(Survivors& all, const Stretch& stretch, int column) {
    const float* factor = stretch.factor + (stretch.stride + 1) * column;
    const float inverse = 1.0f / factor[0];
    Marks& all_from = all.from[column];
    Marks& all_second = all.second[column];
    for (int lane = 0; lane < kLanes; ++lane) all_from[lane] = all_second[lane] = 0;
    for (int pair = 0; pair < kStates / 2; ++pair) {
        const int places[2] = {turned(2 * pair, column), turned(2 * pair + 1, column)};
        Marks from[2];
        Strip errors[2], costs[2];
        for (int bit = 0; bit < 2; ++bit) {
            const int state = pair + kStates / 2 * bit;
            Strip error[2], cost[2];
            Marks second[2];
            for (int oldest = 0; oldest < 2; ++oldest)
                nearer_level(all.rest[places[oldest]][column], stretch.steps[column], 2 * state + oldest,
                             inverse, all.cost[places[oldest]], error[oldest], second[oldest], cost[oldest]);
            for (int lane = 0; lane < kLanes; ++lane) {
                const bool is_other = cost[1][lane] < cost[0][lane];
                from[bit][lane] = is_other ? 1 : 0;
                errors[bit][lane] = is_other ? error[1][lane] : error[0][lane];
                costs[bit][lane] = is_other ? cost[1][lane] : cost[0][lane];
                all_from[lane] |= from[bit][lane] << state;
                all_second[lane] |= (is_other ? second[1][lane] : second[0][lane]) << state;
            }
        }
        std::memcpy(all.cost[places[0]], costs[0], sizeof(Strip));
        std::memcpy(all.cost[places[1]], costs[1], sizeof(Strip));
        follow_pair<Isa>(all.rest[places[0]] + column + 1, all.rest[places[1]] + column + 1, factor + 1,
                    stretch.count - column - 1, from, errors);
    }
}

// Walks all columns. A start of -1 is any state.
template <class Isa>
ERNIE_LOCAL_INLINE void walk_columns(Survivors& all, const Stretch& stretch, const Marks& start) {
    for (int state = 0; state < kStates; ++state) {
        std::memcpy(all.rest[state], stretch.left, sizeof(Strip) * stretch.count);
        for (int lane = 0; lane < kLanes; ++lane)
            all.cost[state][lane] = start[lane] < 0 || start[lane] == state ? 0.0f : kNoWay;
    }
    for (int column = 0; column < stretch.count; ++column) walk_column<Isa>(all, stretch, column);
}

// An end of -1 becomes the state of least cost. cost: of the survivor there.
ERNIE_LOCAL_INLINE void find_end(const Survivors& all, const Stretch& stretch, Marks& end, Strip& cost) {
    Marks wanted;
    for (int lane = 0; lane < kLanes; ++lane) {
        wanted[lane] = end[lane];
        cost[lane] = INFINITY;
        end[lane] = end[lane] < 0 ? 0 : end[lane];
    }
    for (int state = 0; state < kStates; ++state) {
        const Strip& found = all.cost[turned(state, stretch.count)];
        for (int lane = 0; lane < kLanes; ++lane) {
            const bool better = (wanted[lane] < 0 || wanted[lane] == state) && found[lane] < cost[lane];
            cost[lane] = better ? found[lane] : cost[lane];
            end[lane] = better ? state : end[lane];
        }
    }
}

// Follows the survivor that is in `state` at the end back to the start: the codes of the first `decided` columns, the
// state after these, and at last the state that it started from.
ERNIE_LOCAL_INLINE void follow_back(const Survivors& all, const Stretch& stretch, int decided, Marks& state, Marks* codes,
                                    Marks& after) {
    for (int column = stretch.count - 1; column >= 0; --column) {
        for (int lane = 0; lane < kLanes; ++lane) {
            if (column == decided - 1) after[lane] = state[lane];
            if (column < decided)
                codes[column][lane] = (state[lane] >> (kTrellisMemory - 1)) | (all.second[column][lane] >> state[lane] & 1) << 1;
            state[lane] = (state[lane] << 1 & (kStates - 1)) | (all.from[column][lane] >> state[lane] & 1);
        }
    }
}

// The codes of a whole ring, of least cost over all states that it can start from and must come back to.
template <class Isa>
ERNIE_LOCAL_INLINE void walk_ring(Survivors& all, const Stretch& stretch, Marks* codes, Strip& least) {
    for (int lane = 0; lane < kLanes; ++lane) least[lane] = INFINITY;
    for (int tried = 0; tried < kStates; ++tried) {
        Marks start, state, found[kDecided + kLookAhead], after, better;
        Strip cost;
        for (int lane = 0; lane < kLanes; ++lane) start[lane] = state[lane] = tried;
        walk_columns<Isa>(all, stretch, start);
        find_end(all, stretch, state, cost);
        follow_back(all, stretch, stretch.count, state, found, after);
        for (int lane = 0; lane < kLanes; ++lane) {
            better[lane] = cost[lane] < least[lane] || tried == 0 ? 1 : 0;
            least[lane] = better[lane] ? cost[lane] : least[lane];
        }
        for (int column = 0; column < stretch.count; ++column)
            for (int lane = 0; lane < kLanes; ++lane)
                codes[column][lane] = better[lane] ? found[column][lane] : codes[column][lane];
    }
}

// The state before a ring's first column: the first bits of its last codes, or of all of them more than once.
ERNIE_LOCAL_INLINE void state_before(const Marks* codes, int count, Marks& state) {
    for (int lane = 0; lane < kLanes; ++lane) state[lane] = 0;
    for (int back = kTrellisMemory; back > 0; --back) {
        const Marks& code = codes[((count - back) % count + count) % count];
        for (int lane = 0; lane < kLanes; ++lane)
            state[lane] = state[lane] >> 1 | (code[lane] & 1) << (kTrellisMemory - 1);
    }
}

// The level of a code, and the state after it.
ERNIE_LOCAL_INLINE void level_of(const Marks& code, Marks& state, Strip& level) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const int window = (code[lane] & 1) * kStates + state[lane];
        level[lane] = kLevels.of[code[lane] >> 1][window];
        state[lane] = window >> 1;
    }
}

ERNIE_LOCAL_INLINE void load_marks(const uint8_t* from, int count, Marks& to) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = lane < count ? from[lane] : 0;
}

ERNIE_LOCAL_INLINE void store_marks(const Marks& from, int count, uint8_t* to) {
    for (int lane = 0; lane < count; ++lane) to[lane] = static_cast<uint8_t>(from[lane]);
}

// The state before a ring's first column, as its last columns and its first ones want it: the best path through both,
// each half with its own feedback.
template <class Isa>
ERNIE_LOCAL_INLINE void find_seam(Survivors& all, const WalkTask& task, int first_row, int count, Marks& state) {
    constexpr int kMost = 2 * kLookAhead;
    Strip left[kMost], steps[kMost], cost;
    float factor[kMost * kMost] = {};
    Marks end, codes[kMost];
    const int half = smaller(kLookAhead, static_cast<int>(task.end - task.first) / 2);
    for (int column = 0; column < 2 * half; ++column) {
        const bool is_last = column < half;
        const size_t at = is_last ? task.end - half + column : task.first + column - half;
        load_strip(task.left + task.rows * at + first_row, count, left[column]);
        load_strip(task.steps + task.rows * task.group_ids[at] + first_row, count, steps[column]);
        std::memcpy(factor + (kMost + 1) * column, task.factor + (task.columns + 1) * at,
                    sizeof(float) * ((is_last ? half : 2 * half) - column));
    }
    for (int lane = 0; lane < kLanes; ++lane) state[lane] = end[lane] = -1;
    const Stretch stretch{2 * half, left, steps, factor, kMost};
    walk_columns<Isa>(all, stretch, state);
    find_end(all, stretch, end, cost);
    follow_back(all, stretch, half, end, codes, state);
}

// Columns [start, stop) of the ring [first, end). A ring that is short is decided as one; a long one starts from the state
// that its seam wants, to which the last decision has to come back.
template <class Isa>
void walk_trellis(const WalkTask& task, int first_row, int count) {
    Survivors survivors;
    Strip left[kQuantizeBlock + kLookAhead], steps[kQuantizeBlock + kLookAhead], errors[kDecided];
    Marks state, ring, codes[kDecided + kLookAhead];
    const int size = task.stop - task.start;
    const int whole = smaller(size + kLookAhead, task.end - task.start);
    const bool is_short = task.end - task.first <= kLongestRing;
    for (int column = 0; column < whole; ++column) {
        const size_t at = task.start + column;
        load_strip(task.left + task.rows * at + first_row, count, left[column]);
        load_strip(task.steps + task.rows * task.group_ids[at] + first_row, count, steps[column]);
    }
    load_marks(task.states + first_row, count, state);
    load_marks(task.states + task.rows + first_row, count, ring);
    for (int few = 0; few < size; few += kDecided) {
        const int decided = smaller(kDecided, size - few), seen = smaller(decided + kLookAhead, whole - few);
        const float* factor = task.factor + (task.columns + 1) * (task.start + few);
        const Stretch stretch{seen, left + few, steps + few, factor, task.columns};
        Strip cost;
        if (is_short) {
            walk_ring<Isa>(survivors, stretch, codes, cost);
            state_before(codes, seen, state);
        } else {
            Marks end, after;
            if (task.start + few == task.first) {
                find_seam<Isa>(survivors, task, first_row, count, ring);
                std::memcpy(state, ring, sizeof(Marks));
            }
            for (int lane = 0; lane < kLanes; ++lane)
                end[lane] = task.start + few + seen == task.end ? ring[lane] : -1;
            walk_columns<Isa>(survivors, stretch, state);
            find_end(survivors, stretch, end, cost);
            follow_back(survivors, stretch, decided, end, codes, after);
        }
        for (int column = 0; column < decided; ++column) {
            const float* own = factor + (task.columns + 1) * column;
            Strip level;
            Strip& error = errors[column];
            level_of(codes[column], state, level);
            for (int lane = 0; lane < kLanes; ++lane)
                error[lane] = (left[few + column][lane] - level[lane] * steps[few + column][lane]) / own[0];
            subtract_products<Isa>(own + 1, 1, 0, &error, 1, left + few + column + 1, decided - column - 1);
            store_marks(codes[column], count, task.codes + task.rows * (task.start + few + column) + first_row);
            store_strip(error, count, task.errors + task.rows * (few + column) + first_row);
        }
        subtract_products<Isa>(factor + decided, 1, task.columns, errors, decided, left + few + decided,
                               whole - few - decided);
    }
    store_marks(state, count, task.states + first_row);
    store_marks(ring, count, task.states + task.rows + first_row);
}

// What codes cost that are there already.
template <class Isa>
ERNIE_LOCAL_INLINE void cost_of(const Stretch& stretch, const Strip* values, Strip& cost) {
    Strip left[kDecided], error;
    for (int lane = 0; lane < kLanes; ++lane) cost[lane] = 0.0f;
    std::memcpy(left, stretch.left, sizeof(Strip) * stretch.count);
    for (int column = 0; column < stretch.count; ++column) {
        const float* own = stretch.factor + (stretch.stride + 1) * column;
        for (int lane = 0; lane < kLanes; ++lane) {
            error[lane] = (left[column][lane] - values[column][lane]) / own[0];
            cost[lane] += error[lane] * error[lane];
        }
        subtract_products<Isa>(own + 1, 1, 0, &error, 1, left + column + 1, stretch.count - column - 1);
    }
}

// A stretch of the block chosen anew while all else stays: a whole ring, or a part of one with both of its ends. It is
// kept where it is better.
template <class Isa>
ERNIE_LOCAL_INLINE void decide_anew(const DecideTask& task, int first, const float* inverse, const float* factor,
                                    Marks& start, Marks* all_codes, const Strip* all_steps, Strip* all_pull,
                                    Strip* all_change) {
    const int count = task.stretch;
    Survivors survivors;
    Strip left[kDecided], values[kDecided], cost, found;
    Marks codes[kDecided], state, end;
    std::memcpy(state, start, sizeof(Marks));
    for (int i = 0; i < count; ++i) {
        level_of(all_codes[first + i], state, values[i]);
        for (int lane = 0; lane < kLanes; ++lane) {
            values[i][lane] *= all_steps[first + i][lane];
            left[i][lane] = -values[i][lane];
        }
    }
    // The least of the parabola in these columns: value + inverse of the own square times pull.
    subtract_products<Isa>(inverse, count, 1, all_pull + first, count, left, count);
    for (int i = 0; i < count; ++i)
        for (int lane = 0; lane < kLanes; ++lane) left[i][lane] = -left[i][lane];
    const Stretch stretch{count, left, all_steps + first, factor, static_cast<size_t>(count)};
    cost_of<Isa>(stretch, values, cost);
    if (task.is_ring) {
        walk_ring<Isa>(survivors, stretch, codes, found);
        state_before(codes, count, state);
    } else {
        Marks after;
        std::memcpy(end, state, sizeof(Marks));
        walk_columns<Isa>(survivors, stretch, start);
        find_end(survivors, stretch, end, found);
        follow_back(survivors, stretch, count, end, codes, after);
        std::memcpy(state, start, sizeof(Marks));
    }
    for (int i = 0; i < count; ++i) {
        Strip level;
        level_of(codes[i], state, level);
        for (int lane = 0; lane < kLanes; ++lane) {
            // A hair less is noise of rounding.
            const bool better = found[lane] < cost[lane] * 0.9999f;
            const float value = better ? level[lane] * all_steps[first + i][lane] : values[i][lane];
            all_change[first + i][lane] = value - values[i][lane];
            all_codes[first + i][lane] = better ? codes[i][lane] : all_codes[first + i][lane];
        }
    }
    subtract_products<Isa>(task.own + first, task.size, 1, all_change + first, count, all_pull, task.size);
}

// The stretches of a block one after the other. Pulls are read only.
template <class Isa>
void decide_block(const DecideTask& task, int first_row, int count) {
    Marks codes[kQuantizeBlock], start;
    Strip steps[kQuantizeBlock], pull[kQuantizeBlock], change[kQuantizeBlock];
    for (int column = 0; column < task.size; ++column) {
        const size_t at = task.rows * column + first_row;
        load_marks(task.codes + at, count, codes[column]);
        load_strip(task.steps + at, count, steps[column]);
        load_strip(task.pull + at, count, pull[column]);
    }
    const size_t square = static_cast<size_t>(task.stretch) * task.stretch;
    for (int part = 0; part < task.size / task.stretch; ++part) {
        load_marks(task.states + task.rows * part + first_row, count, start);
        decide_anew<Isa>(task, part * task.stretch, task.inverses + square * part, task.factors + square * part, start,
                         codes, steps, pull, change);
    }
    for (int column = 0; column < task.size; ++column) {
        const size_t at = task.rows * column + first_row;
        store_marks(codes[column], count, task.codes + at);
        store_strip(change[column], count, task.change + at);
    }
}

// The best of each group's scales in turn: the error is a parabola in the step. Pulls are read only.
template <class Isa>
void refit_scales(const RefitTask& task, int first_row, int count) {
    Strip levels[kQuantizeBlock], pull[kQuantizeBlock], row_scales;
    load_strip(task.row_scales + first_row, count, row_scales);
    for (int column = 0; column < task.size; ++column) {
        load_strip(task.levels + task.rows * column + first_row, count, levels[column]);
        load_strip(task.pull + task.rows * column + first_row, count, pull[column]);
    }
    for (int group = 0, start = 0; start < task.size; ++group, start += task.group_size) {
        const int size = smaller(task.group_size, task.size - start);
        const float* own = task.own + static_cast<size_t>(task.size + 1) * start;
        Strip values[kLargestGroup], moved[kLargestGroup] = {}, target[kLargestGroup];
        Strip squared = {}, linear = {}, least, step, present;
        Marks scale;
        load_marks(task.scales + task.rows * group + first_row, count, scale);
        for (int lane = 0; lane < kLanes; ++lane) present[lane] = kTrellisScales[scale[lane]] * row_scales[lane];
        for (int i = 0; i < size; ++i) {
            std::memcpy(target[i], pull[start + i], sizeof(Strip));
            for (int lane = 0; lane < kLanes; ++lane) values[i][lane] = -levels[start + i][lane] * present[lane];
        }
        subtract_products<Isa>(own, task.size, 1, values, size, target, size);
        subtract_products<Isa>(own, task.size, 1, levels + start, size, moved, size);
        for (int i = 0; i < size; ++i) {
            for (int lane = 0; lane < kLanes; ++lane) {
                squared[lane] -= levels[start + i][lane] * moved[i][lane];
                linear[lane] += levels[start + i][lane] * target[i][lane];
            }
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            step[lane] = present[lane];
            least[lane] = present[lane] * (present[lane] * squared[lane] - 2.0f * linear[lane]);
        }
        for (int tried = 0; tried < 16; ++tried) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const float wanted = kTrellisScales[tried] * row_scales[lane];
                const float found = wanted * (wanted * squared[lane] - 2.0f * linear[lane]);
                const bool better = found < least[lane];
                least[lane] = better ? found : least[lane];
                step[lane] = better ? wanted : step[lane];
                scale[lane] = better ? tried : scale[lane];
            }
        }
        for (int i = 0; i < size; ++i) {
            for (int lane = 0; lane < kLanes; ++lane)
                values[i][lane] = levels[start + i][lane] * (step[lane] - present[lane]);
            store_strip(values[i], count, task.change + task.rows * (start + i) + first_row);
        }
        store_marks(scale, count, task.scales + task.rows * group + first_row);
        const int later = start + size;
        subtract_products<Isa>(task.own + static_cast<size_t>(task.size) * later + start, task.size, 1, values, size,
                               pull + later, task.size - later);
    }
}

}  // namespace quantizing
}  // namespace ernie_local
