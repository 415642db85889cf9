"""Finds which errors of experts the answers would show: gradients at the outputs of the exact layers.

Small errors d at all outputs change the answers by a divergence of about d^T F d / 2, with the Fisher
information F of the logits. A random vector of that covariance at each position of an answer, sent back
through the model, is a gradient g at every output with E[g g^T] = F there. Forward and back go layer by
layer, one expert at a time; states and gradients stay in files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ernie_calibration.sequences import EncodedSample
from ernie_local.config import ModelConfig
from ernie_local.errors import ErnieLocalError, parameter
from ernie_local.loading.build import build_layer
from ernie_local.model.attention import ChunkAttention
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.layers import RMSNorm
from ernie_local.model.moe import served_tokens
from ernie_local.model.rope import TextRope
from ernie_quant.exact_path import ExactPath
from ernie_quant.expert import ExpertWeights, gradient_directions, gradient_lengths
from ernie_quant.hessian import second_moments
from ernie_quant.layer import CHUNK_TOKENS, StateFiles, attend_layer
from ernie_quant.source import BLOCK_ROWS, FloatSource
from ernie_quant.tokens import RowFile, TokenTable, first_sequences

POSITIONS_AT_A_TIME = 256  # 106 MB of logits over 103,424 words
# Of the states of one layer; all layers' gradients lie on the disk, and the states before them.
_MOST_STATE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class AnswerGradients:
    """Gradients at the outputs of all layers, for some sequences.

    path: on which they run forward; files: of gradients, in which NAME.N holds those at the output of layer
    N, (tokens, hidden_size).
    """

    path: ExactPath
    sequences: Sequence[EncodedSample]
    files: StateFiles

    @classmethod
    def of(
        cls, source: FloatSource, config: ModelConfig, sequences: Sequence[EncodedSample], folder: Path
    ) -> AnswerGradients:
        """Of the first sequences of `gradient_sequences`; config: of the source, unquantized."""
        chosen = gradient_sequences(sequences, config)
        table = TokenTable.of(chosen, config)
        states, gradients = (
            StateFiles(folder, name, table.num_tokens, config.text.hidden_size)
            for name in ("forward", "gradient")
        )
        return cls(ExactPath(source, config, table, states), chosen, gradients)

    @property
    def steps(self) -> dict[str, Callable[[], None]]:
        """What has to be done one after the other, by the units' names."""
        text = self.path.config.text
        last, first = text.num_hidden_layers - 1, text.moe_layers.index(True)
        forward = {f"forward {layer_id}": partial(self._go_forward, layer_id) for layer_id in range(last + 1)}
        back = {f"answers {one - 1}": partial(self.go_back, one) for one in range(last, first, -1)}
        return forward | {f"answers {last}": self.begin} | back

    def _go_forward(self, layer_id: int) -> None:
        self.path.run_layer(layer_id)

    def of_rows(self, layer_id: int, rows: Tensor) -> tuple[GradientRows, int]:
        """Gradients at a layer's output for the first of these rows, which ascend, and how many they are."""
        count = int(torch.searchsorted(rows, self.path.table.num_tokens))
        return GradientRows(self.files, layer_id, rows[:count]), count

    def output_side(self, layer_id: int, rows: Tensor) -> Tensor:
        """Second moments of their directions, weighted by their lengths; of trace 1, or zeros."""
        gradients, _ = self.of_rows(layer_id, rows)
        size = self.path.config.text.hidden_size
        return second_moments(map(gradient_directions, gradients), gradient_lengths(gradients), size).matrix

    def begin(self) -> None:
        """Write the gradients at the last layer's output, when the tokens have run through all layers."""
        path, last = self.path, self.path.config.text.num_hidden_layers - 1
        positions = answer_positions(self.sequences, path.table)
        generator = torch.Generator().manual_seed(0)
        with path.files.open(last + 1) as states, self.files.open(last, is_new=True) as gradients:
            for rows in positions.split(POSITIONS_AT_A_TIME):
                found = _head_gradients(path.source, path.config, states.read(rows), generator)
                _check_finite(found, last)
                gradients.write(rows, found)
            gradients.sync()

    def go_back(self, layer_id: int) -> None:
        """Write the gradients at the output of the layer before, from those at the layer's own."""
        path = self.path
        layer = build_layer(path.source.checkpoint, path.config, layer_id)
        with (
            path.files.open(layer_id) as states,
            path.files.open("attended", is_new=True) as attended,
            self.files.open(layer_id) as gradients,
            self.files.open(layer_id - 1, is_new=True) as before,
        ):
            path.files.delete(layer_id + 1)  # who needed it is recorded
            attend_layer(layer, path.config, path.table, states, attended)
            step = _LayerBackward(path, layer, layer_id)
            found = step.through_mlp(attended, gradients.read(slice(None)))
            _check_finite(found, layer_id)
            step.through_attention(states, found, before)
            before.sync()


@dataclass(frozen=True, slots=True)
class GradientRows:
    """Rows of the gradients at a layer's output, in parts as tokens come."""

    files: StateFiles
    layer_id: int
    rows: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        with self.files.open(self.layer_id) as gradients:
            for rows in self.rows.split(CHUNK_TOKENS) if len(self.rows) else ():
                yield gradients.read(rows)


def _check_finite(gradients: Tensor, layer_id: int) -> None:
    if not bool(gradients.isfinite().all()):
        raise ErnieLocalError(
            f"gradients of the answers at layer {layer_id} are not finite",
            "weights of the source behind it are too large for a pass back, or damaged",
            f"verify the source checkpoint, or quantize without {parameter('by_answers')}",
        )


def gradient_sequences(sequences: Sequence[EncodedSample], config: ModelConfig) -> Sequence[EncodedSample]:
    """The first ones whose states of a layer take at most 64 MiB, but at least one."""
    most = _MOST_STATE_BYTES // (torch.float32.itemsize * config.text.hidden_size)
    return first_sequences(sequences, most)


def answer_positions(sequences: Sequence[EncodedSample], table: TokenTable) -> Tensor:
    """Rows of the tokens before each id of an answer; of a sample without answers, of its last token."""
    rows: list[int] = []
    for sequence, tokens in zip(sequences, table.sequences(), strict=True):
        own = [tokens.start + at - 1 for start, end in sequence.answers for at in range(start, end)]
        rows += own or [tokens.stop - 1]
    return torch.tensor(rows, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class _LayerBackward:
    path: ExactPath
    layer: DecoderLayer
    layer_id: int

    def through_mlp(self, attended: RowFile, gradients: Tensor) -> Tensor:
        """Gradients at the hidden states with attention, from those at the layer's output."""
        moe, mlp, norm = self.layer.moe, self.layer.mlp, self.layer.post_attention_layernorm
        inner = mlp if moe is None else moe.shared_experts
        starts = range(0, attended.num_rows, CHUNK_TOKENS)
        chunks = [slice(start, min(start + CHUNK_TOKENS, attended.num_rows)) for start in starts]
        normed = torch.cat([norm(attended.read(rows)) for rows in chunks])
        wanted = torch.zeros_like(normed)  # gradients at `normed`
        if inner is not None:
            for rows in chunks:
                with torch.enable_grad():
                    leaf = normed[rows].requires_grad_()
                    (wanted[rows],) = torch.autograd.grad(inner(leaf), leaf, gradients[rows])
        if moe is not None:
            self._add_experts(normed, gradients, wanted)
        for rows in chunks:
            with torch.enable_grad():
                hidden = attended.read(rows).requires_grad_()
                (own,) = torch.autograd.grad(norm(hidden), hidden, wanted[rows])
            wanted[rows] = own + gradients[rows]
        return wanted

    def _add_experts(self, normed: Tensor, gradients: Tensor, wanted: Tensor) -> None:
        """Add to `wanted` the gradients at `normed`, (tokens, hidden_size), of its routed experts.

        Each expert is read once, for all tokens.
        """
        assert self.layer.moe is not None
        for bank in self.path.config.text.banks:
            served = served_tokens(bank, self.path.table.is_vision).nonzero()[:, 0]
            if not len(served):
                continue
            with torch.enable_grad():
                own = normed[served].requires_grad_()
                ids, weights = self.layer.moe.routers[bank.name](own)
            at_weights = torch.zeros_like(weights)
            for expert_id in range(bank.num_experts):
                visits = (ids == expert_id).nonzero()
                if not len(visits):
                    continue
                expert = self.path.source.expert(self.layer_id, bank.name, expert_id)
                for tokens, choices in (part.unbind(1) for part in visits.split(CHUNK_TOKENS)):
                    with torch.enable_grad():
                        inputs = normed[served[tokens]].requires_grad_()
                        outputs = _outputs(expert, inputs)
                    at_outputs = gradients[served[tokens]]
                    at_weights[tokens, choices] = (outputs.detach() * at_outputs).sum(1)
                    at_outputs = at_outputs * weights.detach()[tokens, choices, None]
                    (at_inputs,) = torch.autograd.grad(outputs, inputs, at_outputs)
                    wanted.index_add_(0, served[tokens], at_inputs)
            (at_own,) = torch.autograd.grad(weights, own, at_weights)
            wanted.index_add_(0, served, at_own)

    def through_attention(self, states: RowFile, gradients: Tensor, before: RowFile) -> None:
        """Write the gradients at `states` to `before`."""
        config, layer, table = self.path.config, self.layer, self.path.table
        one_layer = dataclasses.replace(config.text, num_hidden_layers=1)
        rope = TextRope(config.text, torch.device("cpu"))
        for tokens in table.sequences():
            cosines, sines = rope.angles(table.positions[:, tokens])
            length = tokens.stop - tokens.start
            with torch.enable_grad():
                hidden = states.read(tokens).requires_grad_()
                # A cache of its own: it is part of what the gradients go through.
                cache = KVCache(one_layer, length, torch.float32, torch.device("cpu"))
                step = ChunkAttention(cosines, sines, cache)
                outputs = step.add_to(hidden, layer.input_layernorm, layer.self_attn)
                (own,) = torch.autograd.grad(outputs, hidden, gradients[tokens])
            before.write(tokens, own)


def _outputs(expert: ExpertWeights, tokens: Tensor) -> Tensor:
    """As `expert.outputs`, which autograd cannot follow: it works in place."""
    return (functional.silu(tokens @ expert.gate.t()) * (tokens @ expert.up.t())) @ expert.down.t()


def draw_of_information(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors with the covariance diag(p) - p p^T of the shares p of each row, (rows, words).

    Of signs, not of drawn words: a word that is nearly sure has a small gradient then, not a large one that
    is seldom seen.
    """
    root = logits.softmax(-1).sqrt_()
    drawn = root * (torch.randint(0, 2, root.shape, generator=generator) * 2 - 1)
    return drawn.sub_(root.square() * drawn.sum(-1, keepdim=True))


def _head_gradients(
    source: FloatSource, config: ModelConfig, states: Tensor, generator: torch.Generator
) -> Tensor:
    """Of random vectors with the covariance of the logits' information, at `states`, (positions, hidden)."""
    norm = RMSNorm(config.text.hidden_size, config.text.rms_norm_eps)
    norm.weight = torch.nn.Parameter(source.read("norm.weight"), requires_grad=False)
    with torch.enable_grad():
        leaf = states.clone().requires_grad_()
        normed = norm(leaf)
    logits = torch.cat([normed.detach() @ block.t() for block in source.matrix("lm_head")], dim=1)
    drawn = draw_of_information(logits, generator)
    at_normed = torch.zeros_like(states)
    for part, block in zip(drawn.split(BLOCK_ROWS, dim=1), source.matrix("lm_head"), strict=True):
        at_normed += part @ block
    (found,) = torch.autograd.grad(normed, leaf, at_normed)
    return found
