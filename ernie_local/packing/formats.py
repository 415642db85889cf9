"""Lists the low-bit formats, where each is offered, and the sizes that follow. Pure numbers, no tensors.

A new format of a known geometry is a row of FORMATS here, one of `Formats` in csrc/formats.hpp, a golden
page, and a row in docs/format.md: every list of formats, in options, measurements and kernels, is derived
from these rows.

A weight is `row_scale * scale * (code - zero / zero_divisor)`: one fp16 row scale for each row, one small
whole scale and zero for each group of neighbouring columns. `w8` is `scale * (code - 128)` with an fp16 scale
for each group and no row scale. `w2t` has steps through a trellis instead of codes, and its scales are places
in a table: `row_scale * TRELLIS_SCALES[scale] * (level - TRELLIS_ZERO)`; packing/trellis.py finds the levels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ernie_local.errors import ModelUnusable, UsageError

TILE_ROWS = 16  # rows that lie interleaved: one 32-bit lane each of a 512-bit register
COLUMN_STEP = 16  # columns of every matrix are a multiple of it: one 2-bit register holds 16
ALIGNMENT = 64  # bytes; codes of a tile start on a cache line
# Trained weights are thousands of times smaller. A token is multiplied with gate, up and down and a norm
# squares the product: the sixth power must be below 2^128, where float32 ends, with room for sums.
LARGEST_WEIGHT = float(1 << 20)

# A row of w2t holds so many paths through its trellis: columns of one residue. So the history of a step lies
# in the same bits of the blocks before, and before the first block in the last ones: a path is a ring.
TRELLIS_STRIDE = 16
# How many steps ago the three first bits were stored that pick a subset of two levels together with the
# step's own. Ungerboeck's code of 16 states; a state is as many bits as the longest delay.
TRELLIS_DELAYS = (2, 3, 4)
# By three bits, lowest first: the parity of the step's first bit and those of the last two delays, the step's
# second bit, the first bit of the first delay.
TRELLIS_LEVELS = (0, 6, 10, 14, 4, 8, 12, 18)
TRELLIS_ZERO = 9
# By the four stored bits of a group's scale: almost geometric.
TRELLIS_SCALES = (16, 17, 19, 21, 23, 25, 27, 29, 32, 35, 38, 41, 45, 49, 54, 59)

# Where a format is offered: by its bits alone in `quantize --bits` and `vram --bits`; by its name there,
# beside another of as many bits; in `--dense`; among the choices of mixed bits; and among those that `bench`
# measures, for experts and for dense matrices.
Purpose = Literal["experts", "named experts", "dense", "mixed", "bench experts", "bench dense"]


@dataclass(frozen=True, slots=True)
class LowBitFormat:
    """A format: bits of a code, and of the scale and zero that `group_size` columns share.

    is_trellis: codes are steps through a trellis, scales are places in TRELLIS_SCALES; there are no zeros.
    """

    name: str
    format_id: int  # as written into page headers; never given to another format
    bits: int
    group_size: int
    scale_bits: int
    zero_bits: int
    purposes: tuple[Purpose, ...] = field(default=(), repr=False, compare=False)
    is_trellis: bool = False

    @property
    def nominal_bits(self) -> float:
        """Bits of a weight with its share of a group's scale and zero."""
        return self.bits + (self.scale_bits + self.zero_bits) / self.group_size

    @property
    def highest_code(self) -> int:
        """Codes are 0 to this."""
        return (1 << self.bits) - 1

    @property
    def highest_scale(self) -> int:
        """Stored scales are 0 to this; 0 where they are fp16."""
        return 0 if self.has_fp16_scales else (1 << self.scale_bits) - 1

    @property
    def highest_zero(self) -> int:
        """Zeros are 0 to this."""
        return (1 << self.zero_bits) - 1 if self.zero_bits else 0

    @property
    def zero_divisor(self) -> int:
        """A zero of so much is one code: the zeros' range lies evenly over the codes'."""
        return self.highest_zero // self.highest_code if self.zero_bits else 1

    @property
    def has_fp16_scales(self) -> bool:
        """Whether groups have fp16 scales, and rows none: the others' whole scales count in row scales."""
        return self.scale_bits == 16

    @property
    def has_zeros(self) -> bool:
        """Whether a group has a zero of its own; without, it is the middle of all codes or levels."""
        return self.zero_bits > 0

    @property
    def widest_range(self) -> int:
        """What the largest and the least weight of a group differ by at most, in units of its fp16 scale."""
        if self.is_trellis:
            return max(TRELLIS_SCALES) * (max(TRELLIS_LEVELS) - min(TRELLIS_LEVELS))
        return max(self.highest_scale, 1) * self.highest_code

    def num_groups(self, columns: int) -> int:
        """Groups of a row; the last one may be smaller."""
        return -(-columns // self.group_size)

    def row_scale_bytes(self) -> int:
        """Bytes of the row scales of one tile."""
        return 0 if self.has_fp16_scales else 2 * TILE_ROWS

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
        # name, id, bits, group_size, scale_bits, zero_bits, purposes
        LowBitFormat("w4", 1, 4, 64, 8, 8, ("experts", "dense", "mixed", "bench experts")),
        LowBitFormat("w3", 2, 3, 64, 6, 6, ("experts", "mixed")),
        LowBitFormat("w2l", 3, 2, 16, 4, 4, ("mixed",)),
        LowBitFormat("w2", 4, 2, 32, 4, 4, ("experts", "mixed", "bench experts")),
        LowBitFormat("w2s", 5, 2, 64, 4, 4),
        LowBitFormat("w2t", 7, 2, 32, 4, 0, ("named experts", "mixed"), is_trellis=True),
        LowBitFormat("w8", 6, 8, 128, 16, 0, ("experts", "dense", "bench dense")),
    )
}
_BY_ID = {low_bit.format_id: low_bit for low_bit in FORMATS.values()}


def formats_for(purpose: Purpose) -> tuple[LowBitFormat, ...]:
    """All that are offered there, in the order of the table."""
    return tuple(low_bit for low_bit in FORMATS.values() if purpose in low_bit.purposes)


def formats_by_bits() -> dict[str, LowBitFormat]:
    """What `--bits` may be for experts: bits of a code, or a name where another format has as many."""
    by_bits = {str(one.bits): one for one in largest_first(formats_for("experts"))}
    return by_bits | {one.name: one for one in formats_for("named experts")}


def largest_first(formats: Iterable[LowBitFormat]) -> list[LowBitFormat]:
    """By bits of a weight."""
    return sorted(formats, key=lambda low_bit: low_bit.nominal_bits, reverse=True)


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
            f"{where} names format {format_id}, known are {min(_BY_ID)} to {max(_BY_ID)}",
            "the page is damaged, or a newer version wrote it",
            "verify the checkpoint, or update ernie-local",
        )
    return _BY_ID[format_id]
