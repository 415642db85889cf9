"""torch's allocator for CUDA in numbers: segments from the driver, blocks inside of them, best fit.

By c10/cuda/CUDACachingAllocator.cpp of torch 2.13 with its defaults. Nothing is allocated but numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ernie_local.sizes import MIB, aligned

_ROUNDED = 512
# Blocks up to SMALL share small segments, those below LARGE large ones; others have some granules each.
SIZES = {
    "SMALL": MIB,
    "SMALL_SEGMENT": 2 * MIB,
    "LARGE_SEGMENT": 20 * MIB,
    "LARGE": 10 * MIB,
    "GRANULE": 2 * MIB,
}


@dataclass(eq=False)
class Segment:
    """What the driver gave: blocks from its beginning to its end. address: a number of its own."""

    address: int
    num_bytes: int
    is_small: bool
    blocks: list[Block] = field(default_factory=list)

    @property
    def is_free(self) -> bool:
        return all(block.is_free for block in self.blocks)


@dataclass(eq=False)
class Block:
    """Part of a segment."""

    segment: Segment
    start: int
    num_bytes: int
    is_free: bool = True

    @property
    def address(self) -> int:
        return self.segment.address + self.start


class CachingAllocator:
    """Allocates and frees. reserved: bytes from the driver now, at most `peak`; allocated: in use."""

    def __init__(self, num_bytes: int, *, leaves_gaps: bool = False) -> None:
        """leaves_gaps: gives a segment to each block, as torch may where much was allocated before."""
        self.num_bytes = num_bytes
        self._leaves_gaps = leaves_gaps
        self.reserved = self.peak = self.allocated = 0
        self.segments: list[Segment] = []
        self._next_address = 1 << 40

    def allocate(self, num_bytes: int) -> Block:
        size = max(_ROUNDED, -(-num_bytes // _ROUNDED) * _ROUNDED)
        is_small = size <= SIZES["SMALL"]
        fitting = None if self._leaves_gaps else self._best_fit(size, is_small)
        block = fitting or self._new_segment(size, is_small)
        rest = block.num_bytes - size
        if rest >= _ROUNDED if is_small else rest > SIZES["SMALL"]:
            blocks = block.segment.blocks
            blocks.insert(blocks.index(block) + 1, Block(block.segment, block.start + size, rest))
            block.num_bytes = size
        block.is_free = False
        self.allocated += block.num_bytes
        return block

    def free(self, block: Block) -> None:
        assert not block.is_free
        block.is_free = True
        self.allocated -= block.num_bytes
        blocks = block.segment.blocks
        index = blocks.index(block)
        for neighbour in (index, index - 1):  # behind it, then before it
            if (
                0 <= neighbour < len(blocks) - 1
                and blocks[neighbour].is_free
                and blocks[neighbour + 1].is_free
            ):
                blocks[neighbour].num_bytes += blocks.pop(neighbour + 1).num_bytes

    def drop_unused(self) -> None:
        for segment in [one for one in self.segments if one.is_free]:
            self.segments.remove(segment)
            self.reserved -= segment.num_bytes

    def _best_fit(self, size: int, is_small: bool) -> Block | None:
        fitting = [
            block
            for segment in self.segments
            if segment.is_small == is_small
            for block in segment.blocks
            if block.is_free and block.num_bytes >= size
        ]
        return min(fitting, key=lambda block: (block.num_bytes, block.address), default=None)

    def _new_segment(self, size: int, is_small: bool) -> Block:
        if is_small:
            num_bytes = SIZES["SMALL_SEGMENT"]
        else:
            num_bytes = SIZES["LARGE_SEGMENT"] if size < SIZES["LARGE"] else aligned(size, SIZES["GRANULE"])
        if self.reserved + num_bytes > self.num_bytes:
            self.drop_unused()
        if self.reserved + num_bytes > self.num_bytes:
            raise torch.OutOfMemoryError(f"{size} bytes, {self.num_bytes - self.reserved} are left")
        segment = Segment(self._next_address, num_bytes, is_small)
        self._next_address += 2 * num_bytes
        segment.blocks.append(Block(segment, 0, num_bytes))
        self.segments.append(segment)
        self.reserved += num_bytes
        self.peak = max(self.peak, self.reserved)
        return segment.blocks[0]
