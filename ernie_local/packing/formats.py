"""The table of low-bit formats and the sizes that follow from it. Pure numbers, no tensors.

A weight is `row_scale * scale * (code - zero / zero_divisor)`: one fp16 row scale for each row, one small
whole scale and zero for each group of neighbouring columns. `w8` is symmetric: `scale * (code - 128)` with an
fp16 scale for each group and no row scale.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.errors import ModelUnusable, UsageError

TILE_ROWS = 16  # rows that lie interleaved: one 32-bit lane each of a 512-bit register
COLUMN_STEP = 16  # columns of every matrix are a multiple of it: one 2-bit register holds 16
ALIGNMENT = 64  # bytes; codes of a tile start on a cache line


@dataclass(frozen=True, slots=True)
class LowBitFormat:
    """`bits` a code, `group_size` columns that share a scale and a zero of so many bits."""

    name: str
    format_id: int  # as written into page headers; never given to another format
    bits: int
    group_size: int
    scale_bits: int
    zero_bits: int

    @property
    def highest_code(self) -> int:
        """Codes are 0 to this."""
        return (1 << self.bits) - 1

    @property
    def highest_scale(self) -> int:
        """Whole scales are 0 to this; 0 where scales are fp16."""
        return 0 if self.is_symmetric else (1 << self.scale_bits) - 1

    @property
    def highest_zero(self) -> int:
        """Zeros are 0 to this."""
        return (1 << self.zero_bits) - 1 if self.zero_bits else 0

    @property
    def zero_divisor(self) -> int:
        """A zero of so much is one code: the zeros' range lies evenly over the codes'."""
        return self.highest_zero // self.highest_code if self.zero_bits else 1

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero is the middle code and scales are fp16."""
        return self.zero_bits == 0

    def num_groups(self, columns: int) -> int:
        """Groups of a row; the last one may be smaller."""
        return -(-columns // self.group_size)

    def row_scale_bytes(self) -> int:
        """Bytes of the row scales of one tile."""
        return 0 if self.is_symmetric else 2 * TILE_ROWS

    def metadata_bytes(self, columns: int) -> int:
        """Bytes of row scales, scales and zeros of one tile, up to its first code."""
        per_group = TILE_ROWS * (self.scale_bits + self.zero_bits) // 8
        exact = self.row_scale_bytes() + self.num_groups(columns) * per_group
        return -(-exact // ALIGNMENT) * ALIGNMENT

    def code_bytes(self, columns: int) -> int:
        """Bytes of the codes of one tile."""
        return TILE_ROWS * columns * self.bits // 8

    def tile_bytes(self, columns: int) -> int:
        """Bytes of one tile of TILE_ROWS rows; a multiple of ALIGNMENT."""
        exact = self.metadata_bytes(columns) + self.code_bytes(columns)
        return -(-exact // ALIGNMENT) * ALIGNMENT

    def num_tiles(self, rows: int) -> int:
        """Tiles of a matrix; the last one may hold rows of zeros."""
        return -(-rows // TILE_ROWS)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix. Raises UsageError for a shape that no format holds."""
        check_shape(rows, columns)
        return self.num_tiles(rows) * self.tile_bytes(columns)

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """All bits of the packed matrix over its weights."""
        return 8 * self.matrix_bytes(rows, columns) / (rows * columns)


def check_shape(rows: int, columns: int) -> None:
    """Raise UsageError unless `rows` x `columns` can be packed."""
    if rows < 1 or columns < COLUMN_STEP or columns % COLUMN_STEP:
        raise UsageError(
            f"a matrix of {rows} x {columns} cannot be packed: columns must be a multiple of {COLUMN_STEP}",
            f"a register holds the codes of {COLUMN_STEP} columns",
            "keep this matrix unquantized",
        )


FORMATS: dict[str, LowBitFormat] = {
    low_bit.name: low_bit
    for low_bit in (
        LowBitFormat("w4", 1, bits=4, group_size=64, scale_bits=8, zero_bits=8),
        LowBitFormat("w3", 2, bits=3, group_size=64, scale_bits=6, zero_bits=6),
        LowBitFormat("w2l", 3, bits=2, group_size=16, scale_bits=4, zero_bits=4),
        LowBitFormat("w2", 4, bits=2, group_size=32, scale_bits=4, zero_bits=4),
        LowBitFormat("w2s", 5, bits=2, group_size=64, scale_bits=4, zero_bits=4),
        LowBitFormat("w8", 6, bits=8, group_size=128, scale_bits=16, zero_bits=0),
    )
}
_BY_ID = {low_bit.format_id: low_bit for low_bit in FORMATS.values()}


def find_format(name: str) -> LowBitFormat:
    """The format called `name`; UsageError if there is none."""
    if name not in FORMATS:
        raise UsageError(
            f"{name!r} is not one of the formats {', '.join(FORMATS)}",
            "only these have kernels and a page layout",
            "use w4, or w2 for half the bytes",
        )
    return FORMATS[name]


def format_of_id(format_id: int, where: str) -> LowBitFormat:
    """The format that a page header names; ModelUnusable if there is none."""
    if format_id not in _BY_ID:
        raise ModelUnusable(
            f"{where} names format {format_id}, known are 1 to {max(_BY_ID)}",
            "the page is damaged or was written by a newer version",
            "verify the checkpoint, or update ernie-local",
        )
    return _BY_ID[format_id]
