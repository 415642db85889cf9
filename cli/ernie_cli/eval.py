"""The command `ernie-local eval`: its options, the order of its steps, and its tables.

What is wrong with a model's files is told before any of them is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_cli.console import Console
from ernie_cli.options import (
    MOST_SAMPLES,
    CommonOptions,
    ComputeOptions,
    FamilyName,
    KVDTypeName,
    file_option,
    kv_dtype_option,
    lora_option,
    model_argument,
    option,
    seed_option,
)
from ernie_cli.settings import efficiency_cores
from ernie_cli.signals import telling_what_is_kept
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_cli.eval_result import EvalResult
    from ernie_local.config import ModelConfig
    from ernie_quant.evaluation.run import Candidate
    from ernie_quant.evaluation.run import Result as Evaluated
    from ernie_quant.evaluation.summary import Estimate, Summary, Task

_NAME_WIDTH = 18
_COLUMNS = f"{{:<{_NAME_WIDTH}}} {{:>10}} {{:>6}} {{:>8}} {{:>7}} {{:>9}} {{:>7}} {{:>7}}"
_TASK_COLUMNS = "  {:<18} {:>6} {:>9} {:>8} {:>7}  {:<8} {:>7} {:>7}"
_LAYER_COLUMNS = "  {:>5} {:>7} {:>7}"


@dataclass(frozen=True, kw_only=True)
class EvalOptions(ComputeOptions, CommonOptions):
    """What was said on the command line."""

    reference: str = model_argument(
        metavar="REFERENCE", help="The unquantized model: a directory, hf:org/name, or nano."
    )
    checkpoints: tuple[str, ...] = model_argument(
        metavar="CHECKPOINT...", help="One or more models made from it."
    )
    samples: int = option(
        default=200,
        metavar="N",
        min=1,
        max=MOST_SAMPLES,
        help="Held-out samples, which calibration never uses.",
    )
    seed: int = seed_option()
    family: Literal[FamilyName, "all"] | None = option(
        help="Kind of samples: small images (the only kind that nano reads), pages of documents, charts, "
        "texts, or all four in turn; fields: places, JSON and what is not there; clips: short videos; "
        "closeups: print too small to read, asked without the zoom tool and with it. Default: images, or "
        "texts for models that read only text.",
    )
    questions_each: int = option(
        default=1,
        metavar="N",
        min=1,
        max=1000,
        help="Questions per sample at most, not counting long answers.",
    )
    answers: Literal["known", "reference"] = option(
        default="known", help="Compare along the right answers, or along those that the reference gives."
    )
    kv_dtype: KVDTypeName = kv_dtype_option(
        help="Number type of the KV cache of each CHECKPOINT; that of REFERENCE stays auto. To see what a "
        "smaller cache loses, name one model twice.",
    )
    lora: tuple[str, ...] = lora_option(
        help="A LoRA adapter for each CHECKPOINT, times SCALE; REFERENCE has none. Repeatable. To see what "
        "one changes, name one model twice."
    )
    reference_cache: Path | None = file_option(
        help="Keep the reference's results in FILE, and reuse them if it exists."
    )


_ALL_FAMILIES: tuple[FamilyName, ...] = ("images", "documents", "charts", "texts")


def compare_checkpoints(options: EvalOptions, result: EvalResult) -> None:
    """Measure how far checkpoints are from their reference, on documents and charts.

    Compares divergence and most likely tokens where an answer is written, the answers that each model gives,
    and the experts chosen. Every third small image is also read out completely. Print that is too small is
    asked about once more, in the Thinking template with the zoom tool. One model at a time is in memory.
    """
    from ernie_cli.progress import UnitProgress, downloaded
    from ernie_local import defaults

    console = Console(quiet=options.as_json)
    with console.working("starting"):
        from ernie_local.loading.options import use_threads
        from ernie_local.model_files import ModelFiles
        from ernie_quant.evaluation.run import Evaluation, EvaluationJob, check_comparable, find_candidate

    with console.telling_warnings():
        use_threads(options.threads, efficiency_cores=efficiency_cores(options.threads))
    names = (options.reference, *options.checkpoints)
    for name in names:
        downloaded(name, console)
    reference, *others = [find_candidate(name) for name in names]
    for other in others:
        check_comparable(reference, other)
    dtype: str = options.dtype
    if dtype == defaults.AUTO:
        files = ModelFiles(reference.directory, reference.config)
        dtype = defaults.compute_dtype(files.plain_weight_bytes, on_gpu=options.device != "cpu")
    same = ("samples", "seed", "questions_each", "answers", "device", "kv_dtype", "gpu_kernels", "lora")
    job = EvaluationJob(
        reference=reference,
        families=_families(options, reference.config, console),
        dtype=dtype,
        cache=options.reference_cache,
        **{name: getattr(options, name) for name in same},
    )
    with (
        telling_what_is_kept(lambda: _what_is_kept(options)),
        console.telling_warnings(),
        UnitProgress(console) as progress,
    ):
        evaluation = Evaluation(replace(job, on_sample=progress.show))
        evaluated = []
        for other in others:
            evaluated.append(evaluation.evaluate(other))
            result.update(job, evaluated)
    console.show(_eval_lines(reference, evaluated))


def _families(options: EvalOptions, config: ModelConfig, console: Console) -> tuple[FamilyName, ...]:
    from ernie_cli.calibration_samples import families_for

    family = options.family or ("images" if config.reads_images else "texts")
    return tuple(families_for(family, config, {"all": _ALL_FAMILIES}, console))


def _what_is_kept(options: EvalOptions) -> str:
    cache = options.reference_cache
    if cache is None:
        return "nothing is kept; --reference-cache FILE keeps the results of the reference"
    is_there = "are kept" if cache.exists() else "were not complete, and would be kept"
    return f"the results of the reference {is_there} in {cache}"


def _eval_lines(reference: Candidate, results: Sequence[Evaluated]) -> Iterator[str]:
    """One table of all models, 80 columns wide, then each checkpoint in detail; at least one result."""
    answers = results[0].summary.answers
    yield _COLUMNS.format("model", "size", "bits", "KL", "top-1", "exact", "flips", "experts")
    yield _row(reference, f"{answers.reference_exact}/{answers.questions}")
    for result in results:
        summary = result.summary
        answers = summary.answers
        yield _row(
            result.candidate,
            f"{answers.exact}/{answers.questions}",
            f"{summary.divergence.mean.value:.4f}",
            f"{summary.divergence.top1.value:.1%}",
            f"-{answers.right_to_wrong} +{answers.wrong_to_right}",
            "" if summary.routing_agreement is None else f"{summary.routing_agreement:.1%}",
        )
    for result in results:
        yield ""
        yield from _details(result.candidate.name, result.summary)


def _row(
    candidate: Candidate, exact: str, divergence: str = "", top1: str = "", flips: str = "", experts: str = ""
) -> str:
    name = candidate.name
    if len(name) > _NAME_WIDTH:  # the end of a path tells more
        name = f"...{name[3 - _NAME_WIDTH :]}"
    size = format_bytes(candidate.num_bytes)
    bits = "" if candidate.routed_bits is None else f"{candidate.routed_bits:.2f}"
    return _COLUMNS.format(name, size, bits, divergence, top1, exact, flips, experts).rstrip()


def _details(name: str, summary: Summary) -> Iterator[str]:
    divergence, answers = summary.divergence, summary.answers
    yield f"{name}: {divergence.positions:,} positions where an answer is written"
    yield (
        f"  KL {_estimate(divergence.mean, '.4f')}, median {divergence.median:.4f}, "
        f"90 % {divergence.percent_90:.4f}, 99 % {divergence.percent_99:.4f}"
    )
    yield f"  same likeliest token {_estimate(divergence.top1, '.1%')}"
    if answers.exact_share is not None:
        yield f"  exact answers {_estimate(answers.exact_share, '.1%')} of {answers.questions} questions"
    yield (
        f"  flips: {answers.right_to_wrong} right to wrong, {answers.wrong_to_right} wrong to right, "
        f"p = {answers.p_value:.3f} (McNemar)"
    )
    yield _TASK_COLUMNS.format("task", "turns", "positions", "KL", "top-1", "measure", "before", "now")
    for task in summary.tasks:
        yield _TASK_COLUMNS.format(
            task.kind,
            task.turns,
            task.positions,
            f"{task.divergence:.4f}",
            f"{task.top1:.1%}",
            task.metric,
            f"{task.reference_score:.1%}",
            f"{task.score:.1%}",
        )
        yield from _more_of_task(task)
    if summary.routing:
        yield "  same experts chosen"
        yield _LAYER_COLUMNS.format("layer", "text", "vision")
    for layer, group in groupby(summary.routing, lambda routing: routing.layer):
        shares = {routing.bank: f"{routing.agreement:.1%}" for routing in group}
        yield _LAYER_COLUMNS.format(layer, shares.get("text", ""), shares.get("vision", "")).rstrip()


def _more_of_task(task: Task) -> Iterator[str]:
    """Lines under its own: overlaps of boxes, and its turns asked with the zoom tool."""

    def line(name: str, measure: str, before: str, now: str) -> str:
        return _TASK_COLUMNS.format(f"  {name}", "", "", "", "", measure, before, now)

    if task.overlap is not None:
        yield line("mean overlap", "IoU", f"{task.reference_overlap:.1%}", f"{task.overlap:.1%}")
    if (zoom := task.zoom) is not None:
        yield line("with zoom", task.metric, f"{zoom.reference_score:.1%}", f"{zoom.score:.1%}")
        yield line("zoom gain", task.metric, f"{zoom.reference_gain:+.1%}", f"{zoom.gain:+.1%}")
        yield line("zoomed", "turns", str(zoom.reference_zoomed), str(zoom.zoomed))


def _estimate(estimate: Estimate, spec: str) -> str:
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"
