// The inner loops of choosing codes, all rows of a matrix on all threads. The tasks are in kernel_table.hpp.
#pragma once

#include "kernel_table.hpp"

namespace ernie_local {

void search_ranges(const SearchTask& task);
void choose_whole(const WholeTask& task);
void gptq_block(const GptqTask& task);
void refine_block(const RefineTask& task);
void walk_trellis(const WalkTask& task);
void decide_block(const DecideTask& task);
void refit_scales(const RefitTask& task);

}  // namespace ernie_local
