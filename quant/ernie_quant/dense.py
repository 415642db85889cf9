"""Quantizes the dense matrices of a decoder layer from the inputs that calibration tokens give them.

Queries, keys and values see the layer's normed input; the output of attention sees what the heads make of it;
a dense MLP or shared experts see the tokens with attention. All of that is computed by the new checkpoint, as
for experts. Matrices in w8 have nothing to gain and are rounded with those that need no tokens. Every token
visits them, so that there is no bank to draw their moments to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ernie_local.checkpoint.packed import QKV, known_format, page_formats
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import QuantizationConfig
from ernie_local.packing import ExpertPage, LowBitFormat, QuantizedMatrix, pack_matrix, pack_page
from ernie_quant.expert import packed_inner
from ernie_quant.grid import rows_of
from ernie_quant.hessian import second_moments
from ernie_quant.layer import NormedTokens, chunks
from ernie_quant.layer_in_work import LayerInWork
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.source import FloatSource
from ernie_quant.units import dense_unit

Tensor = torch.Tensor
Makes = dict[str, Callable[[], None]]
# Of a matrix that is calibrated: moments of the 12,288 inputs of down in a dense layer of the original, with
# copies to invert them, would take 5 GB.
MOST_COLUMNS = 8192


@dataclass(frozen=True, slots=True)
class DenseTensors:
    """Names of a layer's packed tensors that are made from calibration tokens; None for each that is not.

    qkv: queries, keys and values; output: of attention; mlp: a dense MLP or shared experts.
    """

    qkv: str | None
    output: str | None
    mlp: str | None

    @classmethod
    def of(cls, tables: QuantizationConfig, layer_id: int) -> DenseTensors:
        """Those of a layer that `tables` have in other formats than w8."""
        layer, matrices, gated_mlps = f"layers.{layer_id}", tables.matrices, tables.gated_mlps
        return cls(
            _gaining(matrices, f"{layer}.self_attn.{QKV}"),
            _gaining(matrices, f"{layer}.self_attn.o_proj"),
            _gaining(gated_mlps, f"{layer}.mlp") or _gaining(gated_mlps, f"{layer}.moe.shared_experts"),
        )

    def names(self) -> list[str]:
        """All that there are, in the order in which they are made."""
        return [name for name in (self.qkv, self.output, self.mlp) if name is not None]


def _gaining(formats: Mapping[str, str], name: str) -> str | None:
    """The packed tensor of the matrix or MLP; None if it is rounded, or not packed."""
    format_name = formats.get(name)
    if format_name is None or all(low_bit.has_fp16_scales for low_bit in page_formats(format_name)):
        return None
    return f"{name}.{format_name}"


class DenseMaker:
    """Makes dense matrices as packed tensors of a checkpoint in our own format."""

    def __init__(
        self, source: FloatSource, tables: QuantizationConfig, recipe: Recipe, files: CheckpointFiles
    ) -> None:
        """recipe: with the method `gptq`."""
        self._source, self._tables, self._recipe, self._files = source, tables, recipe, files

    def tensors(self, layer_id: int) -> DenseTensors:
        """Those of the layer that this makes."""
        return DenseTensors.of(self._tables, layer_id)

    def units(self, layer: LayerInWork) -> tuple[Makes, Makes, Makes]:
        """Units and what makes them, none or one each: qkv, output and MLP.

        The first needs the layer's input states, the second the heads' outputs, the third both added.
        """
        tensors = self.tensors(layer.layer_id)
        return (
            _unit(tensors.qkv, self._make_qkv, layer),
            _unit(tensors.output, self._make_output, layer),
            _unit(tensors.mlp, self._make_mlp, layer),
        )

    @torch.inference_mode()
    def _make_qkv(self, layer: LayerInWork, tensor: str) -> None:
        norm = layer.network.input_layernorm
        with layer.states() as states:
            normed = (norm(states.read(rows)) for rows in chunks(states))
            self._make_matrix(tensor, normed, states.num_rows)

    def _make_output(self, layer: LayerInWork, tensor: str) -> None:
        with layer.heads() as heads:
            self._make_matrix(tensor, map(heads.read, chunks(heads)), heads.num_rows)

    def _make_matrix(self, tensor: str, inputs: Iterable[Tensor], num_tokens: int) -> None:
        name, _, format_name = tensor.rpartition(".")
        weights = torch.cat(list(self._source.matrix(name)))
        quantized = self._quantize(weights, known_format(format_name), inputs, num_tokens)
        self._files.write(tensor, [pack_matrix(quantized)])

    def _make_mlp(self, layer: LayerInWork, tensor: str) -> None:
        name, _, page_format = tensor.rpartition(".")
        weights, (of_gate_up, of_down) = self._source.gated_mlp(name), page_formats(page_format)
        with layer.attended() as attended:
            tokens = NormedTokens(layer.network, attended, torch.arange(attended.num_rows))
            both = torch.cat((weights.gate, weights.up))
            quantized = self._quantize(both, of_gate_up, tokens, len(tokens))
            inner_size = len(weights.gate)
            gate, up = (rows_of(quantized, slice(start, start + inner_size)) for start in (0, inner_size))
            inner = map(packed_inner(gate, up), tokens)
            down = self._quantize(weights.down, of_down, inner, len(tokens))
        self._files.write(tensor, [pack_page(ExpertPage(gate, up, down))])

    def _quantize(
        self, weights: Tensor, low_bit: LowBitFormat, inputs: Iterable[Tensor], num_tokens: int
    ) -> QuantizedMatrix:
        """weights: (rows, columns); inputs: (tokens, columns) in parts, `num_tokens` together."""
        columns = weights.shape[1]
        if columns > MOST_COLUMNS:
            return quantize_matrix(weights, low_bit, Recipe("clip"))
        moments = second_moments(inputs, torch.ones(num_tokens), columns).matrix
        return quantize_matrix(weights, low_bit, self._recipe, moments)


def _unit(tensor: str | None, make: Callable[[LayerInWork, str], None], layer: LayerInWork) -> Makes:
    return {} if tensor is None else {dense_unit(tensor): partial(make, layer, tensor)}
