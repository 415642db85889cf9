"""Random packed matrices and pages, to compute with where only time counts.

Their weights have a mean of zero and a standard deviation of 0.02. A mean beside zero drowns each token in
a constant: every token then picks the same experts, and any cache looks perfect.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ernie_local.packing import TILE_ROWS, LowBitFormat, PageLayout
from ernie_local.packing.page_checksum import seal

WEIGHT_DEVIATION = 0.02
TILES_A_PIECE = 256


class RandomWeights:
    """Seeded."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.Generator(np.random.SFC64(seed))

    def bytes(self, *shape: int) -> torch.Tensor:
        """Uniform uint8 of this shape."""
        count = int(np.prod(shape))
        words = self._generator.integers(0, 1 << 64, count // 8 + 1, dtype=np.uint64)
        return torch.from_numpy(words.view(np.uint8)[:count]).view(shape)

    def normal(self, *shape: int) -> torch.Tensor:
        """Normal float32 of this shape and of WEIGHT_DEVIATION."""
        return torch.from_numpy(self._generator.standard_normal(shape, dtype=np.float32)) * WEIGHT_DEVIATION

    def tiles(
        self, low_bit: LowBitFormat, num_tiles: int, columns: int, deviation: float = WEIGHT_DEVIATION
    ) -> torch.Tensor:
        """(num_tiles, tile_bytes) uint8 of a matrix in `low_bit`."""
        tiles = self.bytes(num_tiles, low_bit.tile_bytes(columns))
        start = low_bit.row_scale_bytes()
        groups = low_bit.num_groups(columns)
        code_deviation = ((low_bit.highest_code + 1) ** 2 / 12) ** 0.5
        typical_scale = 1.0 if low_bit.is_symmetric else 0.75 * low_bit.highest_scale
        half = torch.tensor([deviation / code_deviation / typical_scale]).half().view(torch.uint8)
        num_halves = TILE_ROWS * (groups if low_bit.is_symmetric else 1)
        tiles[:, : 2 * num_halves] = half.repeat(num_halves)
        if low_bit.is_symmetric:
            codes = tiles[:, low_bit.metadata_bytes(columns) :]
            codes[codes == 0] = 128  # -128 has no partner
            return tiles
        middle = low_bit.highest_zero // 2  # and one more, in turn: together the middle of the codes
        random = tiles[:, start : start + groups * TILE_ROWS * (low_bit.scale_bits + low_bit.zero_bits) // 8]
        if low_bit.bits == 4:
            pairs = random.view(num_tiles, groups, 2, TILE_ROWS)
            pairs[:, :, 0] = pairs[:, :, 0] % 128 + 128
            pairs[:, :, 1] = pairs[:, :, 1] % 2 + middle
        elif low_bit.bits == 2:
            random.copy_((random % 8 + 8) | ((random // 16 % 2 + middle) << 4))
        else:
            raise ValueError(low_bit.name)  # nothing asks for w3 yet
        return tiles

    def matrix(
        self, low_bit: LowBitFormat, rows: int, columns: int, deviation: float = WEIGHT_DEVIATION
    ) -> Iterator[torch.Tensor]:
        """The bytes of a packed matrix, in pieces."""
        num_tiles = low_bit.num_tiles(rows)
        for start in range(0, num_tiles, TILES_A_PIECE):
            yield self.tiles(low_bit, min(TILES_A_PIECE, num_tiles - start), columns, deviation).flatten()

    def page(self, layout: PageLayout) -> torch.Tensor:
        """(page_bytes,) uint8, with its checksum."""
        page = torch.zeros(layout.page_bytes, dtype=torch.uint8)
        page[:64] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
        num_tiles = 2 * layout.gate_up.num_tiles(layout.inner_size)
        gate_up = self.tiles(layout.gate_up, num_tiles, layout.hidden_size)
        page[layout.gate_up_offset : layout.down_offset] = gate_up.flatten()
        down = self.tiles(layout.down, layout.down.num_tiles(layout.hidden_size), layout.inner_size)
        page[layout.down_offset : layout.down_offset + layout.down_bytes] = down.flatten()
        seal(page)
        return page
