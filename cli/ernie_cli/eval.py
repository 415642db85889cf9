"""The command `ernie-local eval`: its options, and the order of its steps.

What is wrong with a model's files is told before any of them is loaded. Imports typer and nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ernie_cli.chat_options import DType, GpuKernelsOption
from ernie_cli.invocation import Invocation

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_quant.evaluation.candidate import Candidate
    from ernie_quant.evaluation.run import EvaluationJob

Family = Literal["images", "documents", "charts", "texts", "all"]
_DEFAULT_SAMPLES = 200


def evaluate(  # long: each option of the command is a parameter
    context: typer.Context,
    reference: Annotated[
        str,
        typer.Argument(metavar="REFERENCE", help="The unquantized model: a directory, hf:org/name, or nano."),
    ],
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="What was made from it, any number.")
    ],
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="Held-out samples, unknown to calibration.")
    ] = _DEFAULT_SAMPLES,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Draw other samples.")] = 0,
    family: Annotated[
        Family,
        typer.Option(help="What they are: small images, all that nano reads; pages of documents; charts."),
    ] = "images",
    questions_each: Annotated[
        int, typer.Option(metavar="N", min=1, help="Most questions a sample, long answers not counted.")
    ] = 1,
    answers: Annotated[
        Literal["known", "reference"],
        typer.Option(help="Compare where the right answers are written, or those that the reference gives."),
    ] = "known",
    reference_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep what the reference did, and use it again if it is there."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute.")] = "cpu",
    dtype: Annotated[
        DType,
        typer.Option(help="Compute in; auto is float32 on a CPU for references up to 4 GiB, else bfloat16."),
    ] = "auto",
    gpu_kernels: GpuKernelsOption = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="CPU threads to compute with.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (docs/eval-json.md).")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
) -> None:
    """Measure how far checkpoints are from their reference, on documents and charts.

    Divergence and likeliest tokens where an answer is written, answers of their own, and experts chosen.
    Every third small image is also read out whole. One model at a time is in memory.
    """
    del debug  # Acted on by main, which is where errors arrive.
    invocation = context.ensure_object(Invocation)
    from ernie_cli import eval_json
    from ernie_cli.chat_options import ChatOptions
    from ernie_cli.console import Console
    from ernie_quant.evaluation.run import EvaluationJob

    if as_json:
        invocation.json_object = eval_json.empty_object()
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    first, others = _find(reference, checkpoints)
    job = EvaluationJob(
        reference=first,
        samples=samples,
        seed=seed,
        families=("images", "documents", "charts", "texts") if family == "all" else (family,),
        questions_each=questions_each,
        answers=answers,
        device=device,
        dtype=ChatOptions(device=device, dtype=dtype).dtype_name(first.num_bytes),
        gpu_kernels=gpu_kernels,
        cache=reference_cache,
    )
    _run(job, others, Console(quiet=as_json), invocation)


def _find(reference: str, checkpoints: Sequence[str]) -> tuple[Candidate, list[Candidate]]:
    from ernie_quant.evaluation.candidate import check_comparable, find_candidate

    first, *others = [find_candidate(name) for name in (reference, *checkpoints)]
    for other in others:
        check_comparable(first, other)
    return first, others


def _run(job: EvaluationJob, others: Sequence[Candidate], console: Console, invocation: Invocation) -> None:
    from dataclasses import replace

    from ernie_cli import eval_json, eval_table
    from ernie_cli.progress import UnitProgress
    from ernie_quant.evaluation.run import Evaluation

    with console.telling_warnings(), UnitProgress(is_shown=invocation.json_object is None) as progress:
        evaluation = Evaluation(replace(job, on_sample=progress.show))
        results = []
        for other in others:
            results.append(evaluation.evaluate(other))
            if invocation.json_object is not None:
                invocation.json_object |= eval_json.result_fields(job, results)
    if invocation.json_object is None:
        for line in eval_table.lines(job.reference, results):
            console.answer(line + "\n")
