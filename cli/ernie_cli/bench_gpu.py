"""`ernie-local bench --replay --gpu`: how fast a recorded chat's experts would be on a GPU, as a table.

Every figure of time is predicted, and says so. Owns which rates are taken and what their source is called.
Imports no torch even when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli import bench_json
from ernie_cli.console import Console
from ernie_cli.invocation import Invocation
from ernie_cli.stored_profile import stored_profile

if TYPE_CHECKING:
    from ernie_local.planner.gpus import GpuModel
    from ernie_local.planner.rates import Rates
    from ernie_local.replay.simulate import Simulated

_COPY_SECONDS = 20e-6  # of a copy beside its bytes: a launch and its way over the bus. Assumed.
_COLUMNS = "{:>11}  {:<7}  {:>9}  {:>9}  {:>10}  {:>9}  {:>9}"


def run(path: Path, gpu_name: str, gpu_bytes: int, budgets: Sequence[int], invocation: Invocation) -> None:
    """Replay the trace with experts in `gpu_bytes` of the GPU and each of these budgets of RAM."""
    from ernie_local.experts.options import MISS_RULES
    from ernie_local.planner.gpus import find_gpu_model
    from ernie_local.replay.replay import check_budget, most_bytes
    from ernie_local.replay.simulate import GpuTimes, MachineTimes, simulate
    from ernie_local.replay.trace_file import read_trace

    gpu = find_gpu_model(gpu_name)
    trace = read_trace(path)
    budgets = budgets or [most_bytes(trace)]
    for budget in (gpu_bytes, *budgets):
        check_budget(trace, budget)
    rates, source = _machine_rates()
    of_gpu = gpu.rates()
    times = MachineTimes(
        rates.disk_bytes_per_second,
        rates.memory_bytes_per_second,
        gpu=GpuTimes(of_gpu.memory_bytes_per_second, of_gpu.link_bytes_per_second, _COPY_SECONDS),
    )
    entries: list[dict[str, object]] = []
    console = None
    if invocation.json_object is None:
        console = Console()
        for line in _head(gpu, gpu_bytes, source):
            console.answer(line + "\n")
    else:
        invocation.json_object |= {**bench_json.trace_fields(path, trace), "predictions": entries}
    for budget in budgets:
        for name, rule in MISS_RULES.items():
            found = simulate(trace, budget, times, gpu_bytes, rule)
            if console is None:
                entries.append(bench_json.prediction_fields(gpu.gpu_id, gpu_bytes, budget, name, found))
            else:
                console.answer(_line(budget, name, found) + "\n")


def _machine_rates() -> tuple[Rates, str]:
    """Of this machine's disk and processor, and where they are from."""
    from ernie_local.planner.speed import ASSUMED

    profile = stored_profile()
    if profile is None:
        return ASSUMED, "assumed disk and processor (ernie-local bench measures them)"
    return profile.rates, f"disk and processor as measured {profile.date}"


def _head(gpu: GpuModel, gpu_bytes: int, source: str) -> Iterator[str]:
    from ernie_local.sizes import format_bytes

    yield (
        f"predicted, not measured: {format_bytes(gpu_bytes)} of {gpu.name} by its data sheet, {source}; "
        "time of routed experts alone"
    )
    yield _COLUMNS.format("memory", "misses", "GPU hits", "RAM hits", "ms a token", "for link", "for disk")


def _line(budget: int, rule: str, found: Simulated) -> str:
    from ernie_local.sizes import format_bytes

    stats, tokens = found.stats, max(1, found.stats.decoded_tokens)
    above = stats.gpu
    assert above is not None
    waits = (found.decode_seconds, above.decode_wait_seconds, stats.decode_wait_seconds)
    return _COLUMNS.format(
        format_bytes(budget),
        rule,
        *(_percent(one.banks["text"].decode_hit_rate) for one in (above, stats)),
        *(f"{1e3 * seconds / tokens:.2f}" for seconds in waits),
    )


def _percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"
