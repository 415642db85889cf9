"""Writes README.md of an exported checkpoint: what it is, how an engine serves it, what each GPU holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.sizes import format_bytes
from ernie_quant.export.compressed_layout import CompressedLayout
from ernie_quant.export.loader_names import LOADER_VERSIONS
from ernie_quant.export.parallel import EngineShare
from ernie_quant.report.model_card import licence_lines, markdown_text

_CARD = """---
{front}pipeline_tag: {task}
---

# {name}, {what}

Made by `ernie-local export` from {name}. {how}
"""
_SERVE = """
```
vllm serve DIRECTORY{code} --tensor-parallel-size {count} --max-model-len {context}{parsers}
```

{about_code} The names of all weights were checked against the loaders of
{versions}.

| GPUs (`--tensor-parallel-size`) | weights on each | keys and values of {context:,} tokens on each | |
|---:|---:|---:|---|
{shares}

Computed by ernie-local's planner, not measured; vLLM takes some GiB more for its own work.
"""
_CODE = """\
`--trust-remote-code` runs the Python files of this directory, which read its config, tokens and images: no
release of transformers knows this layout."""
_NO_CODE = "vLLM, SGLang and transformers know this kind of model: no code of this directory is run."
_PARSERS = " \\\n    --reasoning-parser ernie45 --tool-call-parser ernie45 --enable-auto-tool-choice"
_EXPERT_PARALLEL = """\
With `--enable-expert-parallel` whole experts are spread over the GPUs, so that their width need not divide.
"""


@dataclass(frozen=True, slots=True)
class CardKind:
    """What of a model changes its card. thinks: whether its template has thoughts, or calls of tools."""

    reads_images: bool
    has_experts: bool
    thinks: bool


def export_card(
    name: str,
    what: str,
    how: str,
    source_card: str | None,
    kind: CardKind,
    shares: Sequence[EngineShare] = (),
) -> str:
    """name, what: of the title; how: sentences on how it was made. shares: of a checkpoint for engines.

    source_card: README.md of the source, whose licence applies here too; None if it has none.
    """
    card = _CARD.format(
        task="image-text-to-text" if kind.reads_images else "text-generation",
        front="".join(f"{line}\n" for line in licence_lines(source_card)),
        name=markdown_text(name),
        what=markdown_text(what),
        how=markdown_text(how),
    )
    if not shares:
        return card
    fitting = [one.tensor_parallel for one in shares if not one.reasons]
    rows = "\n".join(
        f"| {one.tensor_parallel} | {format_bytes(one.weight_bytes)} | {format_bytes(one.kv_bytes)} | "
        f"{'no: ' + markdown_text(one.reasons[0]) if one.reasons else ''} |"
        for one in shares
    )
    served = _SERVE.format(
        code=" --trust-remote-code" * kind.reads_images,
        about_code=_CODE if kind.reads_images else _NO_CODE,
        parsers=_PARSERS * kind.thinks,
        count=fitting[0] if fitting else 1,
        context=shares[0].context,
        versions=LOADER_VERSIONS,
        shares=rows,
    )
    return card + served + _EXPERT_PARALLEL * kind.has_experts


def describe_layout(layout: CompressedLayout) -> str:
    """The formats, for the title."""
    if layout.experts is None:
        return "bfloat16"
    experts = layout.experts
    kind = "symmetric" if experts.is_symmetric else "asymmetric"
    dense = "bfloat16" if layout.dense is None else "int8"
    told = f"int{experts.bits} ({kind}, groups of {experts.group_size})"
    if layout.dense == experts:
        return f"layers in {told}"
    return f"experts in {told}, attention and dense layers in {dense}"
