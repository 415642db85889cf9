"""The command `ernie-local quantize`: its options and the order of its steps.

Everything that can be wrong is looked at before samples are drawn. Imports typer and nothing heavy.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_cli.mixed_bits import SizeChoice
    from ernie_quant.job import Job
    from ernie_quant.probe import AnsweredSequence

Bits = Literal["4", "2", "mixed"]
Method = Literal["gptq", "clip", "rtn", "nf4", "quanto", "quanto-hqq"]
# How experts are quantized.
ExpertBits = Annotated[
    Bits,
    typer.Option(
        help="Bits of the experts: w4 (4.25 a weight), w2 (2.25; by quanto qint4 or qint2), or mixed: 2.5 on "
        "average, given to each expert and matrix by what it is worth."
    ),
]
ExpertMethod = Annotated[
    Method,
    typer.Option(
        help="gptq calibrates each expert; the others look at weights alone. nf4 is bitsandbytes', quanto "
        "optimum-quanto's, which have to be installed; what they leave is quantized as by clip."
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Weights that share a scale, by nf4 (64) and quanto (128)."),
]
Resume = Literal["auto", "required", "never"]
# What is calibrated on.
NumSamples = Annotated[
    int, typer.Option(metavar="N", min=0, help="Generated documents, charts and texts to calibrate on.")
]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Draw other samples.")]
CalibrationFolder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Calibrate on the pictures of DIR too, with .txt or .json beside them."),
]


def quantize(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A bfloat16 model: a directory, hf:org/name, or nano.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new directory.")],
    bits: ExpertBits = "4",
    dense: Annotated[
        Literal["w8", "w4", "auto"],
        typer.Option(
            help="Attention, shared experts, dense layers and head, read for every token; auto: by what bits "
            "are worth in each layer."
        ),
    ] = "w8",
    target_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Mixed bits for weights of at most this size, such as 10GiB."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Mixed bits for a card of this size: what decoding needs, all but vision experts and tower.",
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What bits are worth, from `ernie-local calibrate`."),
    ] = None,
    method: ExpertMethod = "gptq",
    group_size: GroupSize = None,
    samples: NumSamples = 300,
    seed: Seed = 0,
    calib: CalibrationFolder = None,
    resume: Annotated[
        Resume,
        typer.Option(help="Go on with OUT.partial if it is there; only if; or begin anew."),
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads to compute with.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/quantize-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Make a compact checkpoint whose experts have 4 or 2 bits a weight.

    OUT appears when it is whole; until then the work lies in OUT.partial. Stopped with Ctrl-C or SIGTERM
    (exit code 75), or killed, it goes on where it was when the same command is given again.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import quantize_json
    from ernie_cli.calibration_samples import SampleChoice, check_choice, draw_sequences
    from ernie_cli.console import Console
    from ernie_cli.mixed_bits import SizeChoice, check_sizes, mixed_job_tables

    if as_json:
        invocation.json_object = quantize_json.empty_object()
    console = Console(quiet=as_json)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    choice = SampleChoice(samples, seed, calib)
    check_choice(choice, method)
    sizes = SizeChoice(bits, dense, target_size, fit, statistics)
    check_sizes(sizes, method)
    job = _plan(source, out, sizes, method, group_size)
    sequences = draw_sequences(job.source, choice, console) if method == "gptq" else []
    started = time.perf_counter()
    if sizes.is_mixed:
        beside = out.with_name(out.name + ".statistics.json")
        tables, kept = mixed_job_tables(job.source, sizes, beside, sequences, console)
        job = replace(job, tables=tables, statistics=kept)
    _run(job, sequences, resume, console, invocation)
    if job.statistics is not None and job.statistics != statistics:
        job.statistics.unlink()  # the checkpoint has it
    seconds = time.perf_counter() - started
    weight_bytes = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    console.note(f"{out}: {weight_bytes / 2**20:,.1f} MiB of weights, made in {seconds:,.0f} s")
    if invocation.json_object is not None:
        invocation.json_object |= {"out": str(out), "weight_bytes": weight_bytes, "seconds": seconds}


def _plan(source: str, out: Path, sizes: SizeChoice, method: Method, group_size: int | None) -> Job:
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.config import read_config
    from ernie_quant.foreign import choose_expert_format
    from ernie_quant.format_tables import FormatChoice, format_tables
    from ernie_quant.job import Job, check_job
    from ernie_quant.recipe import Recipe

    directory = resolve_model(source)
    config = read_config(directory)
    experts = choose_expert_format(method, 2 if sizes.is_mixed else int(sizes.bits), group_size)
    # Of mixed bits the smallest ones for now: what fits is known when all is measured.
    dense = "w4" if sizes.dense == "auto" else sizes.dense
    tables = format_tables(config, FormatChoice(experts, dense, "w8", "w8"))
    job = Job(directory, out, tables, Recipe(method))
    check_job(job, config)
    return job


def _run(
    job: Job,
    sequences: list[AnsweredSequence],
    resume: Resume,
    console: Console,
    invocation: Invocation,
) -> None:
    from ernie_cli import quantize_json
    from ernie_cli.progress import UnitProgress
    from ernie_cli.stop_signals import StopSignals
    from ernie_quant.pipeline import quantize_checkpoint

    with (
        UnitProgress(is_shown=invocation.json_object is None) as progress,
        StopSignals(
            lambda: console.note("stopping after the current unit; again to stop at once")
        ) as signals,
    ):
        reports = quantize_checkpoint(
            replace(
                job,
                sequences=sequences,
                resume=resume,
                on_unit=progress.show,
                should_stop=signals.was_asked,
                on_note=console.note,
            )
        )
    if invocation.json_object is not None:
        invocation.json_object |= {
            "experts": quantize_json.expert_list(reports),
            "calibration_tokens": sum(len(sequence.token_ids) for sequence in sequences),
        }
