"""`ernie-local bench --replay`: what paging would do with a recorded chat, in RAM or on a GPU, as a table.

Every time is predicted, and says so. Imports no torch, not even when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ernie_cli.bench.result import BenchResult, budget_object, prediction_object
from ernie_cli.console import Console
from ernie_cli.settings import stored_profile
from ernie_local.config import MODALITIES
from ernie_local.experts.options import MISS_RULES, BankStats
from ernie_local.planner.gpus import GpuModel, find_gpu_model
from ernie_local.planner.speed import ASSUMED
from ernie_local.planner.tiers import COPY_SECONDS
from ernie_local.replay.replay import Replayed, check_budget, compare
from ernie_local.replay.simulate import GpuTimes, MachineTimes, Simulated, simulate
from ernie_local.replay.trace import Trace, read_trace
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_cli.bench.command import BenchOptions

_SHARES = (0.25, 0.5, 0.75, 1.0)
_COLUMNS = "{:>11}  {:<9}  {:>9}  {:>11}  {:>14}"
_GPU_COLUMNS = "{:>11}  {:<7}  {:>9}  {:>9}  {:>10}  {:>9}  {:>9}"


def replay_in_ram(options: BenchOptions, budgets: Sequence[int], result: BenchResult) -> None:
    """Replay the trace in each of these budgets, or in default ones; a line or an entry for each policy."""
    assert options.replay is not None
    trace = read_trace(options.replay)
    for budget in budgets:
        check_budget(trace, budget)
    result.set_trace(options.replay, trace)
    console = Console(shows_result=not options.as_json)
    console.show(_head(trace))
    for budget in budgets or _default_budgets(trace):
        found = compare(trace, budget, options.decay or (None,))
        # One by one, so that those before an interruption are in the object.
        result.budgets.append(budget_object(trace, budget, list(found)))
        console.show(_lines(budget, found))


def replay_on_gpu(options: BenchOptions, budgets: Sequence[int], gpu_bytes: int, result: BenchResult) -> None:
    """Replay the trace with experts in `gpu_bytes` of the GPU and in each of these budgets of RAM."""
    assert options.replay is not None
    assert options.gpu is not None
    gpu = find_gpu_model(options.gpu)
    trace = read_trace(options.replay)
    budgets = budgets or [trace.plan.most_bytes]
    for budget in (gpu_bytes, *budgets):
        check_budget(trace, budget)
    profile = stored_profile()
    rates, source = ASSUMED, "assumed disk and processor (ernie-local bench measures them)"
    if profile is not None:
        rates, source = profile.rates, f"disk and processor as measured {profile.date}"
    of_gpu = gpu.rates
    times = MachineTimes(
        rates.disk_bytes_per_second,
        rates.memory_bytes_per_second,
        gpu=GpuTimes(of_gpu.memory_bytes_per_second, of_gpu.link_bytes_per_second, COPY_SECONDS),
    )
    result.set_trace(options.replay, trace)
    console = Console(shows_result=not options.as_json)
    console.show(_gpu_head(gpu, gpu_bytes, source))
    for budget in budgets:
        for name, rule in MISS_RULES.items():
            found = simulate(trace, budget, times, gpu_bytes, rule)
            result.predictions.append(prediction_object(gpu.gpu_id, gpu_bytes, budget, name, found))
            console.show([_gpu_line(budget, name, found)])


def _default_budgets(trace: Trace) -> list[int]:
    """Shares of the bytes of all text pages, but never less than paging needs."""
    whole, least = trace.bank_bytes("text"), trace.plan.least_bytes
    return sorted({max(least, int(share * whole)) for share in _SHARES})


def _head(trace: Trace) -> Iterator[str]:
    banks = [f"{format_bytes(trace.bank_bytes(bank))} of {bank} experts" for bank in trace.banks]
    yield (
        f"{trace.model}: {trace.prompt_tokens} prompt tokens, {trace.decoded_tokens} decoded; "
        + ", ".join(banks)
    )
    yield _COLUMNS.format("memory", "policy", "text hits", "vision hits", "read per token")


def _lines(budget: int, results: Sequence[Replayed]) -> Iterator[str]:
    for index, result in enumerate(results):
        read, banks = result.bytes_per_token, result.stats.banks
        yield _COLUMNS.format(
            "" if index else format_bytes(budget),
            result.policy if result.decay is None else f"{result.policy} {result.decay:g}",
            *(_percent(banks.get(bank, BankStats()).decode_hit_rate) for bank in MODALITIES),
            "-" if read is None else format_bytes(round(read)),
        ).rstrip()


def _gpu_head(gpu: GpuModel, gpu_bytes: int, source: str) -> Iterator[str]:
    yield (
        f"predicted, not measured: {format_bytes(gpu_bytes)} of {gpu.name} by its data sheet, {source}; "
        "time of routed experts alone"
    )
    yield _GPU_COLUMNS.format(
        "memory", "misses", "GPU hits", "RAM hits", "ms a token", "for link", "for disk"
    )


def _gpu_line(budget: int, rule: str, found: Simulated) -> str:
    stats, tokens = found.stats, max(1, found.stats.decoded_tokens)
    above = stats.gpu
    assert above is not None
    waits = (found.decode_seconds, above.decode_wait_seconds, stats.decode_wait_seconds)
    return _GPU_COLUMNS.format(
        format_bytes(budget),
        rule,
        *(_percent(one.banks["text"].decode_hit_rate) for one in (above, stats)),
        *(f"{1e3 * seconds / tokens:.2f}" for seconds in waits),
    )


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"
