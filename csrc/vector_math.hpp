// Small sums over the vector vocabulary (tile_kernel.hpp tells what an Isa is), and exp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "formats.hpp"

namespace ernie_local {

constexpr int kLanes = 16;  // of Isa::Floats

// exp of -87 to 87 to about 2e-7: 2 to a whole power, times a polynomial (minimax, Cephes) of what is left. What lies
// outside is taken to the nearer end; NaN stays NaN.
ERNIE_LOCAL_INLINE float exp_bounded(float x) {
    const bool is_number = x == x;
    const float bounded = !is_number ? 0.0f : x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
    const float power = std::nearbyint(bounded * 1.44269504f);
    const float rest = (bounded - power * 0.693359375f) + power * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    const int32_t exponent = (static_cast<int32_t>(power) + 127) << 23;
    float scale;
    std::memcpy(&scale, &exponent, 4);
    return is_number ? y * scale : x;
}

// The last `count` < 16 numbers with zeros behind them.
template <class Isa>
ERNIE_LOCAL_INLINE typename Isa::Floats load_some(const float* from, int count) {
    float padded[kLanes] = {};
    std::memcpy(padded, from, sizeof(float) * count);
    return Isa::load(padded);
}

// The sum of square(values[i]) or of values[i], in four chains that do not wait for each other.
template <class Isa, bool kSquared>
ERNIE_LOCAL_INLINE float sum_of(const float* values, int count) {
    using Floats = typename Isa::Floats;
    const Floats one = Isa::splat(1.0f);
    Floats chains[4] = {Isa::splat(0.0f), Isa::splat(0.0f), Isa::splat(0.0f), Isa::splat(0.0f)};
    const auto add = [&](Floats& chain, const Floats& x) { chain = Isa::multiply_add(x, kSquared ? x : one, chain); };
    int i = 0;
    for (; i + 4 * kLanes <= count; i += 4 * kLanes)
        for (int chain = 0; chain < 4; ++chain) add(chains[chain], Isa::load(values + i + kLanes * chain));
    for (; i + kLanes <= count; i += kLanes) add(chains[0], Isa::load(values + i));
    if (i < count) add(chains[1], load_some<Isa>(values + i, count - i));
    float sums[4];
    Isa::sums(chains, sums);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The greatest value that is not NaN, or `least` if none is greater.
template <class Isa>
ERNIE_LOCAL_INLINE float greatest_of(const float* values, int count, float least) {
    auto lanes = Isa::splat(least);
    int i = 0;
    for (; i + kLanes <= count; i += kLanes) lanes = Isa::maximum(Isa::load(values + i), lanes);
    float candidates[kLanes];
    Isa::store(candidates, lanes);
    for (int half = kLanes / 2; half > 0; half /= 2)  // one after the other they would wait for each other
        for (int j = 0; j < half; ++j)
            candidates[j] = candidates[half + j] > candidates[j] ? candidates[half + j] : candidates[j];
    float greatest = candidates[0];
    for (; i < count; ++i) greatest = values[i] > greatest ? values[i] : greatest;
    return greatest;
}

}  // namespace ernie_local
