"""Where the parts of an expert's page lie, and the header that says so. Pure numbers, no tensors."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ernie_local.packing.formats import LowBitFormat

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
    def tile_ranges(self) -> tuple[tuple[int, int, LowBitFormat, int], ...]:
        """Where tiles of one kind lie: first byte, bytes, format and columns of gate and up, then of down."""
        return (
            (self.gate_up_offset, self.gate_up_bytes, self.gate_up, self.hidden_size),
            (self.down_offset, self.down_bytes, self.down, self.inner_size),
        )

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
