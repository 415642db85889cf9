// All kernels of one instruction set; each of the kernels_*.cpp fills a table with its own Isa.
#pragma once

#include "attention_kernel.hpp"
#include "block_attention_kernel.hpp"
#include "block_kernel.hpp"
#include "low_rank_kernel.hpp"
#include "quantize_kernel.hpp"
#include "tile_kernel.hpp"
#include "trellis_kernel.hpp"

namespace ernie_local {

template <class Isa, CacheFormat kFormat>
void fill_cache_format(KernelTable& table) {
    constexpr int at = static_cast<int>(kFormat);
    table.attend[at] = &attend<Isa, kFormat>;
    table.store_token[at] = &store_token<Isa, kFormat>;
    table.round_keys[at] = &round_keys<Isa, kFormat>;
}

template <class Isa>
KernelTable make_table(const char* name) {
    KernelTable table{};
    table.name = name;
    table.num_widths = Isa::kNumWidths;
    table.quantize = &quantize_row<Isa, false>;
    if constexpr (Isa::kShortSums) table.quantize_bounded = &quantize_row<Isa, true>;
    table.swiglu = &swiglu<Isa>;
    fill_formats<Isa>(table, Formats{});
    if constexpr (Isa::kHasBlocks) fill_blocks<Isa>(table, Formats{});
    table.rms_norm = &rms_norm_row<Isa>;
    table.dot = &dot_floats<Isa>;
    table.dot_bfloats = &dot_bfloats<Isa>;
    table.add_low_rank_tile = &add_low_rank_tile<Isa>;
    table.softmax = &softmax_row<Isa>;
    fill_cache_format<Isa, CacheFormat::kFloat32>(table);
    fill_cache_format<Isa, CacheFormat::kBFloat16>(table);
    fill_cache_format<Isa, CacheFormat::kFloat16>(table);
    fill_cache_format<Isa, CacheFormat::kInt8>(table);
    table.merge = &merge_parts<Isa>;
    table.attend_rows = &attend_rows<Isa>;
    table.search_ranges = &quantizing::search_ranges<Isa>;
    table.choose_whole = &quantizing::choose_whole<Isa>;
    table.gptq_block = &quantizing::gptq_block<Isa>;
    table.refine_block = &quantizing::refine_block<Isa>;
    table.walk_trellis = &quantizing::walk_trellis<Isa>;
    table.decide_block = &quantizing::decide_block<Isa>;
    table.refit_scales = &quantizing::refit_scales<Isa>;
    return table;
}

}  // namespace ernie_local
