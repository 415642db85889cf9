"""Explains the formats that occur in a checkpoint, and the words of its report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ernie_local.checkpoint.header import ITEM_BYTES
from ernie_local.checkpoint.parts import ModelPart
from ernie_local.packing.formats import FORMATS, TILE_ROWS, TRELLIS_LEVELS, LowBitFormat
from ernie_local.packing.layout import ForeignFormat, find_foreign

WORDS = {
    "token": "A piece of text or of an image, the unit in which the model reads and writes.",
    "layer": "One step of the model; every token runs through all layers in order.",
    "expert": "One of many small networks in a layer. It has three matrices: gate and up read a token, down "
    "makes the output from what they produce.",
    "router": "The part of a layer that chooses a few experts for each token and weighs their outputs.",
    "bank": "The experts of a layer that serve the same kind of tokens, such as text or images.",
    "calibration": "Sample documents ran through the model, so that each expert could be rounded in the way "
    "that changes its outputs least for the tokens that reach it.",
    "loss": "The power of the change that rounding makes to an expert's outputs, as a share of the power of "
    "the outputs, on the tokens that it was calibrated on: its own and, where these are few, those of its "
    "bank. Power is the sum of the squares: a loss of 4 % is an error a fifth as large as the output. The "
    "losses in gate and up, and in down, add up to about the whole.",
    "KL divergence": "How far the probabilities of the next token are from those of the source, in nats; 0 "
    "means that they are equal.",
}
_REAL = "not quantized: each weight is a number of {bits} bits"
_WHOLE = "whole numbers of {bits} bits; {group_size} neighbouring weights share a scale of {scale_bits} bits"
_ZERO = " and a zero point of {zero_bits} bits, and each row has a scale of {row_bits} bits"
_TRELLIS = (
    "steps of {bits} bits through a trellis of {num_levels} levels; {group_size} neighbouring weights share "
    "a scale of {scale_bits} bits, and each row has a scale of {row_bits} bits"
)
_NF4 = (
    "codes of {bits} bits for the levels that suit normally distributed weights best (bitsandbytes); "
    "{group_size} weights share a scale of 8 bits"
)
_QUANTO = (
    "whole numbers of {bits} bits (optimum-quanto); up to {group_size} weights of a row share a scale and a "
    "shift of 16 bits each"
)


@dataclass(frozen=True, slots=True)
class LegendRow:
    """One format: what it is, bits of a weight with its share of scales and zeros, the parts that use it."""

    name: str
    meaning: str
    bits: float
    parts: tuple[str, ...]


def format_legend(parts: Iterable[ModelPart]) -> list[LegendRow]:
    """A row for each format in which weights of these parts are stored, most bits first."""
    used: dict[str, list[str]] = {}
    for part in parts:
        for name in part_formats(part):
            used.setdefault(name, []).append(part.name)
    rows = [LegendRow(name, *_explain(name), tuple(names)) for name, names in used.items()]
    return sorted(rows, key=lambda row: (-row.bits, row.name))


def part_formats(part: ModelPart) -> list[str]:
    """The formats of a part's weights, most bits first; of a page format such as `w2-w2l` both."""
    names = {name for joined in part.formats for name in joined.split("-")}
    return sorted(names, key=lambda name: (-_explain(name)[1], name))


def _explain(name: str) -> tuple[str, float]:
    """What a format is, and bits of a weight in it."""
    found = FORMATS.get(name) or find_foreign(name)
    if found is None:
        bits = 8 * ITEM_BYTES[name.upper()]
        return _REAL.format(bits=bits), bits
    return _template(found).format(**_facts(found)), found.nominal_bits


def _template(found: LowBitFormat | ForeignFormat) -> str:
    if isinstance(found, LowBitFormat):
        if found.is_trellis:
            return _TRELLIS
        return _WHOLE + _ZERO if found.has_zeros else _WHOLE
    return _NF4 if found.kind == "nf4" else _QUANTO


def _facts(found: LowBitFormat | ForeignFormat) -> dict[str, int]:
    facts = {"bits": found.bits, "group_size": found.group_size}
    if isinstance(found, LowBitFormat):
        row_bits = 8 * found.row_scale_bytes() // TILE_ROWS
        facts |= {"scale_bits": found.scale_bits, "zero_bits": found.zero_bits, "row_bits": row_bits}
        facts["num_levels"] = len(TRELLIS_LEVELS)
    return facts
