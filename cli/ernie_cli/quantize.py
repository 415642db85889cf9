"""The command `ernie-local quantize`: the order of its steps, its result, and what it says.

Everything that can be wrong is checked before samples are drawn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from ernie_cli.quantize_options import QuantizeOptions, check_quantize_options

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_quant.calibration import ExpertReports
    from ernie_quant.job import Job


@dataclass
class PlanObject:
    """What the job needs."""

    weight_bytes: int
    """Of its weight files."""
    small_page_bytes: int
    """Of these, the second pages of `--dual`."""
    scratch_bytes: int
    """Disk besides them while it runs."""
    memory_bytes: int
    """Most memory at any time."""
    seconds: float | None
    """Null for methods without calibration."""


@dataclass
class ExpertObject:
    """What a calibrated expert was made from, and how much of the power of its outputs was lost."""

    layer: int
    bank: Literal["text", "vision"]
    expert: int
    tokens: int
    """Calibration tokens that the router sent to it."""
    effective_tokens: float
    """(sum w)^2 / sum w^2 of their squared router weights w; 0: made from the prior alone."""
    gate_up_error: float
    """Share of the power of the outputs of gate and up that was lost, over the second moments that were
    used."""
    down_error: float
    """The same of down."""
    small_gate_up_error: float | None
    """The same of its small page; null without `--dual`."""
    small_down_error: float | None
    """The same of its small page; null without `--dual`."""


@dataclass
class QuantizeResult:
    """One object, whatever the end of the run."""

    out: str | None = None
    """The directory, as given."""
    weight_bytes: int | None = None
    """Bytes of its weight files."""
    calibration_tokens: int | None = None
    """Tokens that went through the model; 0 for all methods but `gptq`."""
    seconds: float | None = None
    """Of this run; a resumed run counts its own only."""
    plan: PlanObject | None = None
    """With `--dry-run`."""
    experts: list[ExpertObject] = field(default_factory=list)
    """One for each calibrated expert; empty for all methods but `gptq`."""


def quantize(options: QuantizeOptions, result: QuantizeResult) -> None:
    """Make a compact checkpoint whose experts have 4 bits, 2 bits, or as many as each one needs.

    OUT appears when it is complete; until then the work is in OUT.partial. After Ctrl-C, SIGTERM (exit code
    75) or a crash, the same command continues where it stopped.
    """
    from ernie_cli.calibration_samples import check_samples, draw_sequences
    from ernie_cli.console import Console
    from ernie_cli.mixed_bits import mixed_job
    from ernie_local.loading.options import use_threads
    from ernie_local.sizes import parse_bytes

    console = Console(quiet=options.as_json)
    use_threads(options.threads)
    check_samples(options, options.method)
    check_quantize_options(options)
    job = _plan(options)
    most_memory = None if options.max_ram is None else parse_bytes(options.max_ram, "max_ram")
    sequences = draw_sequences(job.source, options, console) if options.method == "gptq" else []
    job = replace(job, sequences=sequences, resume=options.resume, most_memory=most_memory)
    if options.is_mixed:
        job = mixed_job(job, options, sequences, console)
    if options.dry_run:
        _tell_plan(job, options, console, result)
        return
    _run(job, options, console, result)
    if job.statistics is not None and job.statistics != options.statistics:
        job.statistics.unlink()  # the checkpoint has it


def _plan(options: QuantizeOptions) -> Job:
    from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.config import read_config
    from ernie_quant.foreign import choose_expert_format
    from ernie_quant.job import Job, check_job
    from ernie_quant.recipe import Recipe

    directory = resolve_model(options.source)
    config = read_config(directory)
    # Of mixed bits the smallest ones for now: what fits is known when all is measured.
    bits = 2 if options.is_mixed else int(options.bits)
    experts = choose_expert_format(options.method, bits, options.group_size)
    dense = "w4" if options.dense == "auto" else options.dense
    tables = format_tables(
        config, FormatChoice(experts, dense, "w8", "w8", small_experts="w2" if options.dual else None)
    )
    job = Job(directory, options.out, tables, Recipe(options.method))
    check_job(job, config)
    return job


def _run(job: Job, options: QuantizeOptions, console: Console, result: QuantizeResult) -> None:
    from ernie_cli.progress import StopSignals, UnitProgress
    from ernie_quant.pipeline import quantize_checkpoint

    started = time.perf_counter()
    with (
        UnitProgress(is_shown=not options.as_json) as progress,
        StopSignals(
            lambda: console.note("stopping after the current unit; press again to stop at once")
        ) as signals,
    ):
        reports = quantize_checkpoint(
            replace(job, on_unit=progress.show, should_stop=signals.was_asked, on_note=console.note)
        )
    result.out, result.seconds = str(job.out), time.perf_counter() - started
    result.weight_bytes = sum(path.stat().st_size for path in job.out.glob("*.safetensors"))
    result.calibration_tokens = sum(len(sequence.token_ids) for sequence in job.sequences)
    result.experts = _experts(reports)
    console.note(
        f"{job.out}: {result.weight_bytes / 2**20:,.1f} MiB of weights, made in {result.seconds:,.0f} s"
    )
    _tell_coverage(job, reports, console)


def _experts(reports: ExpertReports) -> list[ExpertObject]:
    from ernie_cli.json_object import fill_result

    return [
        fill_result(ExpertObject, report, layer=layer_id, bank=bank, expert=expert_id)
        for (layer_id, bank, expert_id), report in reports.items()
    ]


def _tell_coverage(job: Job, reports: ExpertReports, console: Console) -> None:
    """A line for each bank; quant_report.html has each layer."""
    from ernie_local.config import read_config
    from ernie_quant.report.contents import measure_coverage, table_lines

    text = read_config(job.source).text
    rows = measure_coverage(reports, text.hidden_size, text.experts_per_token)
    for line in table_lines([row for row in rows if row.layer is None]):
        console.note(line)


def _tell_plan(job: Job, options: QuantizeOptions, console: Console, result: QuantizeResult) -> None:
    import shutil

    from ernie_cli.json_object import fill_result
    from ernie_cli.progress import duration
    from ernie_local.sizes import format_bytes
    from ernie_quant.pipeline import plan_checkpoint

    plan = plan_checkpoint(job)
    result.plan = fill_result(PlanObject, plan)
    if options.as_json:
        return
    free = shutil.disk_usage(job.out.resolve().parent).free
    disk = plan.weight_bytes + plan.scratch_bytes
    small = f", {format_bytes(plan.small_page_bytes)} of them small pages" if plan.small_page_bytes else ""
    if plan.seconds is not None:
        told = f"about {duration(plan.seconds)}"
    else:
        searches = options.method == "quanto-hqq"
        told = f"{'about 9 hours' if searches else 'a few minutes'} for 30 billion weights"
    console.answer(f"weights:  {format_bytes(plan.weight_bytes)}, {plan.weight_bytes:,} bytes{small}\n")
    console.answer(f"disk:     {format_bytes(disk)} while it runs, {format_bytes(free)} are free\n")
    console.answer(f"memory:   at most about {format_bytes(plan.memory_bytes)}\n")
    console.answer(f"time:     {told}\n")
