"""What `ernie-local vram` prints for people: tables of terms and phases, GPUs a line each, bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from ernie_local.planner.terms import NOTHING, PHASES, MemoryPlan
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_cli.vram_report import Report
    from ernie_local.planner.conversation import PricedImage
    from ernie_local.planner.gpu import GpuPlan
    from ernie_local.planner.gpus import GpuModel
    from ernie_local.planner.model_size import ModelSize
    from ernie_local.planner.speed import Band, Speed

GPU_NOTICE = "figures for GPUs are predictions: nothing of this version has run on a GPU yet"
_PLACES = {"ram": "RAM", "vram": "gpu"}
_ROW = "{:<26}" + "{:>11}" * len(PHASES) + "  {}"
_GPU_ROW = "{:<22}{:>10}  {:<14}{:>11}  {:>16}"
_BAR_WIDTH = 60
_TIERS = {
    "resident": "fits resident",
    "paged": "fits paged",
    "needs ram": "needs --ram",
    "does not fit": "does not fit",
}


def model_lines(model: ModelSize) -> Iterator[str]:
    """What it is."""
    weights = sum(part.weights for part in model.parts if not part.name.startswith("small"))
    origin = "headers" if model.origin == "headers" else "sizes in config.json"
    yield f"{model.name}: {weights:,} weights, {format_bytes(model.file_bytes)} of files, by {origin}"


def image_line(image: PricedImage, model: ModelSize, kv_bytes: int) -> str:
    """What an image costs; kv_bytes: of a token."""
    (width, height), (new_width, new_height) = image.original_size, image.resized_size
    return (
        f"{image.name}: {width}x{height} -> {new_width}x{new_height} ({image.scale:.2f}x), "
        f"{image.tokens} tokens, {format_bytes(image.tokens * kv_bytes)} of KV cache, "
        f"{format_bytes(image.encoder_bytes(model.config))} while it is encoded"
    )


def memory_lines(memory: MemoryPlan) -> Iterator[str]:
    """A line a term, then the sums and what they are held to."""
    yield _ROW.format(_PLACES[memory.place], *PHASES, "how").rstrip()
    for term in memory.terms:
        amounts = [term.phases.get(phase, NOTHING).best for phase in PHASES]
        low, high = term.most.low, term.most.high
        band = "" if low == high else f" ({format_bytes(low)} to {format_bytes(high)})"
        yield _ROW.format(term.name, *map(_cell, amounts), term.provenance + band)
    yield _ROW.format("all", *(_cell(memory.phase(phase).best) for phase in PHASES), "").rstrip()
    peak = memory.peak
    limit = "" if memory.limit_bytes is None else f", of {format_bytes(memory.limit_bytes)}"
    yield (
        f"peak: {format_bytes(peak.best)} in {memory.peak_phase} "
        f"({format_bytes(peak.low)} to {format_bytes(peak.high)}){limit}"
    )


def verdict_lines(report: Report) -> Iterator[str]:
    """Whether it fits, where experts go, and how fast it will be."""
    if report.gpu is not None:
        assert report.gpu_speed is not None
        yield f"on {report.target.gpu_name}: {_gpu_verdict(report.gpu)}"
        if report.gpu.fits:
            yield speed_text(report.gpu_speed)
        yield GPU_NOTICE
        return
    yield f"on the CPU: {_cpu_verdict(report)}"
    if not report.cpu.fits:
        return
    yield speed_text(report.cpu_speed)
    if report.target.profile is not None:
        yield report.target.profile.summary
    if not report.cpu.memory.fits:
        yield (
            "it can be loaded, but its peak goes over what may be taken: "
            "a smaller --ctx-size, smaller images, or more memory"
        )


def speed_text(speed: Speed) -> str:
    """Tokens a second, and by whose rates."""
    source = "by this machine's measured rates" if speed.is_measured else "by assumed rates"
    prefill = "" if speed.prefill is None else f", prompt {_band(speed.prefill)}"
    return f"decode {_band(speed.decode)} tokens/s{prefill} ({source})"


def gpu_lines(gpus: Iterable[tuple[GpuModel, GpuPlan, Speed]]) -> Iterator[str]:
    """A line a GPU."""
    yield _GPU_ROW.format("gpu", "to be used", "verdict", "experts", "decode, tokens/s")
    for gpu, plan, speed in gpus:
        fits = plan.tier != "does not fit"
        verdict = _TIERS[plan.tier]
        yield _GPU_ROW.format(
            gpu.gpu_id,
            format_bytes(gpu.usable_bytes),
            verdict,
            f"{plan.resident_share:.0%}" if fits else "",
            _band(speed.decode) if plan.fits else "",
        ).rstrip() + (f"  --ram {format_bytes(plan.host_bytes)}" if plan.tier == "needs ram" else "")
    yield GPU_NOTICE


def bar_lines(memory: MemoryPlan) -> Iterator[str]:
    """The phases as bars, the limit as a mark on each."""
    limit = memory.limit_bytes or 0
    full = max(limit, *(memory.phase(phase).best for phase in PHASES), 1)
    mark = round(limit / full * _BAR_WIDTH) if limit else None
    for phase in PHASES:
        num_bytes = memory.phase(phase).best
        cells = [
            "█" if index < round(num_bytes / full * _BAR_WIDTH) else " " for index in range(_BAR_WIDTH + 1)
        ]
        if mark is not None:
            cells[mark] = "│"
        yield f"{phase:<8}{''.join(cells).rstrip()} {format_bytes(num_bytes)}"
    if limit:
        yield f"{'':<8}{' ' * (mark or 0)}│ {format_bytes(limit)} may be taken"


def _cpu_verdict(report: Report) -> str:
    plan = report.cpu
    if plan.placement is None:
        return f"does not fit, {format_bytes(plan.least_bytes)} are needed at least"
    chunk = f"prompts in chunks of {plan.placement.chunk_tokens}"
    slots = plan.slots_bytes
    if slots is None:
        return f"fits, every expert in memory, {chunk}"
    share = plan.resident_share(report.model)
    return (
        f"fits with experts paged from disk: {format_bytes(slots)} of memory for them in decode, "
        f"{share:.0%} of the text experts, {chunk}; with --ram {format_bytes(plan.resident_bytes)} all stay"
    )


def _gpu_verdict(plan: GpuPlan) -> str:
    if plan.tier == "resident":
        return "fits resident"
    if plan.tier == "does not fit":
        return f"does not fit, {format_bytes(plan.least_bytes)} of its memory are needed at least"
    share = f"{plan.resident_share:.0%} of the text experts"
    room = f"{format_bytes(plan.slots_bytes)} for experts in decode, {share}"
    if plan.tier == "paged":
        return f"fits paged: {room}, all of them in RAM ({format_bytes(plan.host_bytes)})"
    return f"needs --ram {format_bytes(plan.host_bytes)} for all experts in RAM; on the GPU {room}"


def _cell(num_bytes: int) -> str:
    return format_bytes(num_bytes) if num_bytes else ""


def _band(band: Band) -> str:
    return f"{band.best:.3g} ({band.low:.3g} to {band.high:.3g})"
