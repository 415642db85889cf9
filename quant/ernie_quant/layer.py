"""One decoder layer over all calibration tokens: its attention, the routers' choices, the experts' outputs.

The weights of attention and of shared experts are those of the new checkpoint, so that what experts are
quantized from is what they will meet. Knows nothing of how experts are quantized, nor of files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights

from ernie_local.checkpoint.packed import QKV, PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.loading.build import fill_parameters
from ernie_local.model.attention import SelfAttention
from ernie_local.model.decoder import DecoderLayer
from ernie_local.model.kv_cache import KVCache
from ernie_local.model.moe import Bank
from ernie_local.model.packed_linear import PackedGatedMLP, PackedLinear
from ernie_local.model.rope import TextRope
from ernie_local.model.router import Router
from ernie_quant.token_table import TokenTable

Tensor = torch.Tensor
_CHUNK_TOKENS = 4096
NEIGHBOUR_RANKS = 4  # times top_k: how far down the router's list a neighbour may stand


@dataclass(frozen=True, slots=True)
class Routing:
    """Of one bank. rows: (tokens,) of the token table; ids, weights: (tokens, top_k) as the model chooses;
    ranked: (tokens, ranks) expert ids, best first, further down than top_k."""

    rows: Tensor
    ids: Tensor
    weights: Tensor
    ranked: Tensor

    def visitors(self, expert_id: int) -> tuple[Tensor, Tensor]:
        """Rows of the table that go to the expert, and their weights, (visitors,) each."""
        tokens, choices = (self.ids == expert_id).nonzero(as_tuple=True)
        return self.rows[tokens], self.weights[tokens, choices]

    def neighbours(self, expert_id: int, most: int) -> Tensor:
        """Rows that do not go to the expert though the router ranks it next, best rank first."""
        top_k = self.ids.shape[1]
        tokens, ranks = (self.ranked[:, top_k:] == expert_id).nonzero(as_tuple=True)
        others = ~(self.ids[tokens] == expert_id).any(1)
        tokens, ranks = tokens[others], ranks[others]
        return self.rows[tokens[ranks.argsort(stable=True)[:most]]]


def build_layer(
    checkpoint: Checkpoint,
    config: ModelConfig,
    layer_id: int,
    tables: QuantizationConfig,
    tensors: PackedTensors,
    packed: Mapping[str, Tensor],
) -> DecoderLayer:
    """The layer without its routed experts. packed: bytes by the name of matrix or gated MLP in `tables`,
    whose shapes `tensors` knows.

    What `tables` leaves unquantized is read in float32.
    """
    with init_empty_weights(include_buffers=True):
        layer = DecoderLayer(config.text, layer_id)
    prefix = f"layers.{layer_id}."
    for name, matrix in packed.items():
        own = name.removeprefix(prefix)
        if name in tables.gated_mlps:
            layer.set_submodule(own, PackedGatedMLP(matrix))
            continue
        rows, _ = tensors.matrix_shape(name)
        linear = PackedLinear(matrix, tables.matrices[name], rows)
        if own.endswith(QKV):
            layer.self_attn.pack_qkv(linear)
        else:
            layer.set_submodule(own, linear)
    fill_parameters(layer, checkpoint, prefix, torch.float32, torch.device("cpu"))
    # The cache below has this one layer.
    layer.self_attn.layer_id = 0
    return layer.eval()


@torch.inference_mode()
def attend(layer: DecoderLayer, config: ModelConfig, table: TokenTable) -> None:
    """Add the attention half of the layer to every token's hidden state."""
    one_layer = dataclasses.replace(config.text, num_hidden_layers=1)
    longest = max(tokens.stop - tokens.start for tokens in table.sequences())
    cache = KVCache(one_layer, longest, torch.float32, torch.device("cpu"))
    rope = TextRope(config.text, torch.device("cpu"))
    attention: SelfAttention = layer.self_attn
    for tokens in table.sequences():
        cosines, sines = rope.angles(table.positions[:, tokens])
        normed = layer.input_layernorm(table.hidden[tokens])
        table.hidden[tokens] += attention(normed, cosines, sines, cache, ())
        cache.truncate(0)


@torch.inference_mode()
def add_mlp(layer: DecoderLayer, table: TokenTable, routed: Tensor | None = None) -> None:
    """Add what every token passes: the dense MLP, or the shared experts and `routed`, (tokens, hidden)."""
    mlp = layer.mlp if layer.moe is None else layer.moe.shared_experts
    for start in range(0, table.num_tokens, _CHUNK_TOKENS):
        tokens = slice(start, start + _CHUNK_TOKENS)
        if mlp is not None:
            table.hidden[tokens] += mlp(normed_rows(layer, table, tokens))
    if routed is not None:
        table.hidden += routed


@torch.inference_mode()
def normed_rows(layer: DecoderLayer, table: TokenTable, rows: Tensor | slice) -> Tensor:
    """What routers and experts see of these tokens, (rows, hidden); the attention half must be added."""
    normed: Tensor = layer.post_attention_layernorm(table.hidden[rows])
    return normed


@torch.inference_mode()
def route(layer: DecoderLayer, table: TokenTable, bank: Bank) -> Routing:
    """Where the layer's router sends the bank's tokens."""
    assert layer.moe is not None
    router: Router = layer.moe.text_router if bank == "text" else layer.moe.vision_router
    rows = (table.is_vision == (bank == "vision")).nonzero()[:, 0]
    num_ranks = min(NEIGHBOUR_RANKS * router.experts_per_token, router.weight.shape[0])
    ids, weights, ranked = [], [], []
    for part in rows.split(_CHUNK_TOKENS):
        normed = normed_rows(layer, table, part)
        part_ids, part_weights = router(normed)
        scores = (normed.float() @ router.weight.t()).softmax(-1) + router.bias
        ids.append(part_ids)
        weights.append(part_weights)
        ranked.append(scores.topk(num_ranks, dim=-1).indices)
    return Routing(rows, torch.cat(ids), torch.cat(weights), torch.cat(ranked))
