"""Chooses a format for every weight from measurements and a size: the tables of mixed bits.

Each option has its bytes and the divergence at the answers that it is expected to cause.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.packed import PackedTensors, page_formats, page_layout
from ernie_local.config import BankKey, ModelConfig, QuantizationConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.packing.formats import formats_for, largest_first
from ernie_quant.allocate import Option, allocate
from ernie_quant.expert import RoutedExpert
from ernie_quant.measurements import Measurements

# This share of an expert's loss is the mean of its bank, so that experts with few calibration tokens are not
# sacrificed to those with many.
FLOOR = 0.2
# A layer's factor is at least this share of the median: few positions measure small factors badly.
_LEAST_FACTOR = 0.1
_STEP = 1 << 16  # of bytes that a GPU may have room for
_DENSE = tuple(low_bit.name for low_bit in reversed(largest_first(formats_for("dense"))))
SMALLEST_EXPERTS = largest_first(formats_for("mixed"))[-1].name
# An item is an expert, or all other matrices of a layer: (layer, "", 0), or the head: (-1, "", 0).
Items = dict[RoutedExpert, list[Option]]
FilesBytes = Callable[[QuantizationConfig], int]


class MixedTables:
    """Chooses the formats of one model.

    dense: the format of other matrices than experts; `auto` lets them share the budget of the experts.
    """

    def __init__(self, config: ModelConfig, measured: Measurements, dense: str) -> None:
        self._config, self._measured = config, measured
        self._smallest = smallest_tables(config, dense)
        self._dense = self._dense_items() if dense == "auto" else {}

    def of_bits(self, bits: float) -> QuantizationConfig:
        """Formats that lose least with `bits` bits a weight of the routed experts, scales and zeros included.

        The padding of pages to 4096 bytes does not count: it is nothing at real widths, much at tiny ones.
        Dense matrices that share the budget count as w8.
        """
        experts = expert_items(self._config, self._measured, _nominal_bytes)
        weights = sum(_expert_weights(self._config, bank) for _, bank, _ in experts)
        budget = int(weights * bits / 8) + sum(options[-1].num_bytes for options in self._dense.values())
        return self._tables(allocate(experts | self._dense, budget))

    def of_size(self, size: int, files_bytes: FilesBytes) -> QuantizationConfig:
        """Formats that lose least within `size` bytes of files. DoesNotFit if the smallest take more.

        files_bytes: of all weight files in such tables, with headers and what stays unquantized.
        """
        items = expert_items(self._config, self._measured) | self._dense
        room = room_in_files(self._smallest, size, files_bytes)
        while True:
            tables = self._tables(allocate(items, room + _smallest_sum(items)))
            # Headers say places and shapes in digits, and grow by some bytes with the pages.
            if (excess := files_bytes(tables) - size) <= 0:
                return tables
            if room == 0:
                return self._smallest
            room = max(0, room - excess)

    def for_gpu(self, holds: Callable[[QuantizationConfig], bool]) -> QuantizationConfig:
        """Formats that lose least where `holds` says that a GPU has room for what decoding a token needs.

        It is true of the smallest formats. Other banks than that of text tokens get as many bits a weight.
        """
        text = self._config.text
        experts = expert_items(self._config, self._measured)
        by_bank = {
            bank.name: {key: options for key, options in experts.items() if key[1] == bank.name}
            for bank in text.banks
        }
        decoding = text.text_bank
        decoded = {} if decoding is None else by_bank[decoding.name]
        items = decoded | self._dense

        def tables(steps: int) -> QuantizationConfig:
            chosen = allocate(items, steps * _STEP + _smallest_sum(items))
            decoded_bytes = sum(chosen[key].num_bytes for key in decoded)
            for bank in text.banks:
                if decoding is not None and bank is not decoding:
                    own = by_bank[bank.name]
                    ratio = bank.expert_size / decoding.expert_size
                    chosen |= allocate(own, max(_smallest_sum(own), int(decoded_bytes * ratio)))
            return self._tables(chosen)

        most = -(-(_largest_sum(items) - _smallest_sum(items)) // _STEP)
        steps = bisect_left(range(1, most + 1), True, key=lambda one: not holds(tables(one)))
        return tables(steps)

    def _dense_items(self) -> Items:
        options = {
            (layer_id, "", 0): self._dense_options(f"layers.{layer_id}.", divergence)
            for layer_id, divergence in self._measured.dense_divergence.items()
        }
        if "lm_head" in self._smallest.matrices:
            options[-1, "", 0] = self._dense_options("lm_head", self._measured.head_divergence)
        return options

    def _dense_options(self, prefix: str, divergence: float) -> list[Option]:
        options, start = [], self._smallest
        for name, loss in zip(_DENSE, (divergence, 0.0), strict=True):
            only = dataclasses.replace(
                start,
                experts={},
                matrices={key: name for key in start.matrices if key.startswith(prefix)},
                gated_mlps={key: name for key in start.gated_mlps if key.startswith(prefix)},
            )
            options.append(Option(name, quantized_bytes(self._config, only), loss))
        return options

    def _tables(self, chosen: Mapping[RoutedExpert, Option]) -> QuantizationConfig:
        names = {key: option.name for key, option in chosen.items()}
        experts: dict[BankKey, tuple[str, ...]] = {
            (layer_id, bank.name): tuple(names[layer_id, bank.name, each] for each in range(bank.num_experts))
            for layer_id, bank in self._config.text.layer_banks()
        }

        def dense(formats: Mapping[str, str]) -> dict[str, str]:
            found = dict(formats)
            for name, before in formats.items():
                if name == "lm_head":
                    found[name] = names.get((-1, "", 0), before)
                elif name.startswith("layers."):
                    found[name] = names.get((int(name.split(".")[1]), "", 0), before)
            return found

        start = self._smallest
        return dataclasses.replace(
            start, experts=experts, matrices=dense(start.matrices), gated_mlps=dense(start.gated_mlps)
        )


def room_in_files(smallest: QuantizationConfig, size: int, files_bytes: FilesBytes) -> int:
    """Bytes that `size` leaves above files in the smallest tables; DoesNotFit where it is less than these."""
    least = files_bytes(smallest)
    if least > size:
        shrinks = {*smallest.gated_mlps.values()} - {_DENSE[0]}
        or_less = f", or shrink dense weights: {parameter('dense', 'auto')}" if shrinks else ""
        raise DoesNotFit(
            f"the weights take {least:,} bytes at least, {size:,} are wanted",
            "the smallest formats already take more",
            f"{parameter('target_size', least)} or more{or_less}",
        )
    return size - least


def smallest_tables(config: ModelConfig, dense: str) -> QuantizationConfig:
    """The smallest format of each weight. dense: as of MixedTables."""
    return format_tables(
        config, FormatChoice(SMALLEST_EXPERTS, "w4" if dense == "auto" else dense, "w8", "w8")
    )


def _smallest_sum(items: Items) -> int:
    return sum(min(option.num_bytes for option in options) for options in items.values())


def _largest_sum(items: Items) -> int:
    return sum(max(option.num_bytes for option in options) for options in items.values())


def quantized_bytes(config: ModelConfig, tables: QuantizationConfig) -> int:
    """Bytes of all packed tensors in these tables."""
    packed = PackedTensors(config.packed_by(tables))
    return sum(math.prod(shape) for shape in packed.shapes.values())


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
    return int(a_third * (2 * gate_up.nominal_bits + down.nominal_bits) / 8)


def _expert_weights(config: ModelConfig, bank: str) -> int:
    return 3 * config.text.hidden_size * config.text.bank(bank).expert_size


def expert_items(
    config: ModelConfig,
    measured: Measurements,
    bytes_of: Callable[[ModelConfig, str, str], int] = _page_bytes,
) -> Items:
    """Page formats of every routed expert, with losses in nats of divergence at the answers."""
    factors = layer_factors(measured)
    items: Items = {}
    for (layer_id, bank), group in groupby(measured.experts, key=lambda losses: (losses.layer, losses.bank)):
        of_bank = list(group)
        mean_power = sum(losses.power for losses in of_bank) / len(of_bank)
        for losses in of_bank:
            power = (1 - FLOOR) * losses.power + FLOOR * mean_power
            items[layer_id, bank, losses.expert] = [
                Option(
                    gate_up if gate_up == down else f"{gate_up}-{down}",
                    bytes_of(config, bank, f"{gate_up}-{down}"),
                    factors[layer_id] * power * (gate_up_lost + down_lost),
                )
                for gate_up, gate_up_lost in losses.lost["gate_up"].items()
                for down, down_lost in losses.lost["down"].items()
            ]
    return items


def layer_factors(measured: Measurements) -> dict[int, float]:
    """For each layer, nats of divergence at the answers for a unit of its experts' lost power."""
    lost: dict[int, float] = {}
    for losses in measured.experts:
        shares = sum(losses.lost[part][measured.probe_format] for part in losses.lost)
        lost[losses.layer] = lost.get(losses.layer, 0.0) + losses.power * shares
    factors = {
        layer_id: measured.expert_divergence[layer_id] / power if power > 0 else 0.0
        for layer_id, power in lost.items()
    }
    median = sorted(factors.values())[len(factors) // 2] if factors else 0.0
    return {layer_id: max(factor, _LEAST_FACTOR * median) for layer_id, factor in factors.items()}
