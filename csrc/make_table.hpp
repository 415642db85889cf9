// All kernels of one instruction set; each of the kernels_*.cpp fills a table with its own Isa.
#pragma once

#include "attention_kernel.hpp"
#include "block_kernel.hpp"
#include "quantize_kernel.hpp"
#include "tile_kernel.hpp"

namespace ernie_local {

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
    table.softmax = &softmax_row<Isa>;
    table.attend[static_cast<int>(CacheFormat::kFloat32)] = &attend<Isa, CacheFormat::kFloat32>;
    table.attend[static_cast<int>(CacheFormat::kBFloat16)] = &attend<Isa, CacheFormat::kBFloat16>;
    table.attend[static_cast<int>(CacheFormat::kFloat16)] = &attend<Isa, CacheFormat::kFloat16>;
    table.attend[static_cast<int>(CacheFormat::kInt8)] = &attend<Isa, CacheFormat::kInt8>;
    table.merge = &merge_parts<Isa>;
    table.search_ranges = &quantizing::search_ranges<Isa>;
    table.choose_whole = &quantizing::choose_whole<Isa>;
    table.gptq_block = &quantizing::gptq_block<Isa>;
    table.refine_block = &quantizing::refine_block<Isa>;
    return table;
}

}  // namespace ernie_local
