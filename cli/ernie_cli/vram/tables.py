"""Lays out the tables of `ernie-local vram` in the width there is: memory, GPUs, contexts, and bars."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from ernie_cli.vram.report import ContextChoice, GpuRow
from ernie_local.planner.speed import Band
from ernie_local.planner.terms import NOTHING, Amount, MemoryPlan
from ernie_local.sizes import format_bytes

_PLACES = {"ram": "RAM", "vram": "gpu"}
_SHORT_ROW = "{:<22}{:>11}  {}"
_GPU_ROW = "{:<19}{:>9} {:<9}{:>8}{:>8}{:>7} {:>16}"
_CONTEXT_ROW = "{:>10}{:>10}{:>13}  {}"
_WIDTH_OF_TABLES = 79
_BAR_LABEL, _BAR_AMOUNT = 8, 12
_TIERS = {
    "resident": "resident",
    "paged": "paged",
    "paged from disk": "from disk",
    "needs ram": "needs RAM",
    "does not fit": "too small",
}


def memory_lines(memory: MemoryPlan, width: int) -> Iterator[str]:
    """A line for each term, then the sums and their limit; in a narrow place the most of each term alone."""
    phases = memory.phases
    if width >= _WIDTH_OF_TABLES:
        wide_row = "{:<25}" + "{:>11}" * len(phases) + "  {}"
        yield wide_row.format(_PLACES[memory.place], *phases, "how").rstrip()
        for term in memory.terms:
            amounts = [term.phases.get(phase, NOTHING).best for phase in phases]
            yield wide_row.format(term.name, *map(_cell, amounts), term.provenance)
            yield from _range_lines(term.most)
        yield wide_row.format("all", *(_cell(memory.phase(phase).best) for phase in phases), "").rstrip()
    else:
        rows = [("most of " + _PLACES[memory.place], "bytes", "how")]
        rows += [(term.name, _cell(term.most.best), term.provenance) for term in memory.terms]
        rows += [(f"all in {phase}", _cell(memory.phase(phase).best), "") for phase in phases]
        for row in rows:
            yield from wrapped(_SHORT_ROW.format(*row).rstrip(), width)
    peak = memory.peak
    limit = "" if memory.limit_bytes is None else f", of {format_bytes(memory.limit_bytes)}"
    if memory.left_bytes:
        limit += f", of which {format_bytes(memory.left_bytes)} are left to others"
    yield from wrapped(
        f"peak: {format_bytes(peak.best)} in {memory.peak_phase} "
        f"({format_bytes(peak.low)} to {format_bytes(peak.high)}){limit}",
        width,
    )


def _range_lines(amount: Amount) -> Iterator[str]:
    if amount.low != amount.high:
        yield f"{'':<25}  {format_bytes(amount.low)} to {format_bytes(amount.high)}"


def gpu_lines(rows: Iterable[GpuRow], width: int) -> Iterator[str]:
    """A line for each GPU, or some in a narrow place."""
    heads = ("gpu", "usable", "fits", "experts", "context", "A4 dpi", "tokens/s")
    yield from wrapped(_GPU_ROW.format(*heads), width)
    for row in rows:
        plan, page = row.plan, row.page
        line = _GPU_ROW.format(
            row.gpu.gpu_id,
            format_bytes(row.gpu.usable_bytes),
            _TIERS[plan.tier],
            f"{plan.resident_share:.0%}" if plan.fits else "-",
            "-" if row.context_size is None else f"{row.context_size // 1024}k",
            "-" if page is None else page.dpi,
            _short_band_text(row.speed.decode) if plan.fits else "-",
        )
        yield from wrapped(line.rstrip(), width)


def _short_band_text(band: Band) -> str:
    """As `band_text`, in the two digits that a prediction deserves."""
    best, low, high = (f"{float(f'{rate:.2g}'):,g}" for rate in (band.best, band.low, band.high))
    return f"{best} ({low}-{high})"


def context_lines(choices: Sequence[ContextChoice], width: int) -> Iterator[str]:
    """What a longer context costs: experts that have to leave memory, and speed."""
    yield from wrapped(_CONTEXT_ROW.format("--ctx-size", "experts", "peak", "decode, tokens/s"), width)
    for choice in choices:
        row = _CONTEXT_ROW.format(
            f"{choice.ctx_size // 1024}k",
            f"{choice.resident_share:.0%}",
            format_bytes(choice.peak_bytes),
            band_text(choice.decode_tok_s),
        )
        yield from wrapped(row, width)


def bar_lines(memory: MemoryPlan, width: int = 80) -> Iterator[str]:
    """The phases as bars, with a mark at the limit."""
    bar_width = max(8, width - _BAR_LABEL - _BAR_AMOUNT)
    limit = memory.limit_bytes or 0
    full = max(limit, *(memory.phase(phase).best for phase in memory.phases), 1)
    mark = round(limit / full * bar_width) if limit else None
    for phase in memory.phases:
        num_bytes = memory.phase(phase).best
        filled = round(num_bytes / full * bar_width)
        cells = ["█" if index < filled else " " for index in range(bar_width + 1)]
        if mark is not None:
            cells[mark] = "│"
        yield f"{phase:<{_BAR_LABEL}}{''.join(cells).rstrip()} {format_bytes(num_bytes)}"
    if mark is not None:
        yield f"{'limit':<{_BAR_LABEL}}{' ' * mark}│ {format_bytes(limit)}"


def band_text(band: Band) -> str:
    """The likely number, and its range."""
    return f"{_number(band.best)} ({_number(band.low)} to {_number(band.high)})"


def _number(rate: float) -> str:
    """Three digits that count; never an exponent."""
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.3g}" if rate >= 0.001 else f"{rate:.4f}"


def _cell(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else ""


def wrapped(line: str, width: int) -> list[str]:
    """The line, or its words in lines of this width."""
    if len(line) <= width:
        return [line]
    return textwrap.wrap(" ".join(line.split()), max(width, 16), subsequent_indent="  ")
