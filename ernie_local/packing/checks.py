"""What packed bytes show without being unpacked: a header of another layout, scales that are no numbers.

Nothing else can be wrong by itself: every bit pattern of codes, whole scales and zeros means something, and
only a hash tells whether it is the one that was written. Whole pages, or piece by piece.
"""

from __future__ import annotations

import torch

from ernie_local.errors import ModelUnusable
from ernie_local.packing.expert_page import read_header, read_layout
from ernie_local.packing.foreign_formats import ForeignLayout
from ernie_local.packing.foreign_page import check_foreign_page
from ernie_local.packing.formats import TILE_ROWS, LowBitFormat
from ernie_local.packing.page_layout import HEADER_BYTES, PageLayout

Tensor = torch.Tensor


def check_page(page: Tensor, wanted: PageLayout | ForeignLayout, where: str) -> None:
    """Raise ModelUnusable unless `page`, (page_bytes,) uint8, is of this layout and its scales are finite."""
    if isinstance(wanted, ForeignLayout):
        check_foreign_page(page, wanted, where)
        return
    read_layout(page, where)
    check_header(page[:HEADER_BYTES].numpy().tobytes(), wanted, where)
    for start, num_bytes, low_bit, columns in wanted.tile_ranges:
        check_scales(page[start : start + num_bytes], low_bit, columns, where)


def check_header(header: bytes, wanted: PageLayout, where: str) -> None:
    """Raise ModelUnusable unless these 64 bytes are the header of a page of this layout."""
    found = read_header(header, where)
    if found != wanted:
        raise ModelUnusable(
            f"{where} holds {found}, wanted {wanted}",
            "page and config.json do not belong together",
            "verify the checkpoint",
        )
    if header != wanted.header:
        differing = sum(one != other for one, other in zip(header, wanted.header, strict=True))
        raise ModelUnusable(
            f"{where} has {differing} bytes other than 0 behind the fields of its header",
            "version 1 has nothing there, so the page was damaged",
            "verify the checkpoint",
        )


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
