"""Writes README.md of a quantized checkpoint: what it is, its size, how to run it, the verdict on it."""

from __future__ import annotations

import re
from html import escape

from ernie_local.checkpoint.parts import sum_of_parts
from ernie_local.escapes import printable_line
from ernie_local.sizes import format_bytes
from ernie_quant.audit import AuditResult
from ernie_quant.report.contents import ReportContents
from ernie_quant.report.verdict import verdict_lines

SOURCE_CARD = "SOURCE_README.md"
_MARKS = {ord(mark): f"\\{mark}" for mark in "\\`*[]|~"}
_LICENSE = re.compile(r"^license(?:_name|_link)?:.*$", re.MULTILINE)


_CARD = """---
{front}library_name: ernie-local
pipeline_tag: image-text-to-text
---

# {name}, quantized

{identity}

Made by `ernie-local quantize`. It runs with ernie-local, whose docs/format.md specifies the format.

```
ernie-local verify DIRECTORY
ernie-local chat DIRECTORY --image page.png -p "What is the total?"
```

| part | weights | bits a weight | size |
|---|---:|---:|---:|
{parts}

{verdict}

quant_report.html shows every expert, quant_report.json has the numbers, hashes.json the hash of each file.
"""
_SOURCE = f"""
The card of the original model, {SOURCE_CARD}, says what the model can do and what it is for.
"""


def model_card(contents: ReportContents, audited: AuditResult, source_card: str | None) -> str:
    """source_card: the README.md of the source, whose licence also applies here; None if it has none."""
    identity, *verdict = verdict_lines(contents, audited)
    whole = sum_of_parts("all", contents.parts)
    card = _CARD.format(
        front="".join(f"{line}\n" for line in _licence_lines(source_card)),
        name=markdown_text(contents.source.get("name", "a model")),
        identity=markdown_text(identity.text),
        parts="\n".join(
            f"| {one.name} | {one.weights:,} | {one.bits_per_weight:.2f} | {format_bytes(one.num_bytes)} |"
            for one in (*contents.parts, whole)
        ),
        verdict="\n".join(f"- **{line.topic}.** {markdown_text(line.text)}" for line in verdict),
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
