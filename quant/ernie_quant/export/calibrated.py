"""Quantizes routed experts to compressed-tensors' int4 from the tokens that the router sends to them.

The moments of the inputs, and what they are drawn toward, are those of `expert`; the codes are chosen by GPTQ
on ranges that are searched before, with bfloat16 scales.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.packing.formats import FORMATS
from ernie_quant.expert import (
    ExpertInputs,
    ExpertReport,
    ExpertWeights,
    RoutedExpert,
    inner_moments,
    input_moments,
)
from ernie_quant.export.compressed import CompressedMatrix, GroupedFormat, find_grid
from ernie_quant.export.pieces import ExportPiece
from ernie_quant.gptq import choose_codes, order_and_factor
from ernie_quant.hessian import damped
from ernie_quant.layer import Expert
from ernie_quant.recipe import Recipe
from ernie_quant.refine import lost_share
from ernie_quant.source import FloatSource

_CODES = FORMATS["w4"]  # as many codes, in groups of 64, which divide the larger ones
_GATE, _UP, _DOWN = "gate_proj", "up_proj", "down_proj"


def gptq_compressed(weights: Tensor, form: GroupedFormat, moments: Tensor) -> CompressedMatrix:
    """weights: (rows, columns) float32; moments: (columns, columns) of its inputs. form: of 4 bits."""
    assert form.bits == _CODES.bits, form
    assert form.group_size % _CODES.group_size == 0, form
    hessian = damped(moments)
    grid = find_grid(weights, form, importance=hessian.diagonal())
    again = form.group_size // _CODES.group_size
    steps = grid.steps.repeat_interleave(again, dim=1)  # (rows, columns / 64)
    shifts = (grid.zeros - form.lowest).repeat_interleave(again, dim=1)
    codes = choose_codes(weights, order_and_factor(hessian), _CODES, steps, shifts)
    return grid.with_codes(codes.to(torch.int16) + form.lowest)


class CompressedMaker:
    """Makes experts as compressed matrices. pieces: of each expert's projections, by our names."""

    def __init__(
        self, source: FloatSource, pieces: Mapping[str, ExportPiece], files: CheckpointFiles
    ) -> None:
        self._source, self._pieces, self._files = source, pieces, files

    def make(self, expert: RoutedExpert, inputs: ExpertInputs) -> ExpertReport:
        """Quantize the expert and write it."""
        weights = self._source.expert(*expert)
        recipe, inner_size = Recipe(), weights.down.shape[1]
        moments, effective_tokens = input_moments(inputs, recipe)
        # One matrix, as they share their inputs; each row has scales of its own.
        both = torch.cat((weights.gate, weights.up))
        form = self._form(expert, _GATE)
        joined = gptq_compressed(both, form, moments)
        exact_values = joined.dequantized().float()
        gate, up = exact_values.split(inner_size)
        made = ExpertWeights(gate, up, weights.down)
        of_inner = inner_moments(inputs, recipe, made.inner, inner_size)
        down = gptq_compressed(weights.down, self._form(expert, _DOWN), of_inner)
        self._write(expert, _GATE, joined.rows(0, inner_size))
        self._write(expert, _UP, joined.rows(inner_size, 2 * inner_size))
        self._write(expert, _DOWN, down)
        return ExpertReport(
            inputs.weights.numel(),
            effective_tokens,
            lost_share(both, moments, exact_values),
            lost_share(weights.down, of_inner, down.dequantized().float()),
        )

    def made(self, expert: RoutedExpert) -> Expert:
        """The expert of the files, dequantized as engines do."""
        return ExpertWeights(*(self._read(expert, one) for one in (_GATE, _UP, _DOWN))).weighted_outputs

    def _piece(self, expert: RoutedExpert, projection: str) -> ExportPiece:
        layer_id, bank, expert_id = expert
        return self._pieces[f"experts.{layer_id}.{bank}.{expert_id}.{projection}"]

    def _form(self, expert: RoutedExpert, projection: str) -> GroupedFormat:
        form = self._piece(expert, projection).form
        assert form is not None, expert
        return form

    def _write(self, expert: RoutedExpert, projection: str, matrix: CompressedMatrix) -> None:
        for name, contents in self._piece(expert, projection).compressed(matrix):
            self._files.write(name, contents)

    def _read(self, expert: RoutedExpert, projection: str) -> Tensor:
        piece, form = self._piece(expert, projection), self._form(expert, projection)
        stored = {
            suffix: self._files.read(entry.name).view(entry.shape)
            for suffix, entry in zip(form.suffixes, piece.entries(), strict=True)
        }
        return CompressedMatrix.of_tensors(form, stored).dequantized().float()
