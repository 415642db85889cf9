"""Chooses a format for every weight from measurements and a size: the tables of mixed bits.

Each option has its bytes and the divergence at the answers that it is expected to cause.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.packed import PackedTensors, page_formats, page_layout
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import BankKey, ModelConfig, QuantizationConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.packing import LowBitFormat
from ernie_local.packing.formats import formats_for, largest_first
from ernie_local.sizes import format_bytes
from ernie_quant.allocate import Option, allocate
from ernie_quant.measurements import Measurements

# This share of an expert's loss is the mean of its bank, so that experts with few calibration tokens are not
# sacrificed to those with many.
FLOOR = 0.2
# A layer's factor is at least this share of the median: few positions measure small factors badly.
_LEAST_FACTOR = 0.1
_DENSE = tuple(low_bit.name for low_bit in reversed(largest_first(formats_for("dense"))))
Item = tuple[str, int, str, int]  # kind, layer, bank or "", expert


def tables_of_bits(
    config: ModelConfig, measured: Measurements, bits: float, dense: str
) -> QuantizationConfig:
    """Formats that lose least with `bits` bits a weight of the routed experts, scales and zeros included.

    The padding of pages to 4096 bytes does not count: it is nothing at real widths, and much at tiny ones. If
    `dense` is `auto`, dense matrices share a budget with the experts, in which they count as w8.
    """
    start = _smallest(config, dense)
    experts = expert_items(config, measured, _nominal_bytes)
    dense_items = _dense_items(config, measured, start, dense)
    weights = sum(_expert_weights(config, bank) for _, _, bank, _ in experts)
    budget = int(weights * bits / 8) + sum(options[-1].num_bytes for options in dense_items.values())
    chosen = allocate(experts | dense_items, budget)
    return _tables_of(config, start, {key: option.name for key, option in chosen.items()})


def tables_of_size(
    config: ModelConfig, measured: Measurements, size: int, kept: int, dense: str
) -> QuantizationConfig:
    """Formats that lose least within `size` bytes with padded pages, of which `kept` stay unquantized.

    DoesNotFit if the smallest formats already take more.
    """
    start = _smallest(config, dense)
    items = expert_items(config, measured) | _dense_items(config, measured, start, dense)
    least = quantized_bytes(config, start)
    _check_size(least + kept, size)
    chosen = allocate(items, size - kept - least + _least_bytes(items))
    return _tables_of(config, start, {key: option.name for key, option in chosen.items()})


def tables_for_gpu(
    config: ModelConfig, measured: Measurements, size: int, beside: int, dense: str
) -> QuantizationConfig:
    """As `tables_of_size` with `beside` bytes for other things than weights, where only
    what decoding a token needs has to fit: the experts of text tokens, and no tower.

    Other banks get as many bits a weight as the bank of text tokens does.
    """
    start = _smallest(config, dense)
    experts = expert_items(config, measured)
    decoding = config.text.text_bank
    text = {
        key: options for key, options in experts.items() if decoding is not None and key[2] == decoding.name
    }
    items = text | _dense_items(config, measured, start, dense)
    resident = {name: found for name, found in start.matrices.items() if not name.startswith("vision.")}
    needed = dataclasses.replace(start, experts={}, matrices=resident)
    least = quantized_bytes(config, needed) + _least_bytes(text)
    _check_size(least + beside, size)
    chosen = allocate(items, size - beside - least + _least_bytes(items))
    text_bytes = sum(chosen[key].num_bytes for key in text)
    for bank in config.text.banks:
        if decoding is not None and bank is not decoding:
            own = {key: options for key, options in experts.items() if key[2] == bank.name}
            ratio = bank.expert_size / decoding.expert_size
            chosen |= allocate(own, max(_least_bytes(own), int(text_bytes * ratio)))
    return _tables_of(config, start, {key: option.name for key, option in chosen.items()})


def _check_size(least: int, size: int) -> None:
    if least > size:
        raise DoesNotFit(
            f"the weights take {format_bytes(least)} at least, {format_bytes(size)} are wanted",
            "the smallest formats already take more",
            f"allow {format_bytes(least)} or more, or shrink dense weights: {parameter('dense', 'auto')}",
        )


def _smallest(config: ModelConfig, dense: str) -> QuantizationConfig:
    return format_tables(config, FormatChoice("w2s", "w4" if dense == "auto" else dense, "w8", "w8"))


def _least_bytes(items: Mapping[Item, list[Option]]) -> int:
    return sum(min(option.num_bytes for option in options) for options in items.values())


def quantized_bytes(config: ModelConfig, tables: QuantizationConfig) -> int:
    """Bytes of all packed tensors in these tables."""
    packed = PackedTensors(dataclasses.replace(config, quantization=tables))
    return sum(math.prod(shape) for shape in packed.shapes.values())


def unquantized_bytes(checkpoint: Checkpoint, config: ModelConfig) -> int:
    """Bytes of the unquantized tensors: norms, routers, resampler, patch embedding, biases."""
    packed = PackedTensors(dataclasses.replace(config, quantization=_smallest(config, "w8")))
    return sum(
        math.prod(checkpoint.shape(name)) * checkpoint.dtype(name).itemsize
        for name in checkpoint.names()
        if not packed.replaces(name)
    )


def allocation_lines(tables: QuantizationConfig, measured: Measurements) -> Iterator[str]:
    """The chosen formats, as lines for people."""
    for bank in dict.fromkeys(bank for _, bank in tables.experts):
        counts = Counter(
            name for (_, own), formats in tables.experts.items() if own == bank for name in formats
        )
        told = ", ".join(f"{name} x {count}" for name, count in counts.most_common())
        yield f"{bank} experts, measured on {measured.tokens[bank]:,} tokens: {told}"
    dense = Counter([*tables.matrices.values(), *tables.gated_mlps.values()])
    yield "other matrices: " + ", ".join(f"{name} x {count}" for name, count in dense.most_common())


def _page_bytes(config: ModelConfig, bank: str, page_format: str) -> int:
    return page_layout(page_format, config.text.hidden_size, config.text.bank(bank).expert_size).page_bytes


def _nominal_bytes(config: ModelConfig, bank: str, page_format: str) -> int:
    """Codes, scales and zeros alone: the bytes of a page without padding."""
    gate_up, down = page_formats(page_format)
    a_third = _expert_weights(config, bank) // 3
    return int(a_third * (2 * _nominal_bits(gate_up) + _nominal_bits(down)) / 8)


def _nominal_bits(low_bit: LowBitFormat) -> float:
    return low_bit.bits + (low_bit.scale_bits + low_bit.zero_bits) / low_bit.group_size


def _expert_weights(config: ModelConfig, bank: str) -> int:
    return 3 * config.text.hidden_size * config.text.bank(bank).expert_size


def expert_items(
    config: ModelConfig,
    measured: Measurements,
    bytes_of: Callable[[ModelConfig, str, str], int] = _page_bytes,
) -> dict[Item, list[Option]]:
    """Page formats of every routed expert, with losses in nats of divergence at the answers."""
    factors = layer_factors(measured)
    text = config.text
    items: dict[Item, list[Option]] = {}
    for layer_id, has_experts in enumerate(text.moe_layers):
        for bank in text.banks if has_experts else ():
            keys = [(layer_id, bank.name, expert_id) for expert_id in range(bank.num_experts)]
            mean_power = sum(measured.experts[key].power for key in keys) / len(keys)
            for key in keys:
                losses = measured.experts[key]
                power = (1 - FLOOR) * losses.power + FLOOR * mean_power
                items["expert", layer_id, bank.name, key[2]] = [
                    Option(
                        gate_up if gate_up == down else f"{gate_up}-{down}",
                        bytes_of(config, bank.name, f"{gate_up}-{down}"),
                        factors[layer_id] * power * (gate_up_lost + down_lost),
                    )
                    for gate_up, gate_up_lost in losses.lost["gate_up"].items()
                    for down, down_lost in losses.lost["down"].items()
                ]
    return items


def layer_factors(measured: Measurements) -> dict[int, float]:
    """For each layer, nats of divergence at the answers for a unit of its experts' lost power."""
    lost: dict[int, float] = {}
    for (layer_id, _, _), losses in measured.experts.items():
        shares = sum(losses.lost[part][measured.probe_format] for part in losses.lost)
        lost[layer_id] = lost.get(layer_id, 0.0) + losses.power * shares
    factors = {
        layer_id: measured.expert_divergence[layer_id] / power if power > 0 else 0.0
        for layer_id, power in lost.items()
    }
    median = sorted(factors.values())[len(factors) // 2] if factors else 0.0
    return {layer_id: max(factor, _LEAST_FACTOR * median) for layer_id, factor in factors.items()}


def _dense_items(
    config: ModelConfig, measured: Measurements, tables: QuantizationConfig, dense: str
) -> dict[Item, list[Option]]:
    items: dict[Item, list[Option]] = {}
    if dense != "auto":
        return items
    for layer_id in range(config.text.num_hidden_layers):
        items["dense", layer_id, "", 0] = _dense_options(
            config, tables, f"layers.{layer_id}.", measured.dense_divergence[layer_id]
        )
    if "lm_head" in tables.matrices:
        items["dense", -1, "", 0] = _dense_options(config, tables, "lm_head", measured.head_divergence)
    return items


def _dense_options(
    config: ModelConfig, tables: QuantizationConfig, prefix: str, divergence: float
) -> list[Option]:
    options = []
    for name, loss in zip(_DENSE, (divergence, 0.0), strict=True):
        only = dataclasses.replace(
            tables,
            experts={},
            matrices={key: name for key in tables.matrices if key.startswith(prefix)},
            gated_mlps={key: name for key in tables.gated_mlps if key.startswith(prefix)},
        )
        options.append(Option(name, quantized_bytes(config, only), loss))
    return options


def _tables_of(
    config: ModelConfig, start: QuantizationConfig, chosen: Mapping[Item, str]
) -> QuantizationConfig:
    experts: dict[BankKey, tuple[str, ...]] = {
        (layer_id, bank): tuple(
            chosen["expert", layer_id, bank, expert_id]
            for expert_id in range(config.text.bank(bank).num_experts)
        )
        for layer_id, bank in start.experts
    }

    def dense_format(name: str, before: str) -> str:
        layer_id = int(name.split(".")[1]) if name.startswith("layers.") else -1
        is_dense = name.startswith("layers.") or name == "lm_head"
        return chosen.get(("dense", layer_id, "", 0), before) if is_dense else before

    return dataclasses.replace(
        start,
        experts=experts,
        matrices={name: dense_format(name, before) for name, before in start.matrices.items()},
        gated_mlps={name: dense_format(name, before) for name, before in start.gated_mlps.items()},
    )
