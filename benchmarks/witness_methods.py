"""Names the quantizing methods that the witnesses compare, and lets each quantize one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.packing import dequantize, find_format
from ernie_local.packing.foreign import dequantize_foreign, pack_foreign
from ernie_local.packing.layout import find_foreign
from ernie_quant.foreign import quantize_foreign
from ernie_quant.recipe import Recipe, quantize_matrix

Tensor = torch.Tensor


@dataclass(frozen=True)
class Variant:
    """A method, and the format that it makes."""

    method: str
    format_name: str

    def __str__(self) -> str:
        return f"{self.method} {self.format_name}"

    @property
    def uses_data(self) -> bool:
        """Whether it needs second moments of a matrix's inputs."""
        return self.method == "gptq"

    def num_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a matrix, with everything that is stored."""
        foreign = find_foreign(self.format_name)
        return (foreign or find_format(self.format_name)).matrix_bytes(rows, columns)

    def quantize(self, weights: Tensor, moments: Tensor | None) -> Tensor:
        """The weights that are left, (rows, columns) float32. moments: (columns, columns)."""
        foreign = find_foreign(self.format_name)
        if foreign is not None:
            packed = pack_foreign(quantize_foreign(weights, foreign, self.method))
            return dequantize_foreign(packed, foreign, *weights.shape)
        recipe = Recipe(self.method)  # type: ignore[arg-type]
        return dequantize(quantize_matrix(weights, find_format(self.format_name), recipe, moments))


# w2t has no ranges to search: clip search rounds it to nearest.
OUR_VARIANTS = [
    Variant(method, format_name)
    for format_name in ("w4", "w2", "w2s", "w2t")
    for method in ("rtn", "clip", "gptq")
    if (method, format_name) != ("clip", "w2t")
]
