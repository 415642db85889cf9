"""Gives every weight of a checkpoint by our name, unpacked and with adapters merged, in blocks of rows.

Memory holds one packed matrix or page, and one block of its numbers. Knows nothing of where weights go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ernie_local.adapters.low_rank import Adapter
from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import QKV, PackedTensors, known_format
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.packing import TILE_ROWS, ExpertPage, LowBitFormat, dequantize, unpack_matrix, unpack_page
from ernie_local.packing.foreign import foreign_weight
from ernie_local.packing.layout import ForeignLayout, PageLayout
from ernie_local.packing.page import check_page, check_scales

# With an adapter's part in it, dequantized, with the very numbers of the files, or rounded from these.
WeightKind = Literal["merged", "unpacked", "exact", "rounded"]
BLOCK_ROWS = 256 * TILE_ROWS  # 42 MB of the embedding in float32


class SourceWeights:
    """The weights of `checkpoint`, whose config is `config`, with what `adapter` adds to them."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, adapter: Adapter | None = None) -> None:
        self.checkpoint, self.config = checkpoint, config
        self._tables = config.quantization or QuantizationConfig({}, {}, {})
        self._packed = PackedTensors(config)
        self._added = {} if adapter is None else adapter.weights
        # What was read last, as three weights of a page or of a matrix follow each other.
        self._page: tuple[tuple[str, int], ExpertPage | Tensor] | None = None
        self._matrix: tuple[str, Tensor] | None = None

    def is_packed(self, name: str) -> bool:
        """Whether `name` has to be dequantized."""
        return name not in self.checkpoint

    def kind(self, name: str, dtype: torch.dtype) -> WeightKind:
        """Where the numbers of `blocks` in `dtype` come from."""
        if name in self._added:
            return "merged"
        if self.is_packed(name) or self.checkpoint.is_compressed(name):
            return "unpacked"
        return "exact" if dtype in (self.checkpoint.dtype(name), torch.float32) else "rounded"

    def whole(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """All of our tensor `name`, in its shape."""
        return torch.cat(list(self.blocks(name, dtype)))

    def blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        """Our tensor `name` in consecutive blocks of its first dimension.

        Numbers are computed in float32 and rounded once. ModelUnusable as from `Checkpoint.read`, and for a
        damaged page.
        """
        added = self._added.get(name)
        start = 0
        for block in self._blocks(name, dtype if added is None else torch.float32):
            stop = start + len(block)
            if added is not None:
                block.addmm_(added.rows_by_rank[start:stop].float(), added.rank_by_columns.float())
            yield block.to(dtype)
            start = stop

    def _blocks(self, name: str, dtype: torch.dtype) -> Iterator[Tensor]:
        if self.is_packed(name):
            yield from self._unpacked(name)
            return
        shape = self.checkpoint.shape(name)
        if self.checkpoint.accounts.sources[name].transposed:  # of routers alone, which are small
            values = torch.empty(shape, dtype=dtype)
            self.checkpoint.read(name, values)
            yield values
            return
        for start in range(0, shape[0], BLOCK_ROWS):
            block = torch.empty(min(BLOCK_ROWS, shape[0] - start), *shape[1:], dtype=dtype)
            self.checkpoint.read_rows(name, start, block)
            yield block

    def _unpacked(self, name: str) -> Iterator[Tensor]:
        """float32 blocks of a weight that is stored packed."""
        match name.split("."):
            case ["experts", layer, bank, expert, projection]:
                layer_id = int(layer)
                tensor, row = self._packed.locate_experts(layer_id, bank)[int(expert)]
                layout = self._packed.page_layouts(layer_id, bank)[tensor.rpartition(".")[2]]
                yield self._of_page(tensor, row, layout, PROJECTIONS.index(projection))
                return
            case [*parent, projection, "weight"] if ".".join(parent) in self._tables.gated_mlps:
                module = ".".join(parent)
                tensor = f"{module}.{self._tables.gated_mlps[module]}"
                layout = self._packed.gated_mlp_layout(module)
                yield self._of_page(tensor, 0, layout, PROJECTIONS.index(projection))
                return
        yield from self._of_matrix(name.removesuffix(".weight"))

    def _of_page(self, tensor: str, row: int, layout: PageLayout | ForeignLayout, index: int) -> Tensor:
        """gate, up or down (0, 1, 2) of the page in `row` of a packed tensor."""
        if self._page is None or self._page[0] != (tensor, row):
            where = f"page {row} of {self.checkpoint.packed[tensor]}"
            packed = torch.empty(layout.page_bytes, dtype=torch.uint8)
            self.checkpoint.read_packed(tensor, packed, row)
            check_page(packed, layout, where)
            is_foreign = isinstance(layout, ForeignLayout)
            self._page = (tensor, row), packed if is_foreign else unpack_page(packed, where)
        page = self._page[1]
        if isinstance(page, ExpertPage):
            return dequantize((page.gate, page.up, page.down)[index])
        assert isinstance(layout, ForeignLayout)
        return foreign_weight(page, layout, index)

    def _of_matrix(self, stem: str) -> Iterator[Tensor]:
        """Blocks of a packed matrix, or of the query, key or value rows of the one that holds all three."""
        parent, _, own = stem.rpartition(".")
        first, rows = 0, 0
        matrix = stem
        if stem not in self._tables.matrices:
            matrix = f"{parent}.{QKV}"
            text = self.config.text
            sizes = [text.num_attention_heads, text.num_key_value_heads, text.num_key_value_heads]
            index = ("q_proj", "k_proj", "v_proj").index(own)
            first, rows = sum(sizes[:index]) * text.head_dim, sizes[index] * text.head_dim
        low_bit = known_format(self._tables.matrices[matrix])
        all_rows, columns = self._packed.matrix_shape(matrix)
        tensor = f"{matrix}.{low_bit.name}"
        if self._matrix is None or self._matrix[0] != tensor:
            packed = torch.empty(low_bit.matrix_bytes(all_rows, columns), dtype=torch.uint8)
            self.checkpoint.read_packed(tensor, packed)
            check_scales(packed, low_bit, columns, str(self.checkpoint.packed[tensor]))
            self._matrix = tensor, packed
        yield from _rows_of(self._matrix[1], low_bit, columns, first, first + (rows or all_rows))


def _rows_of(packed: Tensor, low_bit: LowBitFormat, columns: int, first: int, stop: int) -> Iterator[Tensor]:
    """float32 blocks of the rows `first` to `stop` of a packed matrix; whole tiles are unpacked."""
    tiles = packed.view(-1, low_bit.tile_bytes(columns))  # (tiles, tile_bytes)
    for start in range(first - first % TILE_ROWS, stop, BLOCK_ROWS):
        end = min(start + BLOCK_ROWS, stop)
        some = tiles[start // TILE_ROWS : -(-end // TILE_ROWS)].flatten()
        block = dequantize(unpack_matrix(some, low_bit, end - start, columns))
        yield block[max(first - start, 0) :]
