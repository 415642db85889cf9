"""Writes README.md of a quantized checkpoint: what it is, its size, how to run it, how it was made."""

from __future__ import annotations

import re
from html import escape

from ernie_local.checkpoint.parts import routed_experts, sum_of_parts
from ernie_local.escapes import printable_line
from ernie_local.sizes import format_bytes
from ernie_quant.report.contents import ReportContents

SOURCE_CARD = "SOURCE_README.md"
_MARKS = {ord(mark): f"\\{mark}" for mark in "\\`*[]|~"}
_LICENSE = re.compile(r"^license(?:_name|_link)?:.*$", re.MULTILINE)


_CARD = """---
{front}library_name: ernie-local
pipeline_tag: image-text-to-text
---

# {name}, quantized

This is {name} in {size} instead of {source_size}: {bits:.2f} bits a weight in all{experts}.
Made by `ernie-local quantize`. It runs with ernie-local, whose docs/format.md specifies the format.

```
ernie-local verify DIRECTORY
ernie-local chat DIRECTORY --image page.png -p "What is the total?"
```

| part | weights | bits a weight | size |
|---|---:|---:|---:|
{parts}

{small}{calibration}

quant_report.html shows every expert, quant_report.json has the numbers, hashes.json the hash of each file.
"""
_SOURCE = f"""
The card of the original model, {SOURCE_CARD}, says what the model can do and what it is for.
"""
_SMALL = """Each routed expert has a second, small page in {formats}, which a paging runtime can read instead
of the first. Its weights are counted once.

"""
_CALIBRATED = """Each expert was quantized from the calibration tokens routed to it, and, where these are few,
also from all tokens of its bank:
"""
_BANK = """
- {bank} experts: {tokens:,} tokens; {unreached:,} of {experts:,} experts were visited by none,
  the median expert by {median:,.0f}."""


def model_card(contents: ReportContents, source_card: str | None) -> str:
    """source_card: the README.md of the source, whose licence also applies here; None if it has none."""
    whole, before = sum_of_parts("all", contents.parts), sum_of_parts("all", contents.source_parts)
    routed = routed_experts(contents.parts)
    card = _CARD.format(
        front="".join(f"{line}\n" for line in _licence_lines(source_card)),
        name=markdown_text(contents.source.get("name", "a model")),
        size=format_bytes(whole.num_bytes),
        source_size=format_bytes(before.num_bytes),
        bits=whole.bits_per_weight,
        experts="" if routed is None else f", {routed.bits_per_weight:.2f} in its routed experts",
        parts="\n".join(
            f"| {one.name} | {one.weights:,} | {one.bits_per_weight:.2f} | {format_bytes(one.num_bytes)} |"
            for one in (*contents.parts, whole)
        ),
        small=_SMALL.format(formats=", ".join(sorted(set(contents.small_formats.values()))))
        if contents.small_formats
        else "",
        calibration=_calibration(contents),
    )
    return card if source_card is None else card + _SOURCE


def markdown_text(text: str) -> str:
    """`text` of others, in a line of the card."""
    return escape(printable_line(text).translate(_MARKS), quote=False)


def _licence_lines(source_card: str | None) -> list[str]:
    if source_card is None or not source_card.startswith("---\n"):
        return []
    front_matter, found, _ = source_card[4:].partition("\n---")
    lines = [match.group().rstrip() for match in _LICENSE.finditer(front_matter)] if found else []
    # Of YAML; a tag in it has no business there.
    return [printable_line(line).replace("<", "&lt;") for line in lines]


def _calibration(contents: ReportContents) -> str:
    if not contents.experts:
        return f"Made without calibration (method {contents.settings.get('method')})."
    return _CALIBRATED + "".join(
        _BANK.format(
            bank=row.bank,
            tokens=row.tokens,
            unreached=row.unreached,
            experts=row.num_experts,
            median=row.quantiles[2],
        )
        for row in contents.coverage
        if row.layer is None
    )
