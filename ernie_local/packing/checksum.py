"""A page's checksum: XXH3-64 of all its bytes but the eight in which it stands, at byte 16 of the header.

One for each page, so that a reader of single pages need not read the file around them. It finds bytes that
changed by themselves, not a page that stands where another one of the same layout belongs, which hashes.json
finds, nor a forger, who could compute it too. Knows nothing of what the other bytes mean: pages of our
formats and of other libraries' have it at the same place.
"""

from __future__ import annotations

import torch
import xxhash

from ernie_local.errors import ModelUnusable

Tensor = torch.Tensor
CHECKSUM_OFFSET = 16
CHECKSUM_END = CHECKSUM_OFFSET + 8


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
    """Raise ModelUnusable if a byte of `page`, (page_bytes,) uint8, changed since it was sealed.

    Another page of the same layout in its place passes: hashes.json shows that one.
    """
    found, stored = checksum_of(page), stored_checksum(page)
    if found != stored:
        raise ModelUnusable(
            f"{where} has the checksum {found:016x}, its header says {stored:016x}",
            "a byte of it changed after it was written",
            "`ernie-local verify` names all damage; then download, copy or quantize the model again",
        )
