"""Records decode of text tokens over one cache, all but routed experts, and replays it.

A piece begins behind one layer's routed experts and ends with the next router's choice, and with the shared
experts where they are computed apart. Routed experts are computed between pieces, wherever their weights are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.graphs import Recorded, Recorder
from ernie_local.model.attention import KernelAttention
from ernie_local.model.decoder import DecoderLayer, LayerStep
from ernie_local.model.host_attention import HostAttention
from ernie_local.model.layers import RMSNorm


@dataclass(frozen=True, slots=True)
class Junction:
    """The outputs of a piece. Of the last piece `normed` is the final result.

    hidden: (1, hidden_size) before experts are added; normed: the input of experts; chosen: their ids and
    weights, (1, top_k) each; shared: (1, hidden_size) of shared experts computed apart.
    """

    hidden: Tensor
    normed: Tensor
    chosen: tuple[Tensor, Tensor] | None = None
    shared: Tensor | None = None


class _Inputs(NamedTuple):
    """What pieces read, always at the same addresses."""

    hidden: Tensor  # of the token
    routed: Tensor  # the output of the experts before a piece
    attention: KernelAttention  # with the token's angles, and the cache's length


class DecodeGraphs:
    """The recorded pieces of one cache. They are recorded again when the cache moves or grows."""

    def __init__(self, layers: Sequence[DecoderLayer], norm: RMSNorm, recorder: Recorder) -> None:
        """layers: those that attend on the GPU, at least one, up to the last of the network."""
        self._norm = norm
        self._recorder = recorder
        self._first_layer = layers[0].self_attn.layer_id
        self._pieces = _cut(layers)
        self._recorded: list[Recorded[Junction]] = []
        self._inputs: _Inputs | None = None
        self._rows: LayerStorage | None = None  # of the first of these layers; all move together

    def run(self, hidden: Tensor, step: LayerStep) -> Tensor:
        """These layers and the last norm for one text token: hidden (1, hidden_size) -> the same shape.

        The result is valid until the next call.
        """
        inputs = self._fill(hidden, step)
        for index, layers in enumerate(self._pieces):
            if index == len(self._recorded):
                self._recorded.append(self._record(index, step))
            recorded = self._recorded[index]
            recorded.replay()
            end = recorded.outputs
            if end.chosen is not None:
                moe, bank = layers[-1].moe, step.rows.only_bank
                assert moe is not None
                assert bank is not None
                routed = moe.serve(bank, end.normed, end.chosen, step.rows, step.experts, step.on_route)
                inputs.routed.copy_(routed)
        return end.normed

    def _fill(self, hidden: Tensor, step: LayerStep) -> _Inputs:
        """Copy the token's values to where pieces read them; drop the pieces if the cache has moved."""
        given = step.attention
        if isinstance(given, HostAttention):
            given = given.above
        assert isinstance(given, KernelAttention)
        rows = given.cache.storage(self._first_layer)
        if self._inputs is None or rows is not self._rows:
            self._recorded.clear()
            self._rows = rows
            cosines, sines, length = map(torch.empty_like, (given.cosines, given.sines, given.length))
            attention = dataclasses.replace(given, cosines=cosines, sines=sines, length=length)
            self._inputs = _Inputs(torch.empty_like(hidden), torch.empty_like(hidden), attention)
        inputs = self._inputs
        inputs.hidden.copy_(hidden)
        inputs.attention.cosines.copy_(given.cosines)
        inputs.attention.sines.copy_(given.sines)
        inputs.attention.length.copy_(given.length)
        return inputs

    def _record(self, index: int, step: LayerStep) -> Recorded[Junction]:
        inputs, layers = self._inputs, self._pieces[index]
        assert inputs is not None
        fixed = dataclasses.replace(step, attention=inputs.attention, on_route=None)

        def run() -> Junction:
            hidden = inputs.hidden
            if index:
                before = self._recorded[index - 1].outputs
                added = inputs.routed if before.shared is None else inputs.routed + before.shared
                hidden = before.hidden + added
            is_last = index + 1 == len(self._pieces)
            for layer in layers if is_last else layers[:-1]:
                hidden = layer(hidden, fixed)
            if is_last:
                return Junction(hidden, self._norm(hidden))
            hidden, normed = layers[-1].attend(hidden, fixed)
            moe, bank = layers[-1].moe, step.rows.only_bank
            assert moe is not None
            assert bank is not None
            shared = moe.shared_apart(normed, step.experts)
            return Junction(hidden, normed, moe.routers[bank](normed), shared)

        return self._recorder.record(run)


def _cut(layers: Sequence[DecoderLayer]) -> list[list[DecoderLayer]]:
    """The layers of each piece, up to the next with experts; the last piece has the rest, or none."""
    pieces: list[list[DecoderLayer]] = [[]]
    for layer in layers:
        pieces[-1].append(layer)
        if layer.moe is not None:
            pieces.append([])
    return pieces
