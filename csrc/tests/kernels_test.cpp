// Every instruction set against the scalar kernels, on random tiles and pages, without Python: so that sanitizers and
// an emulator can run it. Exits with 1 and says what differed.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../block_attention.hpp"
#include "../decode_ops.hpp"
#include "../expert_page.hpp"
#include "../low_rank.hpp"
#include "../packed_experts.hpp"
#include "../packed_attention.hpp"
#include "../packed_linear.hpp"
#include "../packed_rows.hpp"
#include "../quantize_ops.hpp"
#include "../runtime.hpp"
#include "random_numbers.hpp"
#if defined(__x86_64__) && defined(__linux__)
#include "vnni_emulator.hpp"
#endif

using namespace ernie_local;

namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
    if (condition) return;
    std::printf("FAILED: %s\n", what.c_str());
    ++failures;
}

float relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < actual.size(); ++i) {
        difference += std::pow(actual[i] - expected[i], 2.0);
        size += std::pow(expected[i], 2.0);
    }
    return static_cast<float>(std::sqrt(difference / size));
}

// The sets that can run here, and AVX-VNNI's where the processor lacks nothing but it: its one instruction is emulated.
const std::vector<const KernelTable*>& tested_sets() {
    static std::vector<const KernelTable*> tables;
    if (!tables.empty()) return tables;
    const auto available = available_instruction_sets();
    const auto runs = [&](const std::string& name) {
        return std::find(available.begin(), available.end(), name) != available.end();
    };
    for (const auto& set : known_instruction_sets()) {
        bool is_tested = runs(set.name);
#if defined(__x86_64__) && defined(__linux__)
        if (!is_tested && set.name == "avxvnni" && set.kernels != nullptr && runs("avx2")) {
            vnni_emulator::install();
            is_tested = true;
        }
#endif
        if (is_tested) tables.push_back(&set.kernels());
    }
    return tables;
}

// Computes with the scalar kernels, then with every other set, and compares. AVX2 alone rounds tokens for w8 its own way.
template <class Compute>
void compare_all(const std::string& what, const Compute& compute, float most = 1e-4f, float most_of_avx2 = 0.0f) {
    use_instruction_set("scalar");
    const std::vector<float> expected = compute();
    for (const KernelTable* table : tested_sets()) {
        runtime().kernels = table;
        const float error = relative_error(compute(), expected);
        const float limit = std::string(table->name) == "avx2" ? std::max(most, most_of_avx2) : most;
        expect(error < limit, what + " on " + table->name + ": relative error " + std::to_string(error));
    }
}

// With a column that stands out in each sixteen all sets round alike.
std::vector<float> random_tokens(size_t count) {
    auto tokens = random_floats(count);
    for (size_t i = 0; i < count; i += 16) tokens[i] = std::copysign(10.0f, tokens[i]);
    return tokens;
}

std::vector<float> linear(const std::vector<float>& input, int num_tokens, const std::vector<uint8_t>& packed,
                          const FormatInfo& format, int rows) {
    const int columns = static_cast<int>(input.size()) / num_tokens;
    std::vector<float> out(static_cast<size_t>(num_tokens) * rows);
    expect(packed_linear(input.data(), num_tokens, columns, packed.data(), format, rows, out.data()) == -1,
           "finite tokens are taken");
    return out;
}

void test_linear() {
    const int rows = 40;
    for (const FormatInfo& format : kFormats)
        for (const int columns : {16, 144, 272, 528})
            for (const int num_tokens : {1, 2, 3, 5, 7, 12, 31}) {
                const auto packed = random_matrix(format, rows, columns);
                const auto input = random_tokens(static_cast<size_t>(num_tokens) * columns);
                compare_all("linear, format " + std::to_string(format.id) + ", columns " + std::to_string(columns),
                            [&] { return linear(input, num_tokens, packed, format, rows); });
            }
}

// A token's product is the same to the bit however many are computed with it: tile and block kernels agree, at the ends
// of blocks of columns, of ranges of tokens, and of groups.
void test_many_tokens() {
    const int rows = 24;
    runtime().pool.resize(3);
    const std::pair<int, int> sizes[] = {{4, 80}, {5, 80}, {131, 80}, {5, 512}, {8, 528}};
    for (const FormatInfo& format : kFormats)
        for (const auto& [num_tokens, columns] : sizes) {
            const auto packed = random_matrix(format, rows, columns);
            const auto input = random_floats(static_cast<size_t>(num_tokens) * columns);
            for (const KernelTable* table : tested_sets()) {
                runtime().kernels = table;
                const auto together = linear(input, num_tokens, packed, format, rows);
                for (const int token : {0, num_tokens / 2, num_tokens - 1}) {
                    const auto* first = &input[static_cast<size_t>(token) * columns];
                    const auto alone = linear({first, first + columns}, 1, packed, format, rows);
                    expect(std::equal(alone.begin(), alone.end(), &together[static_cast<size_t>(token) * rows]),
                           "one of " + std::to_string(num_tokens) + " tokens of " + std::to_string(columns) +
                               " columns, format " + std::to_string(format.id) + " on " + table->name);
                }
            }
        }
}

// Tokens and w8 codes at their ends, with all combinations of signs among neighbours: nothing overflows in 16 bits.
void test_ends_of_w8() {
    const FormatInfo& format = kFormats[5];
    const int rows = 16, columns = 256, num_tokens = 8;
    const uint8_t ends[] = {0, 255, 1, 128};
    for (int kind = 0; kind < 5; ++kind) {
        auto packed = random_matrix(format, rows, columns);
        for (size_t i = format.metadata_bytes(columns); i < packed.size(); ++i)
            packed[i] = ends[kind < 3 ? kind : generator() % (kind == 3 ? 2 : 4)];
        std::vector<float> input(static_cast<size_t>(num_tokens) * columns);
        for (size_t i = 0; i < input.size(); ++i) {
            const size_t token = i / columns;
            input[i] = token == 0 ? 3.0f : token == 1 ? -3.0f : generator() % 2 ? 3.0f : token < 5 ? -3.0f : 0.0f;
        }
        compare_all("ends of w8, kind " + std::to_string(kind), [&] { return linear(input, num_tokens, packed, format, rows); });
    }
}

// The greatest codes times the greatest numbers: no sum overflows.
void test_largest_sums() {
    const int rows = 16, columns = 256;
    for (const FormatInfo& format : kFormats)
        for (const int num_tokens : {1, 2, 4, 12})
            for (const float number : {1.0f, -1.0f}) {
                auto packed = random_matrix(format, rows, columns);
                std::fill(packed.begin() + static_cast<long>(format.metadata_bytes(columns)), packed.end(), 0xff);
                const std::vector<float> input(static_cast<size_t>(num_tokens) * columns, number);
                compare_all("largest sums, format " + std::to_string(format.id), [&] {
                    std::vector<float> out(static_cast<size_t>(num_tokens) * rows);
                    packed_linear(input.data(), num_tokens, columns, packed.data(), format, rows, out.data());
                    return out;
                });
            }
}

// Multiplied with one column of ones and zeros, a matrix gives that column.
void test_rows() {
    const int rows = 40, columns = 144;
    for (const FormatInfo& format : kFormats) {
        const auto packed = random_matrix(format, rows, columns);
        std::vector<int64_t> row_ids(rows);
        for (int row = 0; row < rows; ++row) row_ids[row] = row;
        std::vector<float> all(static_cast<size_t>(rows) * columns);
        packed_rows(packed.data(), format, columns, row_ids.data(), rows, all.data());
        for (const int column : {0, 17, 143}) {
            std::vector<float> one(columns, 0.0f), product(rows), expected(rows);
            one[column] = 1.0f;
            packed_linear(one.data(), 1, columns, packed.data(), format, rows, product.data());
            for (int row = 0; row < rows; ++row) expected[row] = all[static_cast<size_t>(row) * columns + column];
            expect(relative_error(product, expected) < 1e-4f, "rows, format " + std::to_string(format.id));
        }
    }
}

void test_low_rank() {
    const int columns = 70, rows = 60;
    for (const int num_tokens : {1, 3, 40}) {
        const auto tokens = random_floats(static_cast<size_t>(num_tokens) * columns);
        const auto before = random_floats(static_cast<size_t>(num_tokens) * rows);
        const std::vector<std::array<int, 3>> shapes = {{16, 0, 21}, {3, 25, 35}};  // rank, first row, rows
        std::vector<std::vector<uint16_t>> numbers;
        for (const auto& [rank, first, count] : shapes) {
            numbers.push_back(random_bfloats(static_cast<size_t>(rank) * columns));
            numbers.push_back(random_bfloats(static_cast<size_t>((count + 15) / 16) * rank * kTileRows));
        }
        std::vector<LowRankPart> parts;
        for (size_t i = 0; i < shapes.size(); ++i)
            parts.push_back({numbers[2 * i].data(), numbers[2 * i + 1].data(), shapes[i][0], shapes[i][1], shapes[i][2]});
        for (const int num_threads : {1, 3}) {
            runtime().pool.resize(num_threads);
            compare_all("thin products of " + std::to_string(num_tokens) + " tokens", [&] {
                auto out = before;
                add_low_rank({tokens.data(), num_tokens, columns, parts.data(), 2, out.data(), rows});
                for (int row = 21; row < 25; ++row) expect(out[row] == before[row], "rows between parts are left alone");
                return out;
            });
        }
    }
}

void test_experts() {
    const int hidden_size = 80, inner_size = 48, top_k = 2;
    for (const int num_tokens : {1, 5, 40}) {
        std::vector<std::vector<uint8_t>> pages;
        size_t slot_bytes = 0;
        for (int i = 0; i < kNumFormats; ++i) {
            pages.push_back(random_page(kFormats[i], kFormats[kNumFormats - 1 - i], hidden_size, inner_size));
            slot_bytes = std::max(slot_bytes, pages.back().size());
        }
        std::vector<uint8_t> slots(slot_bytes * pages.size());
        for (size_t i = 0; i < pages.size(); ++i) std::copy(pages[i].begin(), pages[i].end(), &slots[i * slot_bytes]);
        const auto input = random_floats(static_cast<size_t>(num_tokens) * hidden_size);
        std::vector<int64_t> slot_ids;
        for (int token = 0; token < num_tokens; ++token)
            for (int choice = 0; choice < top_k; ++choice) slot_ids.push_back((token + 3 * choice) % kNumFormats);
        const std::vector<float> weights(slot_ids.size(), 0.5f);
        std::vector<float> out(input.size());
        ExpertsCall call{input.data(), num_tokens, hidden_size, slots.data(), static_cast<int64_t>(pages.size()), slot_bytes,
                         slot_ids.data(), nullptr, weights.data(), top_k, pages[0].data(), pages[0].size(), out.data(),
                         false, num_tokens <= 16};
        for (const int num_threads : {1, 3}) {
            runtime().pool.resize(num_threads);
            compare_all("experts of " + std::to_string(num_tokens) + " tokens", [&] {
                expect(packed_experts(call).kind == ExpertsResult::kDone, "good pages are taken");
                return out;
            }, num_tokens > 16 ? 1e-2f : 1e-4f);
        }
        const RandomAdapter adapter(kNumFormats, hidden_size, inner_size, 5, 2), shared(1, hidden_size, inner_size, 1, 0);
        call.adapter = &adapter.tables;
        call.shared_adapter = &shared.tables;
        const auto plain = out;
        compare_all("adapted experts of " + std::to_string(num_tokens) + " tokens", [&] {
            expect(packed_experts(call).kind == ExpertsResult::kDone, "an adapter is taken");
            return out;
        }, num_tokens > 16 ? 1e-2f : 1e-4f);
        expect(relative_error(out, plain) > 0.01f, "an adapter changes the sum");
        ExpertAdapter other = adapter.tables;
        other.inner_size += 16;
        call.adapter = &other;
        expect(packed_experts(call).kind == ExpertsResult::kBrokenPage, "an adapter of another size is refused");
        call.adapter = call.shared_adapter = nullptr;
        const std::vector<int64_t> absent(kNumFormats, kAbsentSlot);
        call.places = absent.data();
        call.shared_page = nullptr;
        expect(packed_experts(call).kind == ExpertsResult::kDone && out == std::vector<float>(out.size()),
               "without experts the sum is 0");
        call.places = nullptr;
        call.shared_page = pages[0].data();
        slots[slot_ids[0] * slot_bytes + 6] = 200;
        const auto refused = packed_experts(call);
        expect(refused.kind == ExpertsResult::kBrokenPage && refused.index == slot_ids[0], "a broken page is named");
        slots[slot_ids[0] * slot_bytes + 6] = static_cast<uint8_t>(kFormats[slot_ids[0]].id);
        auto bad = input;
        bad.back() = std::numeric_limits<float>::quiet_NaN();
        call.input = bad.data();
        const auto not_finite = packed_experts(call);
        expect(not_finite.kind == ExpertsResult::kBrokenToken && not_finite.index == num_tokens - 1, "a NaN is named");
    }
}

// A page cut anywhere is refused and never read past its end: the sanitizer watches.
void test_cut_pages() {
    const auto page = random_page(kFormats[0], kFormats[3], 80, 48);
    ExpertPage parsed;
    for (size_t length = 0; length <= page.size(); ++length) {
        const std::vector<uint8_t> cut(page.begin(), page.begin() + static_cast<long>(length));
        expect(read_page(cut.data(), cut.size(), 80, parsed) == (length == page.size()),
               "a page of " + std::to_string(length) + " bytes");
    }
}

void test_rms_norm() {
    for (const int size : {1, 15, 16, 17, 80, 129})
        for (const int num_tokens : {0, 1, 3}) {
            const auto hidden = random_floats(static_cast<size_t>(num_tokens) * size), weight = random_floats(size);
            compare_all("norm of " + std::to_string(size), [&] {
                std::vector<float> out(hidden.size(), 1.0f);
                rms_norm(hidden.data(), num_tokens, weight.data(), size, 1e-5f, out.data());
                out.push_back(1.0f);  // a norm to divide by where there are no tokens
                return out;
            });
        }
}

void test_route() {
    for (const int hidden_size : {3, 16, 40})
        for (const int num_experts : {1, 7, 64})
            for (const int num_tokens : {0, 1, 6}) {
                auto hidden = random_floats(static_cast<size_t>(num_tokens) * hidden_size);
                const auto weight = random_floats(static_cast<size_t>(num_experts) * hidden_size);
                const auto bias = random_floats(num_experts);
                const int top_k = std::min(num_experts, 6);
                std::vector<int64_t> ids(static_cast<size_t>(num_tokens) * top_k);
                std::vector<float> weights(ids.size());
                const RouteCall call{hidden.data(), num_tokens, hidden_size, weight.data(), bias.data(), num_experts,
                                     top_k, 1e-12f, ids.data(), weights.data()};
                compare_all("route among " + std::to_string(num_experts), [&] {
                    route(call);
                    std::vector<float> both(weights);
                    for (const int64_t id : ids) both.push_back(static_cast<float>(id) + 1.0f);
                    both.push_back(1.0f);
                    return both;
                });
                if (hidden.empty()) continue;
                hidden[0] = std::numeric_limits<float>::quiet_NaN();
                route(call);
                for (const int64_t id : ids) expect(id >= 0 && id < num_experts, "ids stay within the bank");
                expect(std::isnan(weights[0]), "a NaN stays one");
            }
}

// A cache of random numbers, cut to its size to the byte; scales for int8 alone.
struct Cache {
    CacheFormat format;
    std::vector<uint8_t> keys, values;
    std::vector<float> key_scales, value_scales;
};

std::vector<uint8_t> random_numbers(CacheFormat format, size_t count) {
    const size_t number_bytes = format == CacheFormat::kFloat32 ? 4 : format == CacheFormat::kInt8 ? 1 : 2;
    std::vector<uint8_t> out(count * number_bytes);
    const auto floats = random_floats(count);
    for (size_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &floats[i], 4);
        if (format == CacheFormat::kBFloat16) bits >>= 16;
        if (format == CacheFormat::kFloat16) bits = half_of(std::abs(floats[i]) + 0.01f) | (bits >> 16 & 0x8000u);
        std::memcpy(&out[i * number_bytes], &bits, number_bytes);
    }
    return out;
}

void test_attention() {
    struct Shape {
        int heads, kv_heads, head_dim;
        int64_t capacity, length;
    };
    for (int format = 0; format < kNumCacheFormats; ++format)
        for (const Shape& shape : {Shape{1, 1, 2, 1, 0}, {6, 2, 22, 5, 4}, {10, 1, 48, 400, 300}, {20, 4, 128, 70, 69}})
            for (const int num_threads : {1, 3}) {
                runtime().pool.resize(num_threads);
                const size_t rows = shape.kv_heads * shape.capacity, numbers = rows * shape.head_dim;
                const auto queries = random_floats(shape.heads * shape.head_dim);
                const auto keys = random_floats(shape.kv_heads * shape.head_dim);
                const auto values = random_floats(shape.kv_heads * shape.head_dim);
                const auto cosines = random_floats(shape.head_dim / 2), sines = random_floats(shape.head_dim / 2);
                Cache before{static_cast<CacheFormat>(format), {}, {}, {}, {}}, first;
                before.keys = random_numbers(before.format, numbers);
                before.values = random_numbers(before.format, numbers);
                if (before.format == CacheFormat::kInt8) {
                    before.key_scales.assign(rows, 0.01f);
                    before.value_scales.assign(rows, 0.02f);
                }
                compare_all("attention, cache format " + std::to_string(format), [&] {
                    Cache cache = before;
                    std::vector<float> out(queries.size());
                    const bool scaled = !cache.key_scales.empty();
                    decode_attention({queries.data(), keys.data(), values.data(), cosines.data(), sines.data(),
                                      cache.format, cache.keys.data(), cache.values.data(),
                                      scaled ? cache.key_scales.data() : nullptr,
                                      scaled ? cache.value_scales.data() : nullptr, shape.heads, shape.kv_heads,
                                      shape.head_dim, shape.capacity, shape.length, out.data()});
                    if (first.keys.empty()) first = cache;
                    expect(cache.keys == first.keys && cache.values == first.values &&
                               cache.key_scales == first.key_scales && cache.value_scales == first.value_scales,
                           "all write the same into the cache");
                    expect(cache.keys != before.keys && cache.values != before.values, "the new token is written");
                    return out;
                });
            }
}

// Buffers end where the arguments say: the sanitizer watches.
void test_block_attention() {
    struct Shape {
        int heads, kv_heads, head_dim, num_tokens;
        int64_t capacity, length;
    };
    for (int format = 0; format < kNumCacheFormats; ++format)
        for (const Shape& shape : {Shape{1, 1, 2, 1, 1, 0}, {6, 2, 22, 5, 9, 4}, {20, 4, 128, 33, 170, 130}})
            for (const int num_threads : {1, 3}) {
                runtime().pool.resize(num_threads);
                const size_t rows = shape.kv_heads * shape.capacity, numbers = rows * shape.head_dim;
                const size_t key_size = static_cast<size_t>(shape.kv_heads) * shape.head_dim;
                const size_t query_size = static_cast<size_t>(shape.heads) * shape.head_dim;
                const auto queries = random_floats(shape.num_tokens * query_size);
                const auto keys = random_floats(shape.num_tokens * key_size), values = random_floats(keys.size());
                const auto cosines = random_floats(shape.num_tokens * shape.head_dim / 2), sines = random_floats(cosines.size());
                Cache before{static_cast<CacheFormat>(format), {}, {}, {}, {}};
                before.keys = random_numbers(before.format, numbers);
                before.values = random_numbers(before.format, numbers);
                if (before.format == CacheFormat::kInt8) {
                    before.key_scales.assign(rows, 0.01f);
                    before.value_scales.assign(rows, 0.02f);
                }
                const auto compute = [&](bool is_chunk) {
                    Cache cache = before;
                    std::vector<float> out(queries.size());
                    const bool scaled = !cache.key_scales.empty();
                    AttentionCall call{queries.data(), keys.data(), values.data(), cosines.data(), sines.data(),
                                       cache.format, cache.keys.data(), cache.values.data(),
                                       scaled ? cache.key_scales.data() : nullptr,
                                       scaled ? cache.value_scales.data() : nullptr, shape.heads, shape.kv_heads,
                                       shape.head_dim, shape.capacity, shape.length, out.data()};
                    if (is_chunk) {
                        chunk_attention({call, shape.num_tokens, query_size, key_size, key_size});
                        return out;
                    }
                    for (int token = 0; token < shape.num_tokens; ++token) {
                        decode_attention(call);
                        call.queries += query_size;
                        call.keys += key_size;
                        call.values += key_size;
                        call.cosines += shape.head_dim / 2;
                        call.sines += shape.head_dim / 2;
                        call.out += query_size;
                        ++call.length;
                    }
                    return out;
                };
                compare_all("attention of a chunk", [&] { return compute(true); }, 1e-3f);
                expect(relative_error(compute(true), compute(false)) < 1e-3f, "a chunk is one token after the other");
            }
    for (const int head_dim : {2, 20, 80}) {
        const std::vector<int64_t> sizes{1, 140, 31};
        const int heads = 3, patches = 172;
        const auto states = random_floats(static_cast<size_t>(patches) * 3 * heads * head_dim);
        const auto cosines = random_floats(patches * head_dim / 2), sines = random_floats(cosines.size());
        compare_all("attention in frames", [&] {
            std::vector<float> out(states.size() / 3);
            frame_attention({states.data(), cosines.data(), sines.data(), sizes.data(), 3, heads, head_dim, out.data()});
            return out;
        }, 1e-3f);
    }
}

void test_packed_attention() {
    const int hidden_size = 80, heads = 4, kv_heads = 2, head_dim = 24, capacity = 9, length = 5;
    const int query_size = heads * head_dim, qkv_rows = query_size + 2 * kv_heads * head_dim;
    const FormatInfo &qkv_format = kFormats[5], &o_format = kFormats[0];
    const auto qkv = random_matrix(qkv_format, qkv_rows, hidden_size), o = random_matrix(o_format, hidden_size, query_size);
    auto hidden = random_floats(hidden_size);
    const auto norm = random_floats(hidden_size), cosines = random_floats(head_dim / 2), sines = random_floats(head_dim / 2);
    const size_t numbers = static_cast<size_t>(kv_heads) * capacity * head_dim;
    const auto keys = random_numbers(CacheFormat::kBFloat16, numbers), values = random_numbers(CacheFormat::kBFloat16, numbers);
    const auto qkv_in = random_bfloats(3 * hidden_size), qkv_out = random_bfloats((qkv_rows / kTileRows) * 3 * kTileRows);
    const auto o_in = random_bfloats(2 * query_size), o_out = random_bfloats((hidden_size / kTileRows) * 2 * kTileRows);
    const LowRankPart qkv_part{qkv_in.data(), qkv_out.data(), 3, 0, qkv_rows}, o_part{o_in.data(), o_out.data(), 2, 0, hidden_size};
    bool adapted = false;
    const auto compute = [&](std::vector<float>& out) {
        auto own_keys = keys, own_values = values;
        PackedAttentionCall call{hidden.data(), hidden_size, norm.data(), 1e-5f, qkv.data(), &qkv_format, o.data(),
                                 &o_format, &qkv_part, adapted, &o_part, adapted, {}, out.data()};
        call.attention.cosines = cosines.data();
        call.attention.sines = sines.data();
        call.attention.format = CacheFormat::kBFloat16;
        call.attention.cached_keys = own_keys.data();
        call.attention.cached_values = own_values.data();
        call.attention.heads = heads;
        call.attention.kv_heads = kv_heads;
        call.attention.head_dim = head_dim;
        call.attention.capacity = capacity;
        call.attention.length = length;
        return packed_attention(call);
    };
    for (const bool with_adapter : {false, true}) {
        adapted = with_adapter;
        compare_all("packed attention", [&] {
            std::vector<float> out(hidden_size);
            expect(compute(out), "finite numbers are taken");
            return out;
        });
    }
    hidden[3] = std::numeric_limits<float>::infinity();
    std::vector<float> out(hidden_size);
    expect(!compute(out), "an infinity is refused");
}

// The steps of choosing codes one after the other; rows and columns fill neither a strip nor a block.
void test_quantizing() {
    const size_t rows = 21, columns = 208;
    for (const FormatInfo& format : kFormats) {
        if (!format.has_zeros()) continue;
        const auto highest = [](int bits) { return static_cast<float>((1 << bits) - 1); };
        const int metadata_bits = format.group_metadata / 4;
        const CodeRange range{format.group, highest(format.bits), highest(metadata_bits), highest(metadata_bits),
                              static_cast<float>(format.zero_divisor)};
        const size_t groups = format.num_groups(columns);
        const auto weights = random_floats(columns * rows);
        std::vector<float> matters(columns, 1.0f), row_steps(rows, 0.05f), hessian(columns * columns), factor = hessian;
        for (size_t i = 0; i < columns; ++i)
            for (size_t j = 0; j < columns; ++j) {
                hessian[i * columns + j] = i == j ? 2.0f : 1.0f / static_cast<float>(1 + (i > j ? i - j : j - i));
                factor[i * columns + j] = j < i ? 0.0f : hessian[i * columns + j];
            }
        std::vector<int64_t> group_ids(columns);
        for (size_t column = 0; column < columns; ++column) group_ids[column] = column / format.group;
        compare_all("quantizing, format " + std::to_string(format.id), [&] {
            std::vector<float> steps(groups * rows), shifts(groups * rows), errors(kQuantizeBlock * rows), out;
            std::vector<uint8_t> scales(groups * rows), zeros(groups * rows), codes(columns * rows);
            search_ranges({range, rows, static_cast<int>(columns), 1e-12f, weights.data(), matters.data(), steps.data(),
                           shifts.data()});
            choose_whole({range, rows, static_cast<int>(columns), weights.data(), matters.data(), steps.data(),
                          shifts.data(), row_steps.data(), scales.data(), zeros.data()});
            const auto blocks = [&](const auto& compute) {
                for (int start = 0; start < static_cast<int>(columns); start += kQuantizeBlock)
                    compute(start, std::min<int>(start + kQuantizeBlock, columns));
            };
            blocks([&](int start, int stop) {
                gptq_block({range.highest_code, rows, columns, start, stop, weights.data(), factor.data(),
                            group_ids.data(), steps.data(), shifts.data(), codes.data(), errors.data()});
            });
            blocks([&](int start, int stop) {
                refine_block({range, rows, columns, start, stop, true, true, hessian.data(), weights.data(),
                              row_steps.data(), codes.data(), scales.data(), zeros.data(), errors.data()});
            });
            out.insert(out.end(), steps.begin(), steps.end());
            out.insert(out.end(), codes.begin(), codes.end());
            out.insert(out.end(), scales.begin(), scales.end());
            out.insert(out.end(), zeros.begin(), zeros.end());
            return out;
        });
    }
}

void test_trellises() {  // short rings and long ones, and stretches that are searched anew
    const size_t rows = 21;
    const auto square = [](size_t count, int width, bool is_upper) {
        std::vector<float> numbers(count * width * width);
        for (size_t i = 0; i < numbers.size(); ++i) {
            const int apart = static_cast<int>(i % width) - static_cast<int>(i / width % width);
            numbers[i] = is_upper && apart < 0 ? 0.0f : 1.0f / static_cast<float>(1 + 3 * std::abs(apart));
        }
        return numbers;
    };
    for (const int length : {1, 12, 40, 200}) {
        const int stretch = std::min(length, kLongestStretch), size = 4 * stretch, columns = length + 9;
        const auto left = random_floats(columns * rows), pull = random_floats(size * rows), steps = random_floats(size * rows),
                   factor = square(1, columns, true), own = square(1, size, false), factors = square(4, stretch, true);
        const std::vector<int64_t> group_ids(columns, 0);
        compare_all("trellises of " + std::to_string(length), [&] {
            std::vector<uint8_t> states(4 * rows), codes((columns + size) * rows), scales(columns * rows, 7);
            std::vector<float> errors(kQuantizeBlock * rows), change(size * rows), out;
            for (int start = 4; start < length + 4; start += kQuantizeBlock)
                walk_trellis({rows, static_cast<size_t>(columns), 4, start, std::min(start + kQuantizeBlock, length + 4),
                              length + 4, left.data(), factor.data(), group_ids.data(), steps.data(), states.data(),
                              codes.data(), errors.data()});
            for (const bool is_ring : {false, true})
                decide_block({rows, size, stretch, is_ring, own.data(), own.data(), factors.data(), pull.data(),
                              steps.data(), states.data(), codes.data(), change.data()});
            out.assign(codes.begin(), codes.end());
            refit_scales({rows, size, 32, own.data(), pull.data(), pull.data(), steps.data(), scales.data(), change.data()});
            out.insert(out.end(), change.begin(), change.end());
            return out;
        });
    }
}

}  // namespace

int main() {
    test_rms_norm();
    test_route();
    test_attention();
    test_block_attention();
    test_packed_attention();
    test_linear();
    test_many_tokens();
    test_ends_of_w8();
    test_largest_sums();
    test_rows();
    test_low_rank();
    test_experts();
    test_cut_pages();
    test_quantizing();
    test_trellises();
    std::string names;
    for (const KernelTable* table : tested_sets()) names += std::string(" ") + table->name;
#if defined(__x86_64__) && defined(__linux__)
    if (vnni_emulator::executed > 0)
        names += " (" + std::to_string(vnni_emulator::executed) + " instructions of avxvnni emulated)";
#endif
    std::printf("%s:%s\n", failures ? "kernels differ" : "kernels agree", names.c_str());
    return failures ? 1 : 0;
}
