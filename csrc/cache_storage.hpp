// The number formats of the KV cache: how 16 numbers are read, and how a state is rounded into a row.
//
// Rows are written bit for bit as KVCache.append writes them (ernie_local/model/kv_cache.py).
#pragma once

#include <cfloat>
#include <cmath>
#include <cstring>

#include "kernel_table.hpp"
#include "vector_math.hpp"

namespace ernie_local {

// `load` reads 16 numbers; `write` stores `count` and gives back the scale, where there is one.
template <class Isa, CacheFormat kFormat>
struct Stored;

template <class Isa>
struct Stored<Isa, CacheFormat::kFloat32> {
    static constexpr size_t kBytes = 4;
    static constexpr bool kHasScales = false;
    static ERNIE_LOCAL_INLINE typename Isa::Floats load(const uint8_t* from) {
        return Isa::load(reinterpret_cast<const float*>(from));
    }
    static float write(const float* row, int count, uint8_t* to) {
        std::memcpy(to, row, sizeof(float) * count);
        return 1.0f;
    }
};

template <class Isa>
struct Stored<Isa, CacheFormat::kBFloat16> {
    static constexpr size_t kBytes = 2;
    static constexpr bool kHasScales = false;
    static ERNIE_LOCAL_INLINE typename Isa::Floats load(const uint8_t* from) { return Isa::load_bfloats(from); }
    static float write(const float* row, int count, uint8_t* to) {
        auto* out = reinterpret_cast<uint16_t*>(to);
        for (int i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, row + i, 4);
            const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
            out[i] = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
        }
        return 1.0f;
    }
};

template <class Isa>
struct Stored<Isa, CacheFormat::kFloat16> {
    static constexpr size_t kBytes = 2;
    static constexpr bool kHasScales = false;
    static ERNIE_LOCAL_INLINE typename Isa::Floats load(const uint8_t* from) { return Isa::load_halves(from); }
    static float write(const float* row, int count, uint8_t* to) {
        int i = 0;
        for (; i + kLanes <= count; i += kLanes) Isa::store_halves(to + 2 * i, Isa::load(row + i));
        if (i < count) {
            uint8_t padded[2 * kLanes];
            Isa::store_halves(padded, load_some<Isa>(row + i, count - i));
            std::memcpy(to + 2 * i, padded, 2 * static_cast<size_t>(count - i));
        }
        return 1.0f;
    }
};

template <class Isa>
struct Stored<Isa, CacheFormat::kInt8> {
    static constexpr size_t kBytes = 1;
    static constexpr bool kHasScales = true;
    static ERNIE_LOCAL_INLINE typename Isa::Floats load(const uint8_t* from) {
        return Isa::to_floats(Isa::load_signed_bytes(from));
    }
    static float write(const float* row, int count, uint8_t* to) {
        // Magnitudes compare as integers, and a NaN is the greatest of them: so it reaches the scale.
        uint32_t largest_bits = 0;
        for (int i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, row + i, 4);
            bits &= 0x7fffffffu;
            largest_bits = bits > largest_bits ? bits : largest_bits;
        }
        float largest;
        std::memcpy(&largest, &largest_bits, 4);
        const float exact = largest / 127.0f;
        const float scale = exact < FLT_MIN ? FLT_MIN : exact;
        auto* out = reinterpret_cast<int8_t*>(to);
        for (int i = 0; i < count; ++i) {
            const float quotient = std::nearbyint(row[i] / scale);
            out[i] = static_cast<int8_t>(static_cast<int32_t>(quotient == quotient ? quotient : 0.0f));
        }
        return scale;
    }
};

}  // namespace ernie_local
