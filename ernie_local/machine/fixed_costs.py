"""What a decoded token costs beside its bytes: measured on a model so small that little else is left.

The same tokens with all experts in memory, with paging that finds them all, and with paging that misses many.
Bytes are taken off as the formula of planner/decode_time.py counts them, so that it gives back what was seen.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import PagingSetup, paging_plan
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.machine.random_model import text_ids, write_random
from ernie_local.machine.timing import Clock
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.planner.model_size import read_model
from ernie_local.planner.profile import Measurement
from ernie_local.planner.rates import PagingCosts, Rates, decode_seconds
from ernie_local.sizes import MIB
from ernie_local.strict_json import read_json_object

_ROUNDS = 7
_TOKENS = 16  # in a round
_WARM_TOKENS = 48
_CONTEXT = _WARM_TOKENS + _ROUNDS * _TOKENS + 8


@dataclass(frozen=True, slots=True)
class FixedCosts:
    """Seconds: of a token beside its layers, of a layer, of a paged layer, of a missing page; see Rates."""

    token: Measurement
    layer: Measurement
    paged_layer: Measurement
    page: Measurement

    def added_to(self, rates: Rates) -> Rates:
        """Rates with these costs: the least that was seen, as whatever disturbs them only adds."""
        return dataclasses.replace(
            rates,
            token_seconds=self.token.low,
            layer_seconds=self.layer.low,
            paging=PagingCosts(self.paged_layer.low, self.page.low),
        )


def write_small_packed(source: Path, directory: Path) -> None:
    """A checkpoint of the sizes of the model in `source`, random and packed, in a new `directory`."""
    config = read_config(source)
    raw = read_json_object(source / "config.json")
    write_random(directory, raw, _all_packed(config), seed=0)


def measure_fixed_costs(directory: Path, rates: Rates, clock: Clock = time.perf_counter) -> FixedCosts:
    """Of the kind of weights that the small model in `directory` has; rates: those of bytes, costs aside."""
    rates = dataclasses.replace(rates, token_seconds=0.0, layer_seconds=0.0, paging=None)
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
    assert plan is not None, "a model with experts is measured"
    work = read_model(directory).decode_work("float32")
    seen = _decode(directory, config, None, clock)
    token, layer = _split(seen, work.num_layers, decode_seconds(work, rates))
    rates = dataclasses.replace(rates, token_seconds=token.low, layer_seconds=layer.low)

    def beyond(one: _Token) -> float:
        """Seconds that the rates so far do not explain."""
        hit_rate = 1 - one.misses / (work.moe_layers * work.experts_per_token)
        return max(0.0, one.seconds - decode_seconds(work, rates, hit_rate))

    seen = _decode(directory, config, plan.most_bytes, clock)
    paged_layer = _by_rounds(seen, lambda one: beyond(one) / work.moe_layers)
    rates = dataclasses.replace(rates, paging=PagingCosts(paged_layer.low, 0.0))
    scarce = plan.least_bytes + (plan.most_bytes - plan.least_bytes) // 4
    seen = _decode(directory, config, scarce, clock)
    missing = [[one for one in tokens if one.misses] for tokens in seen]
    page = _by_rounds([tokens for tokens in missing if tokens], lambda one: beyond(one) / one.misses)
    return FixedCosts(token, layer, paged_layer, page)


@dataclass(frozen=True, slots=True)
class _Token:
    """Seconds that one took, of them in layers, and the pages that it missed."""

    seconds: float
    layers_seconds: float
    misses: int


def _decode(
    directory: Path, config: ModelConfig, expert_bytes: int | None, clock: Clock
) -> list[list[_Token]]:
    """Decode random text tokens in rounds.

    expert_bytes: for paged experts, the conversation's memory comes on top; None for all in memory.
    """
    paging = None
    if expert_bytes is not None:
        conversation = _CONTEXT * kv_bytes_per_token(config.text, torch.float32) + MIB
        paging = PagingSetup(expert_bytes + conversation)
    with open_checkpoint(directory, config) as checkpoint:
        network = build_model(checkpoint, config, torch.float32, torch.device("cpu"), paging)
    marks: list[float] = []
    network.layers[0].register_forward_pre_hook(lambda *_: marks.append(clock()))
    network.layers[-1].register_forward_hook(lambda *_: marks.append(clock()))
    engine = Engine(network, _CONTEXT)
    ids = text_ids(config, _WARM_TOKENS + _ROUNDS * _TOKENS)
    tokens = []
    for token_id in ids:
        misses = _misses(network)
        marks.clear()
        start = clock()
        engine.decode(token_id)
        seconds = clock() - start
        tokens.append(_Token(seconds, marks[1] - marks[0], _misses(network) - misses))
    if isinstance(network.experts, PagedExperts):
        network.experts.close()
    del tokens[:_WARM_TOKENS]
    return [tokens[start : start + _TOKENS] for start in range(0, len(tokens), _TOKENS)]


def _misses(network: ErnieModel) -> int:
    experts = network.experts
    return experts.stats.banks["text"].decode_misses if isinstance(experts, PagedExperts) else 0


def _by_rounds(rounds: Sequence[Sequence[_Token]], value: Callable[[_Token], float]) -> Measurement:
    """Medians of rounds; nothing where there was nothing to see."""
    return Measurement.of([statistics.median(map(value, tokens)) for tokens in rounds] or [0.0])


def _split(
    rounds: Sequence[Sequence[_Token]], num_layers: int, byte_seconds: float
) -> tuple[Measurement, Measurement]:
    """Of a token beside its layers, and of a layer; the seconds of bytes come off both by their shares."""

    def left(one: _Token) -> float:
        return max(0.0, 1 - byte_seconds / one.seconds)

    token = _by_rounds(rounds, lambda one: (one.seconds - one.layers_seconds) * left(one))
    return token, _by_rounds(rounds, lambda one: one.layers_seconds * left(one) / num_layers)


def _all_packed(config: ModelConfig) -> QuantizationConfig:
    """Experts in w4, everything else of the decoder in w8; the vision tower stays as it is."""
    text = config.text
    layers = range(text.num_hidden_layers)
    matrices = {
        f"layers.{layer}.self_attn.{name}": "w8" for layer in layers for name in ("qkv_proj", "o_proj")
    }
    mlps = {
        f"layers.{layer}.{'moe.shared_experts' if text.moe_layers[layer] else 'mlp'}": "w8"
        for layer in layers
        if not text.moe_layers[layer] or text.num_shared_experts
    }
    experts = {(layer, bank.name): ("w4",) * bank.num_experts for layer, bank in text.layer_banks()}
    return QuantizationConfig(experts, matrices | {"embed_tokens": "w8"}, mlps)
