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
# What the model is for, and a question to it: for one with a vision tower, and for one that reads only text.
_WITH_IMAGES = ("image-text-to-text", '--image page.png -p "What is the total?"')
_TEXT_ONLY = ("text-generation", '-p "What is a mixture of experts?"')
_LICENSE = re.compile(r"^license(?:_name|_link)?:.*$", re.MULTILINE)


_CARD = """---
{front}library_name: ernie-local
pipeline_tag: {task}
---

# {name}, quantized

{identity}

Made by `ernie-local quantize`. It runs with ernie-local, whose docs/format.md specifies the format.

```
ernie-local verify DIRECTORY
ernie-local chat DIRECTORY {question}
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
    reads_images = any(part.name == "vision tower" for part in contents.parts)
    task, question = _WITH_IMAGES if reads_images else _TEXT_ONLY
    card = _CARD.format(
        task=task,
        question=question,
        front="".join(f"{line}\n" for line in licence_lines(source_card)),
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


def licence_lines(source_card: str | None) -> list[str]:
    """The lines of the source's card that name its licence; none without a card."""
    if source_card is None or not source_card.startswith("---\n"):
        return []
    front_matter, found, _ = source_card[4:].partition("\n---")
    lines = [match.group().rstrip() for match in _LICENSE.finditer(front_matter)] if found else []
    # Of YAML; a tag in it has no business there.
    return [printable_line(line).replace("<", "&lt;") for line in lines]
