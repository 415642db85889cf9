"""Says in plain sentences what a quantized checkpoint is, how far from its source, and where it lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

from ernie_calibration.scoring import exact_match
from ernie_local.checkpoint.parts import routed_experts, sum_of_parts
from ernie_local.sizes import format_bytes
from ernie_quant.audit import AuditResult
from ernie_quant.expert import RoutedExpert
from ernie_quant.report.contents import Coverage, ReportContents, unreached_lines

_LAYERS_NAMED = 3  # of those that lost most
_COMPARE = "To compare its answers with those of the source, run ernie-local eval SOURCE CHECKPOINT."
Group = TypeVar("Group", int, str)


@dataclass(frozen=True, slots=True)
class VerdictLine:
    """topic: what it is about. text: sentences, with what others wrote as it is: escape it.

    is_warning: whether the reader should do something about it.
    """

    topic: str
    text: str
    is_warning: bool = False


def verdict_lines(contents: ReportContents, audited: AuditResult) -> list[VerdictLine]:
    """The verdict, most important first."""
    losses = measured_losses(contents)
    lines = [VerdictLine("What it is", " ".join(_identity(contents)))]
    lines.append(VerdictLine("How far from its source", " ".join(_distance(contents, losses))))
    if losses:
        lines.append(VerdictLine("Where it lost", " ".join(_places(contents, losses))))
    if contents.experts:
        is_warning = any(row.unreached for row in contents.coverage)
        lines.append(VerdictLine("Calibration", " ".join(_coverage(contents.coverage)), is_warning))
    lines.append(_check(audited))
    return lines


def measured_losses(contents: ReportContents) -> dict[RoutedExpert, float]:
    """The loss of each expert that saw calibration tokens."""
    found = {key: report.loss for key, report in contents.experts.items()}
    return {key: loss for key, loss in found.items() if loss is not None}


def percent(share: float) -> str:
    """Text for people: "3.9 %", "0.26 %", "0.004 %", which no line break parts."""
    value = 100 * share
    digits = 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}\u00a0%"


def _identity(contents: ReportContents) -> Iterator[str]:
    whole, before = sum_of_parts("all", contents.parts), sum_of_parts("all", contents.source_parts)
    how = f"calibrated on {contents.calibration.get('sequences')} samples"
    share = percent(whole.num_bytes / before.num_bytes)
    name, adapters = contents.source.get("name", "a model"), contents.source.get("adapters")
    added = "" if adapters is None else f" with adapters added to its weights, {adapters}"
    yield (
        f"This is {name}{added}, quantized by {contents.settings.get('method')} "
        f"({how if contents.experts else 'without calibration'}). It takes {format_bytes(whole.num_bytes)}, "
        f"{share} of the {format_bytes(before.num_bytes)} of its source: {whole.bits_per_weight:.2f} bits a "
        f"weight instead of {before.bits_per_weight:.2f}."
    )
    if "quantized" in contents.source:
        yield f"The source was quantized before ({contents.source['quantized']}): losses of both add up."
    routed = routed_experts(contents.parts)
    if routed is not None:
        yield (
            f"Its {len(contents.formats):,} routed experts hold {percent(routed.weights / whole.weights)} "
            f"of the weights, in {routed.bits_per_weight:.2f} bits each."
        )
    if contents.small_formats:
        names = ", ".join(sorted(set(contents.small_formats.values())))
        size = format_bytes(sum(part.num_bytes for part in contents.parts if part.is_small))
        yield (
            f"Each has a second, small page in {names}, {size} in all, which ernie-local chat --small-below "
            "reads in place of the first where the expert counts little."
        )


def _distance(contents: ReportContents, losses: Mapping[RoutedExpert, float]) -> Iterator[str]:
    if not contents.experts:
        yield "Not measured, as no expert was calibrated."
    elif not losses:
        yield "Not measured: no calibration token reached an expert."
    else:
        means = _means(losses, lambda key: key[1])
        banks = ", ".join(f"{bank} experts {percent(loss)}" for bank, loss in means.items())
        unmeasured = len(contents.experts) - len(losses)
        yield (
            f"On average an expert lost {percent(mean(losses.values()))} of the power of its outputs "
            f"({banks}{f'; {unmeasured:,} experts were not measured' if unmeasured else ''})."
        )
        small = [report.small_loss for report in contents.experts.values() if report.small_loss is not None]
        if small:
            yield f"Small pages lost {percent(mean(small))}."
    if contents.routing_agreement:
        drift = {layer: 1 - share for layer, share in contents.routing_agreement.items()}
        worst = max(drift, key=drift.__getitem__)
        yield (
            f"Of all choices of experts, {percent(mean(drift.values()))} differ from those of the source, in "
            f"layer {worst} most ({percent(drift[worst])})."
        )
    yield _COMPARE


def _places(contents: ReportContents, losses: Mapping[RoutedExpert, float]) -> Iterator[str]:
    layer, bank, expert = worst = max(losses, key=losses.__getitem__)
    yield f"The expert that lost most is {bank} expert {expert} of layer {layer}: {percent(losses[worst])}."
    means = _means(losses, lambda key: key[0])
    layers = [f"layer {number} ({percent(loss)} on average)" for number, loss in means.items()]
    yield f"The layers that lost most: {', '.join(layers[:_LAYERS_NAMED])}."
    if contents.sensitivity:
        layer = max(contents.sensitivity, key=contents.sensitivity.__getitem__)
        yield (
            "In a trial that rounded the experts of one layer at a time, the answers changed most with "
            f"layer {layer} ({contents.sensitivity[layer]:.3g} nats of KL divergence)."
        )


def _means(
    losses: Mapping[RoutedExpert, float], group_of: Callable[[RoutedExpert], Group]
) -> dict[Group, float]:
    """The mean loss of each group of experts, largest first."""
    groups: dict[Group, list[float]] = {}
    for key, loss in losses.items():
        groups.setdefault(group_of(key), []).append(loss)
    means = {group: mean(found) for group, found in groups.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _coverage(rows: Sequence[Coverage]) -> Iterator[str]:
    for row in rows:
        if row.layer is not None or not row.tokens:
            continue
        least, _, median, *_ = row.quantiles
        yield (
            f"{row.tokens:,} tokens of samples went to the {row.bank} experts: {median:,.0f} to the median "
            f"expert, {least:,.0f} to the one with the fewest."
        )
        if row.unreached:
            yield f"Experts without any: {row.unreached:,} of {row.num_experts:,}."
        if few := row.scarce - row.unreached:
            yield (
                "Experts with fewer than their matrices have columns, which lean on those of their bank: "
                f"{few:,} of {row.num_experts:,}."
            )
    for line in unreached_lines(rows):
        yield f"{line[0].upper()}{line[1:]}."


def _check(audited: AuditResult) -> VerdictLine:
    text = (
        f"Passed: {audited.num_tensors:,} tensors, {audited.num_pages:,} pages and "
        f"{format_bytes(audited.num_bytes)} of files were read back; they are complete, their numbers are "
        "finite, and checksums and the planned size are right."
    )
    if audited.answer is None:
        return VerdictLine("Check", f"{text} No question was asked: {audited.why_not_asked}.")
    is_right = bool(exact_match(audited.answer, audited.right_answer))
    about = " about a drawn invoice" if audited.has_image else ""
    asked = f"Asked{about}, \u201c{audited.question}\u201d, it answered"
    judged = "which is right" if is_right else f"right is \u201c{audited.right_answer}\u201d"
    answered = f"{asked} \u201c{audited.answer}\u201d, {judged}."
    return VerdictLine("Check", f"{text} {answered}", is_warning=not is_right)
