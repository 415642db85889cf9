"""Says where the parts of an expert's page lie, in our formats and in those of other libraries. No tensors.

Other libraries' formats are bitsandbytes' `nf4` and optimum-quanto's `qint4` and `qint2`, each with the most
weights that share a scale in its name: `nf4g64`, `qint2g128`.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ernie_local.errors import ModelUnusable
from ernie_local.packing.formats import TILE_ROWS, LowBitFormat, format_of_id

PAGE_ALIGNMENT = 4096
PAGE_VERSION = 2
PAGE_MAGIC = b"ERNX"
HEADER_BYTES = 64
# Magic, version, gate_up format, down format, hidden_size, inner_size; the checksum follows.
HEADER = struct.Struct("<4sHBBII")


@dataclass(frozen=True, slots=True)
class PageLayout:
    """Where the parts of a page lie. All pages of one (layer, bank, formats) have the same layout."""

    gate_up: LowBitFormat
    down: LowBitFormat
    hidden_size: int
    inner_size: int

    @property
    def gate_up_offset(self) -> int:
        """Byte of the first gate tile; gate tile i is followed by up tile i."""
        return HEADER_BYTES

    @property
    def gate_up_bytes(self) -> int:
        """Bytes of all gate and up tiles."""
        return 2 * self.gate_up.matrix_bytes(self.inner_size, self.hidden_size)

    @property
    def down_offset(self) -> int:
        """Byte of the first down tile."""
        return self.gate_up_offset + self.gate_up_bytes

    @property
    def down_bytes(self) -> int:
        """Bytes of all down tiles."""
        return self.down.matrix_bytes(self.hidden_size, self.inner_size)

    @property
    def page_bytes(self) -> int:
        """Bytes of the page, a multiple of PAGE_ALIGNMENT."""
        exact = self.down_offset + self.down_bytes
        return -(-exact // PAGE_ALIGNMENT) * PAGE_ALIGNMENT

    @property
    def header(self) -> bytes:
        """The first 64 bytes of every page of this layout, without the checksum."""
        fields = (self.gate_up.format_id, self.down.format_id, self.hidden_size, self.inner_size)
        return HEADER.pack(PAGE_MAGIC, PAGE_VERSION, *fields).ljust(HEADER_BYTES, b"\0")


def read_header(header: bytes, where: str = "the page") -> PageLayout:
    """The layout that the first 64 bytes of a page name; ModelUnusable if they name none."""
    magic, version, gate_up, down, hidden_size, inner_size = HEADER.unpack(header[: HEADER.size])
    if magic != PAGE_MAGIC or version != PAGE_VERSION:
        raise damaged_page(
            f"{where} begins with {magic!r} version {version}, wanted {PAGE_MAGIC!r} version {PAGE_VERSION}"
        )
    columns = (hidden_size, inner_size)
    if min(columns) < TILE_ROWS or any(size % TILE_ROWS for size in columns):
        raise damaged_page(f"{where} names hidden size {hidden_size} and inner size {inner_size}")
    return PageLayout(format_of_id(gate_up, where), format_of_id(down, where), hidden_size, inner_size)


def damaged_page(what: str) -> ModelUnusable:
    """The error for a page that is not what its header says, or whose header says nothing."""
    return ModelUnusable(what, "the page is damaged or of another version", "verify the checkpoint")


FOREIGN_MAGIC = b"ERNF"
FOREIGN_VERSION = 2
# Magic, version, kind, hidden_size, inner_size, then the checksum, group_size.
FOREIGN_HEADER = struct.Struct("<4sHBxII8xI")
KINDS = {1: "nf4", 2: "qint4", 3: "qint2"}  # by the number in page headers, which is never given again
_NAME = re.compile(rf"({'|'.join(KINDS.values())})g([1-9][0-9]{{0,4}})", re.ASCII)
# bitsandbytes takes larger blocks too, and dequantizes them wrongly on processors with AVX-512.
NF4_BLOCK_SIZES = (32, 64, 128, 256, 512)
LARGEST_GROUP = 65536
ABSMAX_BLOCK = 256  # nf4 scales that share a scale of their own
_MATRIX_ALIGNMENT = 4  # bytes; each matrix begins with numbers of 2 or 4 bytes


@dataclass(frozen=True, slots=True)
class ForeignFormat:
    """`kind` is one of KINDS; `group_size` the most weights that share a scale.

    nf4 cuts the whole matrix, row behind row, into blocks of exactly that size; the others each row into
    equal groups.
    """

    kind: str
    group_size: int

    @property
    def name(self) -> str:
        """As in the tables of a checkpoint."""
        return f"{self.kind}g{self.group_size}"

    @property
    def bits(self) -> int:
        """Of a code."""
        return 2 if self.kind == "qint2" else 4

    @property
    def nominal_bits(self) -> float:
        """Bits of a weight with its share of scales, in a large matrix that the groups divide."""
        scales = 8 + 32 / ABSMAX_BLOCK if self.kind == "nf4" else 32
        return self.bits + scales / self.group_size

    def group_columns(self, columns: int) -> int:
        """Columns of a group of qint4 or qint2: groups of a row have one size, as optimum-quanto demands."""
        return max(size for size in range(1, min(columns, self.group_size) + 1) if columns % size == 0)

    def num_groups(self, rows: int, columns: int) -> int:
        """Groups, or blocks, of a matrix."""
        if self.kind == "nf4":
            return -(-rows * columns // self.group_size)
        return rows * (columns // self.group_columns(columns))

    def part_bytes(self, rows: int, columns: int) -> tuple[int, int, int]:
        """Bytes of the floats that a matrix begins with, of the scale codes behind them, and of the codes.

        nf4: the offset of the scales and a scale for every ABSMAX_BLOCK of them, float32; each scale's code,
        one byte. The others: scales and shifts of the groups, float16; no scale codes.
        """
        num_groups = self.num_groups(rows, columns)
        if self.kind == "nf4":
            return 4 * (1 + -(-num_groups // ABSMAX_BLOCK)), num_groups, -(-rows * columns // 2)
        # A byte holds codes of groups that lie a half or a quarter of the matrix apart.
        return 4 * num_groups, 0, -(-num_groups * self.bits // 8) * self.group_columns(columns)

    def matrix_bytes(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix."""
        return -(-sum(self.part_bytes(rows, columns)) // _MATRIX_ALIGNMENT) * _MATRIX_ALIGNMENT


@dataclass(frozen=True, slots=True)
class ForeignLayout:
    """Where gate, up and down of an expert lie in a page: one behind the other."""

    foreign: ForeignFormat
    hidden_size: int
    inner_size: int

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Rows and columns of gate, up and down."""
        inner = (self.inner_size, self.hidden_size)
        return inner, inner, (self.hidden_size, self.inner_size)

    @property
    def offsets(self) -> tuple[int, int, int, int]:
        """First bytes of gate, up and down, and the byte behind them."""
        gate_up = self.foreign.matrix_bytes(self.inner_size, self.hidden_size)
        down = HEADER_BYTES + 2 * gate_up
        end = down + self.foreign.matrix_bytes(self.hidden_size, self.inner_size)
        return HEADER_BYTES, HEADER_BYTES + gate_up, down, end

    @property
    def page_bytes(self) -> int:
        """Bytes of the page, a multiple of PAGE_ALIGNMENT."""
        return -(-self.offsets[-1] // PAGE_ALIGNMENT) * PAGE_ALIGNMENT

    @property
    def header(self) -> bytes:
        """The first 64 bytes of every page of this layout, without the checksum."""
        kind_id = next(number for number, kind in KINDS.items() if kind == self.foreign.kind)
        fields = (kind_id, self.hidden_size, self.inner_size, self.foreign.group_size)
        return FOREIGN_HEADER.pack(FOREIGN_MAGIC, FOREIGN_VERSION, *fields).ljust(HEADER_BYTES, b"\0")


def find_foreign(name: str) -> ForeignFormat | None:
    """The format called `name`, None if there is none."""
    match = _NAME.fullmatch(name)
    return None if match is None else make_foreign(match[1], int(match[2]))


def make_foreign(kind: str, group_size: int) -> ForeignFormat | None:
    """The format of this kind and group size, None if there is none."""
    if kind == "nf4":
        is_known = group_size in NF4_BLOCK_SIZES
    else:
        is_known = kind in KINDS.values() and 0 < group_size <= LARGEST_GROUP
    return ForeignFormat(kind, group_size) if is_known else None


def read_foreign_layout(header: bytes, where: str) -> ForeignLayout:
    """The layout that the first bytes of a page name. Raises ModelUnusable if they name none."""
    magic, version, kind_id, hidden_size, inner_size, group_size = FOREIGN_HEADER.unpack(
        header[: FOREIGN_HEADER.size]
    )
    foreign = make_foreign(KINDS.get(kind_id, ""), group_size)
    if (
        magic != FOREIGN_MAGIC
        or version != FOREIGN_VERSION
        or foreign is None
        or not hidden_size * inner_size
    ):
        raise ModelUnusable(
            f"{where} begins with {magic!r} version {version}, kind {kind_id}, groups of {group_size}, "
            f"hidden size {hidden_size} and inner size {inner_size}",
            f"wanted {FOREIGN_MAGIC!r} version {FOREIGN_VERSION} and a known kind: the page is damaged or of "
            "another version",
            "verify the checkpoint",
        )
    return ForeignLayout(foreign, hidden_size, inner_size)
