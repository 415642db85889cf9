"""Packs one expert as one page: header, gate and up tiles in turn, down tiles; and checks pages.

Every bit pattern of codes, whole scales and zeros means something, so that only a page's checksum shows that
they changed; a packed matrix has none, and only hashes.json shows it there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing.checksum import check_checksum, seal
from ernie_local.packing.foreign import check_foreign_page
from ernie_local.packing.formats import TILE_ROWS, LowBitFormat, format_of_id
from ernie_local.packing.layout import (
    HEADER,
    HEADER_BYTES,
    PAGE_MAGIC,
    PAGE_VERSION,
    ForeignLayout,
    PageLayout,
)
from ernie_local.packing.matrix import QuantizedMatrix, pack_matrix, unpack_matrix

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class ExpertPage:
    """The three matrices of one expert: gate and up (inner, hidden), down (hidden, inner)."""

    gate: QuantizedMatrix
    up: QuantizedMatrix
    down: QuantizedMatrix

    @property
    def layout(self) -> PageLayout:
        """Where they lie in a page. Raises UsageError if they do not belong together."""
        inner_size, hidden_size = self.gate.shape
        shapes = (self.gate.shape, self.up.shape, self.down.shape)
        if shapes != ((inner_size, hidden_size), (inner_size, hidden_size), (hidden_size, inner_size)):
            raise UsageError(
                f"gate {shapes[0]}, up {shapes[1]} and down {shapes[2]} are not one expert",
                "up has the shape of gate, down the transposed one",
                "pack the matrices of one expert together",
            )
        if self.gate.low_bit != self.up.low_bit:
            raise UsageError(
                f"gate is {self.gate.low_bit.name}, up is {self.up.low_bit.name}",
                "the tiles of gate and up lie in turn and have one size",
                "quantize gate and up to one format",
            )
        return PageLayout(self.gate.low_bit, self.down.low_bit, hidden_size, inner_size)


def pack_page(page: ExpertPage) -> Tensor:
    """(page_bytes,) uint8, with its checksum."""
    layout = page.layout
    packed = torch.zeros(layout.page_bytes, dtype=torch.uint8)
    packed[:HEADER_BYTES] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    num_tiles = layout.gate_up.num_tiles(layout.inner_size)
    halves = [pack_matrix(matrix).view(num_tiles, -1) for matrix in (page.gate, page.up)]
    in_turn = torch.stack(halves, dim=1)  # (tiles, gate and up, tile bytes)
    packed[layout.gate_up_offset : layout.down_offset] = in_turn.flatten()
    packed[layout.down_offset : layout.down_offset + layout.down_bytes] = pack_matrix(page.down)
    seal(packed)
    return packed


def read_layout(packed: Tensor, where: str = "the page", allow_padding: bool = False) -> PageLayout:
    """The layout that a page's header names. Raises ModelUnusable unless the page is of that layout.

    allow_padding: the page may lie in a larger slot.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() < HEADER_BYTES:
        raise _damaged(f"{where} is {packed.dtype} of shape {tuple(packed.shape)}, wanted bytes")
    layout = read_header(packed[:HEADER_BYTES].cpu().numpy().tobytes(), where)
    spare = packed.numel() - layout.page_bytes
    if spare < 0 or (spare and not allow_padding):
        raise _damaged(f"{where} has {packed.numel()} bytes, its header means {layout.page_bytes}")
    return layout


def read_header(header: bytes, where: str = "the page") -> PageLayout:
    """The layout that the first 64 bytes of a page name; ModelUnusable if they name none."""
    magic, version, gate_up, down, hidden_size, inner_size = HEADER.unpack(header[: HEADER.size])
    if magic != PAGE_MAGIC or version != PAGE_VERSION:
        raise _damaged(
            f"{where} begins with {magic!r} version {version}, wanted {PAGE_MAGIC!r} version {PAGE_VERSION}"
        )
    columns = (hidden_size, inner_size)
    if min(columns) < TILE_ROWS or any(size % TILE_ROWS for size in columns):
        raise _damaged(f"{where} names hidden size {hidden_size} and inner size {inner_size}")
    return PageLayout(format_of_id(gate_up, where), format_of_id(down, where), hidden_size, inner_size)


def unpack_page(packed: Tensor, where: str = "the page") -> ExpertPage:
    """The inverse of `pack_page`. Raises ModelUnusable for a page that is damaged or cut."""
    layout = read_layout(packed, where)
    num_tiles = layout.gate_up.num_tiles(layout.inner_size)
    in_turn = packed[layout.gate_up_offset : layout.down_offset].view(num_tiles, 2, -1)
    gate, up = (
        unpack_matrix(in_turn[:, half].flatten(), layout.gate_up, layout.inner_size, layout.hidden_size)
        for half in (0, 1)
    )
    down_bytes = packed[layout.down_offset : layout.down_offset + layout.down_bytes]
    down = unpack_matrix(down_bytes, layout.down, layout.hidden_size, layout.inner_size)
    return ExpertPage(gate, up, down)


def _damaged(what: str) -> ModelUnusable:
    return ModelUnusable(what, "the page is damaged or of another version", "verify the checkpoint")


def check_page(page: Tensor, wanted: PageLayout | ForeignLayout, where: str) -> None:
    """Raise ModelUnusable unless `page`, (page_bytes,) uint8, is whole, of this layout, its scales finite."""
    if isinstance(wanted, ForeignLayout):
        check_foreign_page(page, wanted, where)
        return
    found = read_layout(page, where)
    check_checksum(page, where)
    if found != wanted:
        raise ModelUnusable(
            f"{where} holds {found}, wanted {wanted}",
            "page and config.json do not belong together",
            "verify the checkpoint",
        )
    for start, num_bytes, low_bit, columns in wanted.tile_ranges:
        check_scales(page[start : start + num_bytes], low_bit, columns, where)


def check_scales(tiles: Tensor, low_bit: LowBitFormat, columns: int, where: str) -> None:
    """Raise ModelUnusable if an fp16 scale of these whole tiles, (bytes,) uint8, is no finite number."""
    groups = low_bit.num_groups(columns) if low_bit.is_symmetric else 1
    rows = tiles.view(-1, low_bit.tile_bytes(columns))  # (tiles, tile_bytes)
    halves = rows[:, : 2 * TILE_ROWS * groups].contiguous().view(torch.float16)
    finite = halves.isfinite()
    if not bool(finite.all()):
        raise ModelUnusable(
            f"{where}: {int((~finite).sum())} of {halves.numel()} scales are not finite numbers",
            "each makes every output of its row NaN",
            "verify the checkpoint",
        )
