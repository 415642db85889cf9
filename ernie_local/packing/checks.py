"""What packed bytes show without being unpacked: changed pages, other layouts, scales that are no numbers.

Every bit pattern of codes, whole scales and zeros means something, so that only a page's checksum shows that
they changed; a packed matrix has none, and hashes.json alone shows it there.
"""

from __future__ import annotations

import torch

from ernie_local.errors import ModelUnusable
from ernie_local.packing.expert_page import read_layout
from ernie_local.packing.foreign_formats import ForeignLayout
from ernie_local.packing.foreign_page import check_foreign_page
from ernie_local.packing.formats import TILE_ROWS, LowBitFormat
from ernie_local.packing.page_checksum import check_checksum
from ernie_local.packing.page_layout import PageLayout

Tensor = torch.Tensor


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
