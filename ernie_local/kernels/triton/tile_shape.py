"""What a kernel is compiled for: the numbers of one packed matrix, and those of one kind of page.

Numbers alone, taken from ernie_local/packing; a kernel gets them as one constant. Knows no Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.errors import UsageError
from ernie_local.packing import TILE_ROWS, LowBitFormat, PageLayout

_BLOCK_BITS = 32  # of one row in a block of codes
_W3_LOW_BITS = 2  # the third lies in a plane of its own


@dataclass(frozen=True, slots=True)
class TileShape:
    """A tile of 16 rows; docs/format.md tells what the bytes mean."""

    columns: int
    code_bits: int  # of a code within a block; w3 has one more elsewhere
    has_high_plane: bool
    group_size: int
    scale_bits: int
    zero_divisor: int
    is_symmetric: bool
    tile_bytes: int
    metadata_bytes: int

    @staticmethod
    def of(low_bit: LowBitFormat, columns: int) -> TileShape:
        """Tiles of a matrix in this format with so many columns."""
        return TileShape(
            columns=columns,
            code_bits=_W3_LOW_BITS if low_bit.bits == 3 else low_bit.bits,
            has_high_plane=low_bit.bits == 3,
            group_size=low_bit.group_size,
            scale_bits=low_bit.scale_bits,
            zero_divisor=low_bit.zero_divisor,
            is_symmetric=low_bit.is_symmetric,
            tile_bytes=low_bit.tile_bytes(columns),
            metadata_bytes=low_bit.metadata_bytes(columns),
        )

    @property
    def block_columns(self) -> int:
        """Columns of a block of codes, of which each row has 32 bits."""
        return _BLOCK_BITS // self.code_bits

    @property
    def planes(self) -> int:
        """Codes in a byte."""
        return 8 // self.code_bits

    @property
    def num_blocks(self) -> int:
        """Blocks of a tile."""
        return self.columns // self.block_columns

    @property
    def group_blocks(self) -> int:
        """Blocks that share scales and zeros."""
        return self.group_size // self.block_columns

    @property
    def high_plane_bytes(self) -> int:
        """Where w3's highest bits begin, from a tile's first byte."""
        return self.metadata_bytes + TILE_ROWS * self.columns * self.code_bits // 8


@dataclass(frozen=True, slots=True)
class PageShape:
    """Experts' pages of one layout."""

    gate_up: TileShape
    down: TileShape
    hidden_size: int
    inner_size: int
    gate_up_offset: int
    down_offset: int
    # The first 16 bytes of every such page, as two whole numbers.
    header_low: int
    header_high: int

    @staticmethod
    def of(layout: PageLayout) -> PageShape:
        """Pages of this layout."""
        return PageShape(
            gate_up=TileShape.of(layout.gate_up, layout.hidden_size),
            down=TileShape.of(layout.down, layout.inner_size),
            hidden_size=layout.hidden_size,
            inner_size=layout.inner_size,
            gate_up_offset=layout.gate_up_offset,
            down_offset=layout.down_offset,
            header_low=int.from_bytes(layout.header[:8], "little"),
            header_high=int.from_bytes(layout.header[8:16], "little"),
        )


def shapes_of_bank(layouts: Sequence[PageLayout]) -> tuple[PageShape, ...]:
    """One for each different layout. Raises UsageError unless all are of one model's bank."""
    shapes = tuple(dict.fromkeys(PageShape.of(layout) for layout in layouts))
    sizes = {(shape.hidden_size, shape.inner_size) for shape in shapes}
    if len(sizes) != 1:
        raise UsageError(
            f"pages of {len(sizes)} sizes (hidden, inner) in one call: {sorted(sizes)}",
            "the experts of a bank have one size, whatever their formats",
            "pass the layouts of one bank",
        )
    return shapes
