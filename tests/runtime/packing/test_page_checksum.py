"""A page's checksum: XXH3-64 of what docs/format.md says, found wrong wherever a bit flips."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xxhash

from ernie_local.errors import ModelUnusable
from ernie_local.packing import PageLayout, find_format, pack_page
from ernie_local.packing.layout import ForeignLayout
from ernie_local.packing.page import (
    check_checksum,
    check_page,
    checksum_of,
    is_foreign_page,
    read_foreign_page,
    seal,
    stored_checksum,
)
from tests.runtime.random_matrices import random_page

GOLDEN = sorted((Path(__file__).parent / "golden_pages").glob("*.bin"))
W4 = find_format("w4")
LAYOUT = PageLayout(W4, W4, 128, 48)


def sealed_page(seed: int = 0) -> torch.Tensor:
    return pack_page(random_page("w4", "w4", 128, 48, seed))


def layout_of(page: torch.Tensor, name: str) -> PageLayout | ForeignLayout:
    if is_foreign_page(page):
        return read_foreign_page(page)
    gate_up, down = map(find_format, name.split("-"))
    return PageLayout(gate_up, down, 80, 48)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_stored_pages_carry_what_the_format_says(path: Path) -> None:
    """With none of the code under test: little-endian at byte 16, of all bytes before and behind it."""
    content = path.read_bytes()
    wanted = xxhash.xxh3_64_intdigest(content[:16] + content[24:])
    assert int.from_bytes(content[16:24], "little") == wanted
    page = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    assert checksum_of(page) == stored_checksum(page) == wanted
    check_page(page, layout_of(page, path.stem), "the page")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_bit_counts(path: Path) -> None:
    """Magic, sizes, checksum, scales, codes, padding: each bit of the header, and one of every 64 bytes."""
    page = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    wanted = layout_of(page, path.stem)
    places = [(byte, bit) for byte in range(64) for bit in range(8)]
    places += [(byte + byte // 64 % 64, byte // 64 % 8) for byte in range(64, page.numel(), 64)]
    for byte, bit in (*places, (page.numel() - 1, 7)):
        page[byte] ^= 1 << bit
        with pytest.raises(ModelUnusable, match=r"^page 3 of a tensor "):
            check_page(page, wanted, "page 3 of a tensor")
        with pytest.raises(ModelUnusable, match=r"^page 3 of a tensor has the checksum"):
            check_checksum(page, "page 3 of a tensor")
        page[byte] ^= 1 << bit
    check_page(page, wanted, "page 3 of a tensor")


def test_both_numbers_are_told() -> None:
    page = sealed_page()
    stored = stored_checksum(page)
    page[5000] ^= 1
    with pytest.raises(ModelUnusable) as caught:
        check_checksum(page, "page 3 of a tensor")
    assert caught.value.what == (
        f"page 3 of a tensor has the checksum {checksum_of(page):016x}, its header says {stored:016x}"
    )


def test_a_page_in_a_larger_buffer_is_looked_at_where_it_lies() -> None:
    """As in slots: no byte around it counts or changes."""
    page = sealed_page()
    buffer = torch.full((3, page.numel() + 4096), 7, dtype=torch.uint8)
    view = buffer[1, : page.numel()]
    view.copy_(page)
    view[16:24] = 9
    seal(view)
    assert torch.equal(view, page)
    assert bool((buffer[1, page.numel() :] == 7).all())
    assert bool((buffer[[0, 2]] == 7).all())
    check_page(view, LAYOUT, "the page")


def test_sealing_again_changes_nothing() -> None:
    page = sealed_page()
    again = page.clone()
    seal(again)
    assert torch.equal(again, page)


def test_a_page_that_nobody_sealed_is_refused() -> None:
    page = sealed_page()
    page[16:24] = 0
    with pytest.raises(ModelUnusable, match="its header says 0000000000000000"):
        check_page(page, LAYOUT, "the page")


def test_damage_is_told_before_what_follows_from_it() -> None:
    """A sealed page of another layout does not belong here; an unsealed one changed, whatever it says now."""
    page, wanted = sealed_page(), PageLayout(W4, find_format("w3"), 128, 48)
    assert wanted.page_bytes == LAYOUT.page_bytes
    with pytest.raises(ModelUnusable, match=r"holds .*\npage and config\.json do not belong together"):
        check_page(page, wanted, "the page")
    page[7] = wanted.down.format_id
    with pytest.raises(ModelUnusable, match="has the checksum"):
        check_page(page, wanted, "the page")
