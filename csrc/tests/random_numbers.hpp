// Draws what the tests compute with: packed matrices and pages, tokens, adapters.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "../formats.hpp"
#include "../low_rank.hpp"

namespace ernie_local {

inline std::mt19937 generator(7);

inline uint16_t half_of(float value) {  // of a positive normal number
    int exponent;
    const float fraction = std::frexp(value, &exponent);
    return static_cast<uint16_t>((exponent + 14) << 10 | (static_cast<int>(fraction * 2048) & 1023));
}

// Random bytes are valid codes, scales and zeros; only the fp16 numbers must be sensible.
inline std::vector<uint8_t> random_matrix(const FormatInfo& format, int rows, int columns) {
    std::vector<uint8_t> packed(format.matrix_bytes(rows, columns));
    for (auto& byte : packed) byte = static_cast<uint8_t>(generator());
    const size_t tile_bytes = format.tile_bytes(columns);
    std::uniform_real_distribution<float> scale(0.001f, 0.01f);
    for (size_t tile = 0; tile < packed.size(); tile += tile_bytes) {
        const int halves = format.has_fp16_scales() ? kTileRows * format.num_groups(columns) : kTileRows;
        for (int i = 0; i < halves; ++i) {
            const uint16_t half = half_of(scale(generator));
            std::memcpy(&packed[tile + 2 * i], &half, 2);
        }
    }
    return packed;
}

inline std::vector<float> random_floats(size_t count) {
    std::normal_distribution<float> normal;
    std::vector<float> out(count);
    for (auto& value : out) value = normal(generator);
    return out;
}

inline std::vector<uint8_t> random_page(const FormatInfo& gate_up, const FormatInfo& down, int hidden_size, int inner_size) {
    std::vector<uint8_t> page(64, 0);
    std::memcpy(page.data(), "ERNX", 4);
    page[4] = 2;
    page[6] = static_cast<uint8_t>(gate_up.id);
    page[7] = static_cast<uint8_t>(down.id);
    const uint32_t sizes[] = {static_cast<uint32_t>(hidden_size), static_cast<uint32_t>(inner_size)};
    std::memcpy(&page[8], sizes, 8);
    for (int half = 0; half < 2; ++half) {
        const auto matrix = random_matrix(gate_up, inner_size, hidden_size);
        page.insert(page.end(), matrix.begin(), matrix.end());
    }
    const auto matrix = random_matrix(down, hidden_size, inner_size);
    page.insert(page.end(), matrix.begin(), matrix.end());
    return page;
}

inline std::vector<uint16_t> random_bfloats(size_t count) {
    std::vector<uint16_t> out(count);
    for (auto& bits : out) {
        const float value = random_floats(1)[0] / 4;
        uint32_t whole;
        std::memcpy(&whole, &value, 4);
        bits = static_cast<uint16_t>(whole >> 16);
    }
    return out;
}

// What an adapter adds to `experts` experts.
struct RandomAdapter {
    RandomAdapter(int experts, int hidden_size, int inner_size, int rank, int down_rank)
        : numbers{random_bfloats(size_t(experts) * 2 * rank * hidden_size), random_bfloats(size_t(experts) * 2 * rank * inner_size),
                  random_bfloats(size_t(experts) * down_rank * inner_size), random_bfloats(size_t(experts) * down_rank * hidden_size)},
          tables{numbers[0].data(), numbers[1].data(), numbers[2].data(), numbers[3].data(), rank, down_rank, inner_size} {}

    std::vector<uint16_t> numbers[4];
    ExpertAdapter tables;
};

}  // namespace ernie_local
