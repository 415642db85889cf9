"""Runs one decoder layer over all calibration tokens: attention, routing, experts' outputs, shared experts.

Attention and shared experts have the weights of the new checkpoint, so experts are quantized from the inputs
that they will meet. Hidden states stay in files and pass through memory in chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.config import ExpertBank, ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.files import sync_names
from ernie_local.model.attention import AttentionStep, choose_attention
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.moe import served_tokens
from ernie_local.model.rope import TextRope
from ernie_quant.tokens import RowFile, TokenTable

Tensor = torch.Tensor
CHUNK_TOKENS = 4096
NEIGHBOUR_RANKS = 4  # times top_k: the lowest rank of a neighbour
Expert = Callable[[Tensor, Tensor], Tensor]  # tokens (tokens, hidden_size), weights (tokens, 1) -> outputs


@dataclass(frozen=True, slots=True)
class StateFiles:
    """Hidden states of `num_tokens` tokens on their way through the layers, in files of `folder`.

    The input states of layer N are in the file `NAME.N`.
    """

    folder: Path
    name: str
    num_tokens: int
    hidden_size: int

    def open(self, suffix: int | str, *, is_new: bool = False, is_shared: bool = False) -> RowFile:
        """The input states of layer `suffix`, or another file of this name."""
        path = self._path(suffix)
        return RowFile(path, self.num_tokens, self.hidden_size, is_new=is_new, is_shared=is_shared)

    @contextmanager
    def layer(self, layer_id: int) -> Iterator[tuple[RowFile, RowFile, RowFile]]:
        """The layer's input states, and new files for them with its attention and for its experts' sums.

        When the block ends without an error, the last file becomes the input of the next layer.
        """
        with (
            self.open(layer_id) as states,
            self.open("attended", is_new=True) as attended,
            self.open("routed", is_new=True) as routed,
        ):
            yield states, attended, routed
            routed.sync()
        self._path("routed").replace(self._path(layer_id + 1))
        sync_names(self.folder)

    def delete(self, suffix: int | str) -> None:
        """Delete a file that is needed no more, and may be deleted already."""
        self._path(suffix).unlink(missing_ok=True)

    def _path(self, suffix: int | str) -> Path:
        return self.folder / f"{self.name}.{suffix}"


@dataclass(frozen=True, slots=True)
class NormedTokens:
    """The inputs of routers and experts for some tokens, in chunks of (tokens, hidden_size).

    states: hidden states with the layer's attention added; rows: (tokens,) of them.
    """

    layer: DecoderLayer
    states: RowFile
    rows: Tensor

    def __len__(self) -> int:
        return self.rows.numel()

    @torch.inference_mode()
    def __iter__(self) -> Iterator[Tensor]:
        for rows in self.rows.split(CHUNK_TOKENS) if len(self) else ():
            yield self.layer.post_attention_layernorm(self.states.read(rows))

    @torch.inference_mode()
    def outputs(self, expert: Expert, weights: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows of each chunk, (tokens,), and the expert's weighted outputs for them, (tokens, hidden_size).

        weights: (tokens,) of the router.
        """
        if len(self):
            chunks = self.rows.split(CHUNK_TOKENS), self, weights[:, None].split(CHUNK_TOKENS)
            for rows, tokens, chunk_weights in zip(*chunks, strict=True):
                yield rows, expert(tokens, chunk_weights)

    def add_outputs(self, expert: Expert, weights: Tensor, sums: RowFile) -> None:
        """Add the expert's weighted outputs to the same rows of `sums`."""
        for rows, outputs in self.outputs(expert, weights):
            sums.add(rows, outputs)


@dataclass(frozen=True, slots=True)
class Routing:
    """Of one bank. rows: (tokens,) of the token table; ids, weights: (tokens, top_k) that the router chose;
    ranked: (tokens, ranks) expert ids, best first, to lower ranks than top_k."""

    rows: Tensor
    ids: Tensor
    weights: Tensor
    ranked: Tensor

    def visitors(self, expert_id: int) -> tuple[Tensor, Tensor]:
        """Rows of the table that are routed to the expert, and their weights, (visitors,) each."""
        tokens, choices = (self.ids == expert_id).nonzero(as_tuple=True)
        return self.rows[tokens], self.weights[tokens, choices]

    def of_rows(self, rows: slice) -> Routing:
        """The same of those tokens that lie in these rows of the table."""
        first, last = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop])).tolist()
        part = slice(first, last)  # rows ascend
        return Routing(self.rows[part], self.ids[part], self.weights[part], self.ranked[part])

    def neighbours(self, expert_id: int, most: int) -> Tensor:
        """Up to `most` rows that are routed elsewhere but rank the expert next, best ranks first."""
        top_k = self.ids.shape[1]
        tokens, ranks = (self.ranked[:, top_k:] == expert_id).nonzero(as_tuple=True)
        others = ~(self.ids[tokens] == expert_id).any(1)
        tokens, ranks = tokens[others], ranks[others]
        return self.rows[tokens[ranks.argsort(stable=True)[:most]].sort().values]


def chunks(file: RowFile, rows: slice | None = None) -> Iterator[slice]:
    """These rows of the file, by default all, in chunks."""
    first, last, _ = (rows or slice(None)).indices(file.num_rows)
    for start in range(first, last, CHUNK_TOKENS):
        yield slice(start, min(start + CHUNK_TOKENS, last))


@torch.inference_mode()
def attend_layer(
    layer: DecoderLayer,
    config: ModelConfig,
    table: TokenTable,
    states: RowFile,
    attended: RowFile,
    first_row: int = 0,
    sequences: Sequence[slice] | None = None,
) -> None:
    """Write each hidden state with the layer's attention added to `attended`, from `first_row` on.

    sequences: the tokens of each one, by default of all in the table.
    """
    for tokens, hidden, step in _attention_steps(config, table, states, sequences):
        rows = slice(first_row + tokens.start, first_row + tokens.stop)
        attended.write(rows, step.add_to(hidden, layer.input_layernorm, layer.self_attn))


@torch.inference_mode()
def attend_heads(
    layer: DecoderLayer,
    config: ModelConfig,
    table: TokenTable,
    states: RowFile,
    heads: RowFile,
    sequences: Sequence[slice],
) -> None:
    """The first half of it: write what comes out of all heads, (tokens, heads * head_dim), to `heads`."""
    attention = layer.self_attn
    for tokens, hidden, step in _attention_steps(config, table, states, sequences):
        projected = attention.project(layer.input_layernorm(hidden))
        heads.write(tokens, step.attend(attention.layer_id, *projected).flatten(1))


@torch.inference_mode()
def add_heads(layer: DecoderLayer, states: RowFile, heads: RowFile, attended: RowFile, rows: slice) -> None:
    """The second half: write these rows of `states`, with the projection of `heads` added, to `attended`."""
    for tokens in chunks(states, rows):
        attended.write(tokens, states.read(tokens) + layer.self_attn.o_proj(heads.read(tokens)))


def _attention_steps(
    config: ModelConfig, table: TokenTable, states: RowFile, sequences: Sequence[slice] | None
) -> Iterator[tuple[slice, Tensor, AttentionStep]]:
    """Of each sequence its tokens, their hidden states, and how they attend."""
    sequences = list(table.sequences()) if sequences is None else sequences
    one_layer = dataclasses.replace(config.text, num_hidden_layers=1)
    longest = max(tokens.stop - tokens.start for tokens in sequences)
    cache = KVCache(one_layer, longest, torch.float32, torch.device("cpu"))
    rope = TextRope(config.text, torch.device("cpu"))
    for tokens in sequences:
        cosines, sines = rope.angles(table.positions[:, tokens])
        hidden = states.read(tokens)
        yield tokens, hidden, choose_attention(hidden, cosines, sines, cache)
        cache.truncate(0)


@torch.inference_mode()
def finish_layer(
    layer: DecoderLayer, layer_id: int, attended: RowFile, routed: RowFile, rows: slice | None = None
) -> None:
    """Add hidden states and the dense MLP or shared experts to the experts' sums in `routed`.

    The result is the input of the next layer. rows: of both files, by default all. ModelUnusable if a value
    is not finite.
    """
    mlp = layer.mlp if layer.moe is None else layer.moe.shared_experts
    for tokens in chunks(attended, rows):
        hidden = attended.read(tokens)
        if mlp is not None:
            hidden += mlp(layer.post_attention_layernorm(hidden))
        if layer.moe is not None:
            hidden += routed.read(tokens)
        if not bool(hidden.isfinite().all()):
            raise ModelUnusable(
                f"layer {layer_id} makes values of calibration tokens that are not finite",
                "one of its weights is damaged, or overflows",
                "verify the source checkpoint",
            )
        routed.write(tokens, hidden)


@torch.inference_mode()
def route_bank(layer: DecoderLayer, table: TokenTable, attended: RowFile, bank: ExpertBank) -> Routing:
    """Route the bank's tokens as the layer's router does."""
    assert layer.moe is not None
    router = layer.moe.routers[bank.name]
    rows = served_tokens(bank, table.is_vision).nonzero()[:, 0]
    num_experts, top_k = router.weight.shape[0], router.experts_per_token
    num_ranks = min(NEIGHBOUR_RANKS * top_k, num_experts)
    ids = torch.empty(len(rows), top_k, dtype=torch.int64)
    weights = torch.empty(len(rows), top_k)
    ranked = torch.empty(len(rows), num_ranks, dtype=torch.int64)
    start = 0
    for normed in NormedTokens(layer, attended, rows):
        part = slice(start, start + len(normed))
        ids[part], weights[part] = router(normed)
        scores = (normed.float() @ router.weight.t()).softmax(-1) + router.bias
        ranked[part] = scores.topk(num_ranks, dim=-1).indices
        start = part.stop
    return Routing(rows, ids, weights, ranked)
