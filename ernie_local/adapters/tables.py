"""Turns an adapter into the tables that operators add from, module by module and bank by bank.

Which parts of a model an adapter may change while the weights stay as they are is decided here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ernie_local.adapters.low_rank import Adapter, LowRank, join_adapters
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV
from ernie_local.config import BankKey, ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.kernels.arguments import LowRankExperts, LowRankParts
from ernie_local.kernels.low_rank import in_tiles
from ernie_local.packing import TILE_ROWS
from ernie_local.sizes import aligned

_EXPERT = re.compile(rf"experts\.(\d+)\.([a-z]+)\.(\d+)\.({'|'.join(PROJECTIONS)})")
_GATED = re.compile(rf"(layers\.\d+\.(?:mlp|moe\.shared_experts))\.({'|'.join(PROJECTIONS)})\.weight")
_HEADS = re.compile(r"(layers\.\d+\.self_attn)\.([qkv])_proj\.weight")
_ROUTER = re.compile(r"layers\.\d+\.moe\.[a-z]+_router\.weight")
_LINEAR = re.compile(
    r"(?:layers\.\d+\.self_attn\.o_proj|lm_head|vision\.patch_embed|vision\.blocks\.\d+\.(?:attn|mlp)\.\w+"
    r"|resampler\.(?:\w+\.fc\d|mlp))\.weight"
)

# Of one expert, by the names of its matrices.
_Matrices = Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class StackedExperts:
    """What an adapter adds to experts of one bank, or to a packed gated MLP, which is like one expert."""

    num_experts: int
    hidden_size: int
    inner_size: int
    by_expert: Mapping[int, _Matrices]

    def rank(self, *names: str) -> int:
        """The largest of these matrices, of all experts."""
        return max(
            (own[name].rank for own in self.by_expert.values() for name in names if name in own), default=0
        )

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of the tables, as LowRankExperts has them."""
        outer, inner = self.rank("gate_proj", "up_proj"), self.rank("down_proj")
        return (
            (self.num_experts, 2 * outer, self.hidden_size),
            (self.num_experts, _num_tiles(self.inner_size), 2 * outer, TILE_ROWS),
            (self.num_experts, inner, self.inner_size),
            (self.num_experts, _num_tiles(self.hidden_size), inner, TILE_ROWS),
        )

    def tables(self, dtype: torch.dtype, device: torch.device) -> LowRankExperts:
        """Filled; zeros for experts and ranks that the adapter does not have."""
        tables = LowRankExperts(*(torch.zeros(shape, dtype=dtype, device=device) for shape in self.shapes))
        for expert_id, matrices in self.by_expert.items():
            places: dict[str, tuple[Tensor, Tensor]] = dict(
                zip(PROJECTIONS, (*tables.gate_and_up(expert_id), tables.down(expert_id)), strict=True)
            )
            for name, low_rank in matrices.items():
                inward, outward = places[name]
                inward[: low_rank.rank] = low_rank.rank_by_columns.to(dtype)
                outward[:, : low_rank.rank] = in_tiles(low_rank.rows_by_rank.to(dtype))
        return tables


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """What an adapter adds to some rows of a module's product."""

    first_row: int
    low_rank: LowRank

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.low_rank.rows_by_rank)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Inward and outward, as LowRankParts has them."""
        rank = self.low_rank.rank
        return tuple(self.low_rank.rank_by_columns.shape), (_num_tiles(self.num_rows), rank, TILE_ROWS)


@dataclass(frozen=True, slots=True)
class AdapterTables:
    """Where in a network an adapter acts: experts by bank, packed gated MLPs and linear layers by name.

    routers: by name; they are never packed, so that what is added to one goes into its weights.
    """

    experts: Mapping[BankKey, StackedExperts]
    gated_mlps: Mapping[str, StackedExperts]
    linears: Mapping[str, tuple[AdaptedRows, ...]]
    routers: Mapping[str, LowRank]

    @classmethod
    def of(cls, adapter: Adapter, config: ModelConfig) -> AdapterTables:
        """DoesNotFit for weights that nothing is added to at run time: the embedding, say."""
        sorter = _Sorter(config)
        for name, low_rank in adapter.weights.items():
            sorter.take(name, low_rank)
        return sorter.result()

    @property
    def num_numbers(self) -> int:
        """In memory, of all tables."""
        stacked = [*self.experts.values(), *self.gated_mlps.values()]
        shapes = [shape for one in stacked for shape in one.shapes]
        shapes += [shape for parts in self.linears.values() for part in parts for shape in part.shapes]
        return sum(map(math.prod, shapes))


def adapter_counter(given: Iterable[str], config: ModelConfig) -> Callable[[ModelConfig], int]:
    """Counts the numbers in memory of the sum of these adapters, as of AdapterSource.parse.

    config: of the model; what is returned takes others, with weights in other formats. ModelUnusable as from
    `read_adapter`.
    """
    adapter = join_adapters([AdapterSource.parse(one).read(config) for one in given])
    return lambda other: AdapterTables.of(adapter, other).num_numbers


def linear_tables(rows: Iterable[AdaptedRows], dtype: torch.dtype, device: torch.device) -> LowRankParts:
    """The tables of one linear layer."""
    rows = list(rows)
    return LowRankParts(
        [_placed(one.low_rank.rank_by_columns, dtype, device) for one in rows],
        [in_tiles(_placed(one.low_rank.rows_by_rank, dtype, device)) for one in rows],
        [one.first_row for one in rows],
        [one.num_rows for one in rows],
    )


class _Sorter:
    """Sorts an adapter's parts by where they act."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        tables = config.quantization
        self._packed_mlps = {} if tables is None else tables.gated_mlps
        self._packed_matrices = {} if tables is None else tables.matrices
        self._experts: dict[BankKey, dict[int, dict[str, LowRank]]] = {}
        self._gated: dict[str, dict[str, LowRank]] = {}
        self._linears: dict[str, list[AdaptedRows]] = {}
        self._routers: dict[str, LowRank] = {}

    def take(self, name: str, low_rank: LowRank) -> None:
        """One weight, by our name of it."""
        if match := _EXPERT.fullmatch(name):
            bank = self._experts.setdefault((int(match[1]), match[2]), {})
            bank.setdefault(int(match[3]), {})[match[4]] = low_rank
        elif (match := _GATED.fullmatch(name)) and match[1] in self._packed_mlps:
            self._gated.setdefault(match[1], {})[match[2]] = low_rank
        elif (match := _HEADS.fullmatch(name)) and f"{match[1]}.{QKV}" in self._packed_matrices:
            self._add_rows(f"{match[1]}.{QKV}", self._first_row(match[2]), low_rank)
        elif _ROUTER.fullmatch(name):
            self._routers[name.removesuffix(".weight")] = low_rank
        elif _GATED.fullmatch(name) or _HEADS.fullmatch(name) or _LINEAR.fullmatch(name):
            self._add_rows(name.removesuffix(".weight"), 0, low_rank)
        else:
            raise DoesNotFit(
                f"the adapter changes {name}, and nothing is added to that while the model runs",
                "rows of an embedding are looked up, and norms are no matrices",
                "leave this weight out of the adapter",
            )

    def result(self) -> AdapterTables:
        """Of all that was taken."""
        text = self._config.text
        experts = {
            (layer_id, bank): StackedExperts(
                text.bank(bank).num_experts, text.hidden_size, text.bank(bank).expert_size, own
            )
            for (layer_id, bank), own in self._experts.items()
        }
        gated = {
            name: StackedExperts(1, text.hidden_size, self._inner_size(name), {0: own})
            for name, own in self._gated.items()
        }
        linears = {name: tuple(rows) for name, rows in self._linears.items()}
        return AdapterTables(experts, gated, linears, self._routers)

    def _add_rows(self, module: str, first_row: int, low_rank: LowRank) -> None:
        self._linears.setdefault(module, []).append(AdaptedRows(first_row, low_rank))

    def _first_row(self, which: str) -> int:
        """Of queries, keys or values in one matrix of the three."""
        text = self._config.text
        heads = {
            "q": 0,
            "k": text.num_attention_heads,
            "v": text.num_attention_heads + text.num_key_value_heads,
        }
        return heads[which] * text.head_dim

    def _inner_size(self, name: str) -> int:
        text = self._config.text
        return text.shared_expert_size if name.endswith("shared_experts") else text.intermediate_size


def _num_tiles(rows: int) -> int:
    return aligned(rows, TILE_ROWS) // TILE_ROWS


def _placed(matrix: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    return matrix.to(device, dtype).contiguous()
