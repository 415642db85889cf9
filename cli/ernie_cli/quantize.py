"""The command `ernie-local quantize`: its options and the order of its steps.

Everything that can be wrong is looked at before samples are drawn. Imports typer and nothing heavy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ernie_cli.invocation import Invocation
from ernie_cli.quantize_options import (
    AsJson,
    CalibrationFolder,
    Debug,
    Dense,
    DryRun,
    Dual,
    ExpertBits,
    ExpertMethod,
    Family,
    Fit,
    GroupSize,
    MaxRam,
    Method,
    NumSamples,
    Out,
    ResumeChoice,
    Seed,
    Source,
    Statistics,
    TargetSize,
    Threads,
)

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_cli.mixed_bits import SizeChoice
    from ernie_quant.calibration import ExpertReports
    from ernie_quant.job import Job


def quantize(
    context: typer.Context,
    source: Source,
    out: Out,
    bits: ExpertBits = "4",
    dual: Dual = False,
    dense: Dense = "w8",
    target_size: TargetSize = None,
    fit: Fit = None,
    statistics: Statistics = None,
    method: ExpertMethod = "gptq",
    group_size: GroupSize = None,
    samples: NumSamples = 300,
    seed: Seed = 0,
    family: Family = "all",
    calib: CalibrationFolder = None,
    resume: ResumeChoice = "auto",
    max_ram: MaxRam = None,
    threads: Threads = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Make a compact checkpoint whose experts have 4 or 2 bits a weight, or each what it is worth.

    OUT appears when it is whole; until then the work lies in OUT.partial. Stopped with Ctrl-C or SIGTERM
    (exit code 75), or killed, it goes on where it was when the same command is given again.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import quantize_json
    from ernie_cli.calibration_samples import SampleChoice, check_choice, draw_sequences
    from ernie_cli.console import Console
    from ernie_cli.mixed_bits import SizeChoice, check_sizes, mixed_job
    from ernie_cli.quantize_plan import tell_plan
    from ernie_local.sizes import parse_bytes

    if as_json:
        invocation.json_object = quantize_json.empty_object()
    console = Console(quiet=as_json)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    choice = SampleChoice(samples, seed, calib, family)
    check_choice(choice, method)
    sizes = SizeChoice(bits, dense, target_size, fit, statistics, dual)
    check_sizes(sizes, method)
    job = _plan(source, out, sizes, method, group_size)
    most_memory = None if max_ram is None else parse_bytes(max_ram, "--max-ram")
    sequences = draw_sequences(job.source, choice, console) if method == "gptq" else []
    job = replace(job, sequences=sequences, resume=resume, most_memory=most_memory)
    if sizes.is_mixed:
        job = mixed_job(job, sizes, sequences, console, shows_progress=not as_json)
    if dry_run:
        tell_plan(job, console, invocation.json_object)
        return
    _run(job, console, invocation)
    if job.statistics is not None and job.statistics != statistics:
        job.statistics.unlink()  # the checkpoint has it


def _plan(source: str, out: Path, sizes: SizeChoice, method: Method, group_size: int | None) -> Job:
    from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.config import read_config
    from ernie_quant.foreign import choose_expert_format
    from ernie_quant.job import Job, check_job
    from ernie_quant.recipe import Recipe

    directory = resolve_model(source)
    config = read_config(directory)
    experts = choose_expert_format(method, 2 if sizes.is_mixed else int(sizes.bits), group_size)
    # Of mixed bits the smallest ones for now: what fits is known when all is measured.
    dense = "w4" if sizes.dense == "auto" else sizes.dense
    tables = format_tables(
        config, FormatChoice(experts, dense, "w8", "w8", small_experts="w2" if sizes.dual else None)
    )
    job = Job(directory, out, tables, Recipe(method))
    check_job(job, config)
    return job


def _run(job: Job, console: Console, invocation: Invocation) -> None:
    from ernie_cli import quantize_json
    from ernie_cli.progress import UnitProgress
    from ernie_cli.stop_signals import StopSignals
    from ernie_quant.pipeline import quantize_checkpoint

    started = time.perf_counter()
    with (
        UnitProgress(is_shown=invocation.json_object is None) as progress,
        StopSignals(
            lambda: console.note("stopping after the current unit; again to stop at once")
        ) as signals,
    ):
        reports = quantize_checkpoint(
            replace(job, on_unit=progress.show, should_stop=signals.was_asked, on_note=console.note)
        )
    seconds = time.perf_counter() - started
    weight_bytes = sum(path.stat().st_size for path in job.out.glob("*.safetensors"))
    console.note(f"{job.out}: {weight_bytes / 2**20:,.1f} MiB of weights, made in {seconds:,.0f} s")
    _tell_coverage(job, reports, console)
    if invocation.json_object is not None:
        invocation.json_object |= {
            "out": str(job.out),
            "weight_bytes": weight_bytes,
            "seconds": seconds,
            "experts": quantize_json.expert_list(reports),
            "calibration_tokens": sum(len(sequence.token_ids) for sequence in job.sequences),
        }


def _tell_coverage(job: Job, reports: ExpertReports, console: Console) -> None:
    """A line a bank; quant_report.html has each layer."""
    from ernie_local.config import read_config
    from ernie_quant.report.contents import measure_coverage, table_lines

    text = read_config(job.source).text
    rows = measure_coverage(reports, text.hidden_size, text.experts_per_token)
    for line in table_lines([row for row in rows if row.layer is None]):
        console.note(line)
