"""Packs one expert as one page, in our formats or another library's; seals pages, reads and checks them.

Every bit pattern of codes, whole scales and zeros means something, so that only a page's checksum shows that
they changed; a packed matrix has none, and only hashes.json shows it there.

The checksum is XXH3-64 of all bytes but its own eight, at byte 16 of the header. Each page has its own, so
that a reader of single pages need not read the file around them. It finds bytes that changed by accident. It
does not find a page in the place of another of the same layout, which hashes.json finds, nor a forger, who
could compute it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import xxhash
from torch import Tensor

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.packing.foreign import ForeignMatrix, pack_foreign, split_foreign
from ernie_local.packing.formats import LARGEST_WEIGHT, TILE_ROWS, LowBitFormat
from ernie_local.packing.layout import (
    FOREIGN_MAGIC,
    HEADER_BYTES,
    ForeignLayout,
    PageLayout,
    damaged_page,
    read_foreign_layout,
    read_header,
)
from ernie_local.packing.matrix import QuantizedMatrix, pack_matrix, unpack_matrix

Layout = TypeVar("Layout", PageLayout, ForeignLayout)
CHECKSUM_OFFSET = 16
CHECKSUM_END = CHECKSUM_OFFSET + 8


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
    num_tiles = layout.gate_up.num_tiles(layout.inner_size)
    halves = [pack_matrix(matrix).view(num_tiles, -1) for matrix in (page.gate, page.up)]
    in_turn = torch.stack(halves, dim=1).flatten()  # of (tiles, gate and up, tile bytes)
    return _sealed(layout, [(layout.gate_up_offset, in_turn), (layout.down_offset, pack_matrix(page.down))])


def pack_foreign_page(gate: ForeignMatrix, up: ForeignMatrix, down: ForeignMatrix) -> Tensor:
    """(page_bytes,) uint8, with its checksum.

    gate, up: (inner, hidden); down: (hidden, inner); all of one format.
    """
    inner_size, hidden_size = gate.shape
    layout = ForeignLayout(gate.foreign, hidden_size, inner_size)
    matrices = (gate, up, down)
    assert all(matrix.foreign == gate.foreign for matrix in matrices)
    assert tuple(matrix.shape for matrix in matrices) == layout.shapes
    return _sealed(layout, zip(layout.offsets, map(pack_foreign, matrices), strict=False))


def _sealed(layout: PageLayout | ForeignLayout, parts: Iterable[tuple[int, Tensor]]) -> Tensor:
    """A page of this layout. parts: first byte and bytes, (bytes,) uint8, of what follows the header."""
    packed = torch.zeros(layout.page_bytes, dtype=torch.uint8)
    packed[:HEADER_BYTES] = torch.frombuffer(bytearray(layout.header), dtype=torch.uint8)
    for start, content in parts:
        packed[start : start + content.numel()] = content
    seal(packed)
    return packed


def seal(page: Tensor) -> None:
    """Write the checksum into `page`, (page_bytes,) uint8, which is complete but for it."""
    content = checksum_of(page).to_bytes(CHECKSUM_END - CHECKSUM_OFFSET, "little")
    page[CHECKSUM_OFFSET:CHECKSUM_END] = torch.frombuffer(bytearray(content), dtype=torch.uint8)


def checksum_of(page: Tensor) -> int:
    """The checksum of `page`, (page_bytes,) uint8, contiguous on the CPU. Nothing is copied."""
    assert page.dtype == torch.uint8, page.dtype
    assert page.ndim == 1, page.shape
    assert page.is_contiguous(), page.stride()
    content = page.numpy().data
    state = xxhash.xxh3_64(content[:CHECKSUM_OFFSET])
    state.update(content[CHECKSUM_END:])
    return state.intdigest()


def stored_checksum(page: Tensor) -> int:
    """The checksum that `page`, (page_bytes,) uint8, was sealed with."""
    return int.from_bytes(page[CHECKSUM_OFFSET:CHECKSUM_END].numpy().tobytes(), "little")


def check_checksum(page: Tensor, where: str) -> None:
    """Raise ModelUnusable if a byte of `page`, (page_bytes,) uint8, changed since it was sealed."""
    found, stored = checksum_of(page), stored_checksum(page)
    if found != stored:
        raise ModelUnusable(
            f"{where} has the checksum {found:016x}, its header says {stored:016x}",
            "a byte of it changed after it was written",
            "`ernie-local verify` names all damage; then download, copy or quantize the model again",
        )


def is_foreign_page(packed: Tensor) -> bool:
    """Whether these bytes, a page or a slot with one, begin like a page of another library's format."""
    return packed[: len(FOREIGN_MAGIC)].tolist() == list(FOREIGN_MAGIC)


def read_layout(packed: Tensor, where: str = "the page", allow_padding: bool = False) -> PageLayout:
    """The layout that a page's header names. Raises ModelUnusable unless the page is of that layout.

    allow_padding: the page may lie in a larger slot.
    """
    return _read(packed, where, allow_padding, read_header)


def read_foreign_page(packed: Tensor, where: str = "the page", allow_padding: bool = False) -> ForeignLayout:
    """As `read_layout`, of a page in another library's format."""
    return _read(packed, where, allow_padding, read_foreign_layout)


def _read(
    packed: Tensor, where: str, allow_padding: bool, layout_of: Callable[[bytes, str], Layout]
) -> Layout:
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() < HEADER_BYTES:
        raise damaged_page(f"{where} is {packed.dtype} of shape {tuple(packed.shape)}, wanted bytes")
    layout = layout_of(packed[:HEADER_BYTES].cpu().numpy().tobytes(), where)
    spare = packed.numel() - layout.page_bytes
    if spare < 0 or (spare and not allow_padding):
        raise damaged_page(f"{where} has {packed.numel()} bytes, its header means {layout.page_bytes}")
    return layout


def split_tiles(packed: Tensor, layout: PageLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of gate, up and down of a page, or of a slot that begins with one, (tiles, tile_bytes) each."""
    num_tiles = layout.gate_up.num_tiles(layout.inner_size)
    in_turn = packed[layout.gate_up_offset : layout.down_offset].view(num_tiles, 2, -1)
    down = packed[layout.down_offset : layout.down_offset + layout.down_bytes]
    return in_turn[:, 0], in_turn[:, 1], down.view(layout.down.num_tiles(layout.hidden_size), -1)


def unpack_page(packed: Tensor, where: str = "the page") -> ExpertPage:
    """The inverse of `pack_page`. Raises ModelUnusable for a page that is damaged or cut."""
    layout = read_layout(packed, where)
    gate, up, down = (tiles.flatten() for tiles in split_tiles(packed, layout))
    return ExpertPage(
        unpack_matrix(gate, layout.gate_up, layout.inner_size, layout.hidden_size),
        unpack_matrix(up, layout.gate_up, layout.inner_size, layout.hidden_size),
        unpack_matrix(down, layout.down, layout.hidden_size, layout.inner_size),
    )


def check_page(page: Tensor, wanted: PageLayout | ForeignLayout, where: str) -> None:
    """Raise ModelUnusable unless `page`, (page_bytes,) uint8, is whole, of this layout, its scales usable."""
    found = (read_foreign_page if isinstance(wanted, ForeignLayout) else read_layout)(page, where)
    check_checksum(page, where)
    if found != wanted:
        raise ModelUnusable(
            f"{where} holds {found}, wanted {wanted}",
            "page and config.json do not belong together",
            "verify the checkpoint",
        )
    if isinstance(wanted, ForeignLayout):
        for start, shape in zip(wanted.offsets, wanted.shapes, strict=False):
            _check_magnitude(split_foreign(page[start:], wanted.foreign, *shape)[0], 1, where)
        return
    down_end = wanted.down_offset + wanted.down_bytes
    gate_up, down = page[wanted.gate_up_offset : wanted.down_offset], page[wanted.down_offset : down_end]
    check_scales(gate_up, wanted.gate_up, wanted.hidden_size, where)
    check_scales(down, wanted.down, wanted.inner_size, where)


def check_scales(tiles: Tensor, low_bit: LowBitFormat, columns: int, where: str) -> None:
    """Raise ModelUnusable if an fp16 scale of these whole tiles, (bytes,) uint8, is no usable number."""
    groups = low_bit.num_groups(columns) if low_bit.has_fp16_scales else 1
    # A view first: copying numbers is five times as fast as copying bytes.
    rows = tiles.view(-1, low_bit.tile_bytes(columns)).view(torch.float16)  # (tiles, tile_bytes / 2)
    scales = rows[:, : TILE_ROWS * groups].contiguous()
    _check_magnitude(scales, low_bit.widest_range, where)


def _check_magnitude(scales: Tensor, largest_factor: int, where: str) -> None:
    """largest_factor: what the widest range of a matrix is in units of its scale."""
    # A range is twice the largest weight, and searched and rounded scales may be a little wider than it.
    limit = 4 * LARGEST_WEIGHT / largest_factor
    smallest, largest = map(float, torch.aminmax(scales))  # NaN if any is
    if smallest >= -limit and largest <= limit:
        return
    bad = scales[~(scales.float().abs() <= limit)]
    raise ModelUnusable(
        f"{where}: {len(bad)} of {scales.numel()} scales are not finite or over {limit:.6g}, "
        f"the first is {float(bad[0]):.6g}",
        f"weights over {LARGEST_WEIGHT:.0f} overflow when the model computes, in float32 too",
        "quantize the source again, or download the checkpoint again",
    )
