"""What `ernie-local eval` shows people: one table of all checkpoints, then each one in detail.

80 columns wide. Knows figures only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_quant.evaluation.candidate import Candidate
    from ernie_quant.evaluation.run import Result
    from ernie_quant.evaluation.summary import Estimate, Summary

_NAME_WIDTH = 18
_COLUMNS = f"{{:<{_NAME_WIDTH}}} {{:>10}} {{:>6}} {{:>8}} {{:>7}} {{:>9}} {{:>7}} {{:>7}}"
_TASK_COLUMNS = "  {:<18} {:>6} {:>9} {:>8} {:>7}  {:<8} {:>7} {:>7}"
_LAYER_COLUMNS = "  {:>5} {:>7} {:>7}"


def lines(reference: Candidate, results: Sequence[Result]) -> Iterator[str]:
    """At least one result."""
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
    from ernie_local.sizes import format_bytes

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
    if summary.routing:
        yield "  same experts chosen"
        yield _LAYER_COLUMNS.format("layer", "text", "vision")
    for layer, group in groupby(summary.routing, lambda routing: routing.layer):
        shares = {routing.bank: f"{routing.agreement:.1%}" for routing in group}
        yield _LAYER_COLUMNS.format(layer, shares.get("text", ""), shares.get("vision", "")).rstrip()


def _estimate(estimate: Estimate, spec: str) -> str:
    return f"{estimate.value:{spec}} [{estimate.low:{spec}}, {estimate.high:{spec}}]"
