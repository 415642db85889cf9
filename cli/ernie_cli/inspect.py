"""The command `ernie-local inspect`: shows what a checkpoint is made of.

Reads the small JSON files and headers only, and imports no torch, not even when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from ernie_cli.console import Console
from ernie_cli.json_object import fill_result
from ernie_cli.options import CommonOptions, model_argument
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_local.checkpoint.header import StoredTensor
    from ernie_local.checkpoint.parts import ModelPart
    from ernie_local.config import ModelConfig

_COLUMNS = "{:<18}  {:>14}  {:>6}  {:>11}  {:>6}  {}"


@dataclass(frozen=True, kw_only=True)
class InspectOptions(CommonOptions):
    """What was said on the command line."""

    model: str = model_argument(default="nano")


@dataclass
class PartObject:
    """A part of the model. `bytes` hold scales, zeros and padding, so `bits_per_weight` is the true cost."""

    name: str
    weights: int
    """Numbers in the part. `small text pages` and `small vision pages` hold their experts' weights once more:
    the sums over all parts count their bytes, but not their weights."""
    bytes: Annotated[int, "num_bytes"]
    share: float  #: Share of the bytes of all parts.
    bits_per_weight: float
    formats: dict[str, int]  #: Weights by number type or low-bit format.
    pages: dict[str, int]  #: Routed experts by the format of their pages.


@dataclass
class InspectResult:
    """One object, from the small JSON files and the headers of the weight files."""

    directory: str | None = None
    """Where the model lies; the name of a hub model whose weights are not here."""
    layout: str | None = None  #: Whose tensor names the files use: `hub`, `native` or ours.
    weights: int | None = None  #: Of all parts together.
    bytes: int | None = None  #: Of all parts together.
    parts: list[PartObject] = field(default_factory=list)  #: What the model is made of.
    routed_experts: PartObject | None = None
    """`text experts` and `vision experts` together; null for a model without."""
    ignored: list[str] = field(default_factory=list)
    """Tensors in the files that are known to be no part of the model."""
    source: dict[str, str] = field(default_factory=dict)
    """What a quantized checkpoint says it was made from."""
    calibration: dict[str, str] = field(default_factory=dict)
    """What a quantized checkpoint says it was calibrated on."""
    notes: list[str] = field(default_factory=list)
    """What the files say and this runtime does not do, what they hold twice, and what the tokenizer does with
    spaces."""


def inspect(options: InspectOptions, result: InspectResult) -> None:
    """Show a model's parts: weights, bits per weight, bytes and formats. Reads headers only."""
    from ernie_local.checkpoint.files import read_stored_tensors
    from ernie_local.checkpoint.hub import outlined_model
    from ernie_local.checkpoint.index import account, compression_notes
    from ernie_local.checkpoint.parts import model_parts, routed_experts, stored_tensors, sum_of_parts
    from ernie_local.config import read_config

    console = Console(quiet=options.as_json)
    with (
        console.telling_warnings(),
        console.working("reading headers"),
        outlined_model(options.model) as directory,
    ):
        config = read_config(directory)
        accounts = account(directory, read_stored_tensors(directory), config)
        result.notes = [
            *compression_notes(config, accounts),
            *_notes(directory, config, accounts.tied_head),
        ]
    parts = model_parts(stored_tensors(accounts, config), config)
    whole, routed = sum_of_parts("all", parts), routed_experts(parts)

    def described(part: ModelPart) -> PartObject:
        return fill_result(PartObject, part, share=part.num_bytes / whole.num_bytes)

    result.layout = accounts.layout
    result.directory = str(directory)
    if not directory.exists():  # it was for the headers alone
        result.directory = options.model
        console.note(f"the weights of {options.model} are not here: their headers alone were fetched")
    result.weights, result.bytes = whole.weights, whole.num_bytes
    result.parts = [described(part) for part in parts]
    result.routed_experts = None if routed is None else described(routed)
    result.ignored = list(accounts.ignored)
    if config.quantization is not None:
        result.source = dict(config.quantization.source)
        result.calibration = dict(config.quantization.calibration)
    console.show(_part_lines([*parts, whole, *([] if routed is None else [routed])], whole))
    for title, texts in (("source", result.source), ("calibration", result.calibration)):
        console.show(f"{title} {key}: {value}" for key, value in texts.items())
    console.show(f"no part of the model: {name}" for name in result.ignored)
    console.show(result.notes)


def _notes(directory: Path, config: ModelConfig, tied_head: StoredTensor | None) -> Iterator[str]:
    from ernie_local.errors import ModelUnusable
    from ernie_local.media.processor_config import read_processor_config
    from ernie_local.text.tokenizer import TOKENIZER_MODEL_NAME, ErnieTokenizer

    if tied_head is not None:
        size = format_bytes(tied_head.num_bytes)
        yield f"{tied_head.name} is the embedding once more: {size} of the files, and none of the memory"
    # The weights can be shown whatever is wrong with the other files.
    try:
        note = read_processor_config(directory, config.tower).note
    except ModelUnusable as error:
        note = error.what
    if note is not None:
        yield note
    if (directory / TOKENIZER_MODEL_NAME).exists():
        try:
            yield from ErnieTokenizer.from_directory(directory).notes
        except ModelUnusable as error:
            yield error.what


def _part_lines(parts: Sequence[ModelPart], whole: ModelPart) -> Iterator[str]:
    """The table: a line for each part."""
    yield _COLUMNS.format("part", "weights", "bits", "size", "share", "formats").rstrip()
    for part in parts:
        yield _COLUMNS.format(
            part.name,
            f"{part.weights:,}",
            f"{part.bits_per_weight:.2f}",
            format_bytes(part.num_bytes),
            f"{part.num_bytes / whole.num_bytes:.1%}",
            "" if part is whole else ", ".join(_formats(part)),
        ).rstrip()


def _formats(part: ModelPart) -> list[str]:
    """Of experts the number of pages, of everything else the share of the weights."""
    return [f"{name} x {count}" for name, count in part.pages.items()] or [
        name if count == part.weights else f"{name} {count / part.weights:.1%}"
        for name, count in part.formats.most_common()
    ]
