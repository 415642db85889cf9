#include "quantize_ops.hpp"

#include <algorithm>

#include "runtime.hpp"

namespace ernie_local {
namespace {

constexpr int kStripRows = 16;

template <class Task>
void run_strips(StripKernel<Task> KernelTable::* kernel, const Task& task) {
    Runtime& state = runtime();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const int rows = static_cast<int>(task.rows);
    state.pool.run((rows + kStripRows - 1) / kStripRows, [&](int strip) {
        const int first_row = strip * kStripRows;
        (state.kernels->*kernel)(task, first_row, std::min(kStripRows, rows - first_row));
    });
}

}  // namespace

void search_ranges(const SearchTask& task) { run_strips(&KernelTable::search_ranges, task); }
void choose_whole(const WholeTask& task) { run_strips(&KernelTable::choose_whole, task); }
void gptq_block(const GptqTask& task) { run_strips(&KernelTable::gptq_block, task); }
void refine_block(const RefineTask& task) { run_strips(&KernelTable::refine_block, task); }
void walk_trellis(const WalkTask& task) { run_strips(&KernelTable::walk_trellis, task); }
void decide_block(const DecideTask& task) { run_strips(&KernelTable::decide_block, task); }
void refit_scales(const RefitTask& task) { run_strips(&KernelTable::refit_scales, task); }

}  // namespace ernie_local
