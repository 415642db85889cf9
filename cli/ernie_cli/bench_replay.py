"""`ernie-local bench --replay`: what paging would do with the choices of a recorded chat, as a table.

Owns the budgets that are tried. Imports no torch even when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_cli import bench_json
from ernie_cli.console import Console
from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_local.replay.replay import Replayed
    from ernie_local.replay.trace import Trace

_SHARES = (0.25, 0.5, 0.75, 1.0)
_COLUMNS = "{:>11}  {:<9}  {:>9}  {:>11}  {:>14}"


def run(path: Path, budgets: Sequence[int], decays: Sequence[float | None], invocation: Invocation) -> None:
    """Replay the trace in each of these budgets, or in some of our own; a line or an entry for each."""
    from ernie_local.replay.replay import check_budget, compare
    from ernie_local.replay.trace_file import read_trace

    trace = read_trace(path)
    for budget in budgets:
        check_budget(trace, budget)
    budgets = budgets or default_budgets(trace)
    entries: list[dict[str, object]] = []
    if invocation.json_object is not None:
        invocation.json_object |= {**bench_json.trace_fields(path, trace), "budgets": entries}
        # One by one, so that those before an interruption are in the object.
        entries.extend(
            bench_json.budget_fields(trace, budget, compare(trace, budget, decays)) for budget in budgets
        )
        return
    console = Console()
    for line in head(trace):
        console.answer(line + "\n")
    for budget in budgets:
        for line in lines(budget, compare(trace, budget, decays)):
            console.answer(line + "\n")


def default_budgets(trace: Trace) -> list[int]:
    """Shares of the bytes of all text pages, but never less than paging needs."""
    from ernie_local.replay.replay import least_bytes

    whole, least = trace.bank_bytes("text"), least_bytes(trace)
    return sorted({max(least, int(share * whole)) for share in _SHARES})


def head(trace: Trace) -> Iterator[str]:
    """What was recorded, and the names of the columns."""
    from ernie_local.sizes import format_bytes

    banks = [f"{format_bytes(trace.bank_bytes(bank))} of {bank} experts" for bank in trace.banks]
    yield (
        f"{trace.model}: {trace.prompt_tokens} prompt tokens, {trace.decoded_tokens} decoded; "
        + ", ".join(banks)
    )
    yield _COLUMNS.format("memory", "policy", "text hits", "vision hits", "read per token")


def lines(budget: int, results: Sequence[Replayed]) -> Iterator[str]:
    """A line a policy."""
    from ernie_local.sizes import format_bytes

    for index, result in enumerate(results):
        read = result.bytes_per_token
        yield _COLUMNS.format(
            "" if index else format_bytes(budget),
            result.policy if result.decay is None else f"{result.policy} {result.decay:g}",
            *(_hit_rate(result, bank) for bank in ("text", "vision")),
            "-" if read is None else format_bytes(round(read)),
        ).rstrip()


def _hit_rate(result: Replayed, bank: str) -> str:
    stats = result.stats.banks.get(bank)
    rate = None if stats is None else stats.decode_hit_rate
    return "-" if rate is None else f"{rate:.1%}"
