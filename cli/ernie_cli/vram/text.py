"""Shows people what `ernie-local vram` found: the model, its images, the verdict, and a plot."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ernie_cli.failures import spell_options
from ernie_cli.images import shrink_text, token_text
from ernie_cli.settings import table_columns
from ernie_cli.vram.report import GivenRates, GpuRow, Report, Target
from ernie_cli.vram.result import SessionsObject, count_model_weights
from ernie_cli.vram.tables import band_text, bar_lines, context_lines, gpu_lines, memory_lines, wrapped
from ernie_local.escapes import printable_line
from ernie_local.files import written_whole
from ernie_local.media.image_size import ImageReport
from ernie_local.model.memory_use import encoding_bytes
from ernie_local.planner.gpu import GpuPlan
from ernie_local.planner.kv_loss import INT8_KV_LOSS
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.solve import Obstacle
from ernie_local.planner.speed import Speed
from ernie_local.planner.start import Start
from ernie_local.planner.terms import NOTHING, MemoryPlan
from ernie_local.sizes import GIB, format_bytes

_GPU_NOTICE = "figures for GPUs are predictions: this version has not run on a GPU yet"
_PLOT_INCHES = (9.0, 5.0)


def model_lines(model: ModelSize) -> Iterator[str]:
    """Name, weights and bytes."""
    weights = count_model_weights(model)
    origin = "headers" if model.origin == "headers" else "sizes in config.json"
    yield f"{model.name}: {weights:,} weights, {format_bytes(model.file_bytes)} of files (from {origin})"


def report_lines(report: Report) -> Iterator[str]:
    """The model, its images, every term of memory, bars on a terminal, and whether it fits."""
    yield from model_lines(report.model)
    conversation = report.conversation
    kv_bytes = conversation.kv_size(report.model.config.text).bytes_per_token
    for image in conversation.images:
        yield _priced_image_line(image, report.model, kv_bytes, conversation.item_bytes)
        yield from (f"  {spell_options(note)}" for note in image.notes)
    width = table_columns()
    yield from ("", *memory_lines(report.memory, width))
    if report.gpu is not None:
        yield from ("", *memory_lines(report.gpu.ram, width))
    if sys.stdout.isatty():
        yield from ("", *bar_lines(report.memory, width))
    yield from ("", *_verdict_lines(report))
    if report.conversation.kv_dtype == "int8":
        yield INT8_KV_LOSS.line
    if report.choices:
        yield from ("", *context_lines(report.choices, width))
    if report.solved is not None:
        yield _solved_text(report.solved)
    if report.obstacle is not None:
        yield f"in the way of {_obstacle_text(report.obstacle)}"
    for flag in report.flags:
        yield f"make it fit: {flag}"


def _solved_text(solved: Mapping[str, str | int | None]) -> str:
    """What --solve found at most."""
    if "a4_dpi" in solved:
        found = solved["a4_dpi"]
        if found is None:
            return "largest page of A4: none fits"
        size = f"{solved['width']} x {solved['height']}, {solved['image_tokens']} tokens"
        return f"largest page of A4: {found} dpi ({size})"
    if "of" in solved:
        return f"experts in the fastest memory: {solved['experts_per_layer']} of {solved['of']} in each layer"
    if "bits" in solved:
        return f"most bits of experts: {'none fit' if solved['bits'] is None else solved['bits']}"
    context = solved["ctx_size"]
    return f"longest context: {'none fits' if context is None else f'{context} tokens'}"


def _obstacle_text(obstacle: Obstacle) -> str:
    """What is asked for, and both numbers."""
    needed, available = obstacle.needed, obstacle.available
    if obstacle.of in ("ram", "vram"):
        place = "of RAM" if obstacle.of == "ram" else "on the GPU"
        return f"{obstacle.asked}: needs {format_bytes(needed)} {place}, {format_bytes(available)} there"
    if obstacle.of == "image_size":
        return f"{obstacle.asked}: {needed:,} pixels, the model looks at {available:,} of an image at most"
    place = "the context" if obstacle.of == "context_size" else "the longest context of the model"
    return f"{obstacle.asked}: needs {needed:,} tokens, {place} has {available:,}"


def _priced_image_line(image: ImageReport, model: ModelSize, kv_bytes: int, item_bytes: int) -> str:
    encoder_bytes = encoding_bytes(model.config.tower, [image.patches], item_bytes)
    return (
        f"{image.name}: {shrink_text(image)} ({image.scale:.2f}x), "
        f"{token_text(image)}, {format_bytes(image.tokens * kv_bytes)} of KV cache, "
        f"{format_bytes(encoder_bytes)} while it is encoded"
    )


def _verdict_lines(report: Report) -> Iterator[str]:
    """Whether it fits, where experts are, and how fast it will be."""
    if report.gpu is not None:
        assert report.gpu_speed is not None
        yield f"on {report.target.gpu_name}: {_gpu_verdict(report.gpu)}"
        for decision in report.gpu.decisions:
            yield from wrapped(f"  {decision}", table_columns())
        if report.gpu.fits:
            yield _speed_text(report.gpu_speed, report.target)
            yield from _miss_lines(report)
        if report.gpu.host_least_bytes:
            yield (
                f"least with paged experts: {format_bytes(report.gpu.least_bytes)} of GPU memory, "
                f"{format_bytes(report.gpu.host_least_bytes)} of RAM, "
                f"{format_bytes(report.model.file_bytes)} on disk"
            )
        if report.target.last_pytorch is not None:
            yield f"PyTorch {report.target.last_pytorch} is the last version that is built for this GPU"
        yield _GPU_NOTICE
        return
    yield f"on the CPU: {_cpu_verdict(report)}"
    if report.cpu.placement is None:
        return
    if swapped := report.cpu.placement.swapped_bytes:
        yield f"vision tower and resampler: {format_bytes(swapped)}, in memory only while images are encoded"
    yield _speed_text(report.cpu_speed, report.target)
    if report.start is not None:
        yield _start_text(report.start)
    if report.target.profile is not None:
        yield report.target.profile.summary
    if not report.cpu.memory.fits:
        yield (
            "it can be loaded, but its peak exceeds the limit: "
            "a smaller --ctx-size, smaller images, or more memory"
        )


def _speed_text(speed: Speed, target: Target) -> str:
    """Tokens per second, and by which rates."""
    source = "by this machine's measured rates" if speed.is_measured else "by assumed rates"
    if target.given != GivenRates():
        names = [name for name in ("cpu", "link", "disk") if getattr(target.given, name) is not None]
        others = "assumed" if target.profile is None else "measured or assumed"
        source = f"by the given {' and '.join(names)} rate, others {others}"
    prefill = "" if speed.prefill is None else f", prompt {band_text(speed.prefill)}"
    return f"decode {band_text(speed.decode)} tokens/s{prefill} ({source})"


def _miss_lines(report: Report) -> Iterator[str]:
    """How fast each rule for experts that the GPU lacks is, and what the prediction hangs on."""
    speed = report.gpu_speed
    if speed is None or not speed.by_miss_rule:
        return
    rules = ", ".join(f"{name} {rate:.3g}" for name, rate in speed.by_miss_rule.items())
    yield f"with --misses {speed.miss_rule} for experts that the GPU lacks: {rules} tokens/s"
    changed = "; ".join(
        f"{name} {band.low:.3g} to {band.high:.3g}" for name, band in report.sensitivity().items()
    )
    yield f"with 30 % less or more of a rate: {changed} tokens/s"


def _start_text(start: Start) -> str:
    """Seconds until it computes, and until all is in memory."""
    later = f", the last weights after {start.all_read:.1f} s" if start.all_read > start.cold else ""
    return (
        f"begins to compute after {start.warm:.1f} s (plus Python and torch) with its files in the page "
        f"cache, else after {start.cold:.1f} s{later}"
    )


def known_gpu_lines(rows: Sequence[GpuRow], chat: ChatPlan, *, is_plain: bool) -> Iterator[str]:
    """The table of GPUs, each with the chat that was asked for, and what would fit at most.

    is_plain: whether experts are in 16 bits.
    """
    if is_plain:
        yield "for experts in 16 bits, as published: --bits 4, 3 or 2 shows what smaller GPUs hold"
    yield from gpu_lines(rows, table_columns())
    yield f"fits, experts (on the GPU), tokens/s: with a context of {chat.context_size // 1024}k"
    yield "context: the longest that fits; A4 dpi: the largest page that fits into the context asked for"
    old: dict[str, dict[str, None]] = {}  # versions of PyTorch, and what they are the last for
    for row in rows:
        if row.gpu.last_pytorch is not None:
            old.setdefault(row.gpu.last_pytorch, {})[row.gpu.compute_capability] = None
    for version, capabilities in old.items():
        shown = ", ".join(capabilities)
        yield f"PyTorch {version} is the last version that is built for compute capability {shown}"
    yield _GPU_NOTICE


def draw(memory: MemoryPlan, title: str, path: Path) -> None:
    """Write the image; its kind is the path's suffix, .svg or .png. ErnieLocalError where it cannot be."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]
    figure = Figure(figsize=_PLOT_INCHES, layout="constrained")
    axes = figure.subplots()
    bottoms = [0.0] * len(memory.phases)
    for index, term in enumerate(memory.terms):
        heights = [term.phases.get(phase, NOTHING).best / GIB for phase in memory.phases]
        label, color = f"{term.name} ({term.provenance})", colors[index % len(colors)]
        axes.bar(memory.phases, heights, bottom=bottoms, label=label, color=color)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    if memory.limit_bytes is not None:
        axes.axhline(memory.limit_bytes / GIB, color="black", linestyle="--", label="limit")
    axes.set_ylabel("GiB")
    axes.set_title(printable_line(title), parse_math=False)
    figure.legend(loc="outside right upper", fontsize="small")
    with written_whole(path, "the plot") as file:
        figure.savefig(file, format=path.suffix.removeprefix("."))


def _cpu_verdict(report: Report) -> str:
    plan = report.cpu
    if plan.placement is None:
        return f"does not fit, needs at least {format_bytes(plan.least_bytes)}"
    chunk = f"prompts in chunks of {plan.placement.chunk_tokens}"
    slots = plan.slots_bytes
    if slots is None:
        experts = "every expert in memory, " if report.model.config.text.banks else ""
        return f"fits, {experts}{chunk}"
    share = plan.resident_share
    return (
        f"fits with experts paged from disk: {format_bytes(slots)} of memory for them in decode, "
        f"{share:.0%} of the text experts, {chunk}; --ram {format_bytes(plan.resident_bytes)} holds all"
    )


def _gpu_verdict(plan: GpuPlan) -> str:
    if plan.tier == "resident":
        return "fits resident"
    if plan.tier == "does not fit":
        return f"does not fit, needs at least {format_bytes(plan.least_bytes)} of its memory"
    share = f"{plan.resident_share:.0%} of the text experts"
    room = f"{format_bytes(plan.slots_bytes)} for experts in decode, {share}"
    if plan.tier == "paged":
        return f"fits paged: {room}, all of them in RAM ({format_bytes(plan.host_bytes)})"
    if plan.tier == "paged from disk":
        return (
            f"fits paged from disk: {room}, with RAM {plan.memory_share:.0%} of them, the rest on disk; "
            f"--ram {format_bytes(plan.host_bytes)} holds all"
        )
    return f"needs --ram {format_bytes(plan.host_least_bytes)} for experts on their way; on the GPU {room}"


def session_lines(sessions: SessionsObject) -> Iterator[str]:
    """Full-context sessions by the published rule; by ours, too, with every term, if it was counted."""
    ours = sessions.ours
    if ours is None:
        yield f"{sessions.max_concurrency:.3f} sessions of {sessions.tokens:,} tokens at once"
        return
    yield f"published rule: {sessions.max_concurrency:.3f} sessions of {sessions.tokens:,} tokens"
    yield (
        f"ours: {ours.best:.3f} ({ours.low:.3f} to {ours.high:.3f}), "
        f"{format_bytes(ours.session_bytes)} per session, besides"
    )
    for term in ours.terms:
        yield f"  {term.name:<26}{format_bytes(term.best):>11}  {term.provenance}"
