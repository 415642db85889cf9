"""One allocation of a GPU for pages and a KV cache; torch's allocator has its front while it needs workspace.

    [ workspace, in pieces | pages of experts ... | weights for images | KV cache ]

Images that are encoded and chunks of prompts need memory that decode does not need. torch gives it out, and
could use no hole in an allocation of ours. So the front of the allocation is made of pieces, each a tensor of
its own: a piece that is dropped is torch's again, and one that is allocated again comes back to its place,
as torch takes the free block that fits best, from its beginning on. Where torch has put something else there,
pages do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Protocol

import torch

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.experts.plan import lent_bytes, workspace_pieces
from ernie_local.sizes import aligned, format_bytes

# After a failed allocation, the next try asks for a sixteenth less of what pages and cache wanted.
_STEPS = 16


class Allocator(Protocol):
    """torch's allocator of one GPU."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8. torch.OutOfMemoryError if there is not enough."""
        ...

    def drop_unused(self) -> None:
        """Give memory that the allocator keeps unused back to the driver."""
        ...

    def span(self, first: torch.Tensor, num_bytes: int) -> torch.Tensor:
        """(num_bytes,) uint8 from where `first` begins, over what was allocated behind it without a gap.

        It owns nothing.
        """
        ...


class GpuMemory:
    """Memory of a GPU for pages, a KV cache and, in front, workspace. `units`: (units, UNIT_BYTES) uint8.

    num_bytes: of all; planned_bytes: what was asked for. workspace_bytes: what torch may have of the front, 0
    where it has a workspace apart. Pages lie behind what it has now.
    """

    def __init__(
        self, allocator: Allocator, pages: torch.Tensor, pieces: Sequence[torch.Tensor], planned_bytes: int
    ) -> None:
        """pages: (bytes,) uint8; pieces: of the workspace, right before it, one behind the other."""
        self._allocator = allocator
        self._pages = pages
        self._sizes = [len(piece) for piece in pieces]
        self._pieces: list[torch.Tensor | None] = [*pieces]  # None for those that torch has
        self.workspace_bytes = sum(self._sizes)
        self.num_bytes = self.workspace_bytes + len(pages)
        assert self.num_bytes % UNIT_BYTES == 0, self.num_bytes
        self.planned_bytes = planned_bytes
        self.bytes = allocator.span(pieces[0], self.num_bytes) if pieces else pages
        self.units = self.bytes.view(-1, UNIT_BYTES)

    def lend(self, needed_bytes: int) -> None:
        """Let torch have at least this much of the front, or all that it may have. No page lies there."""
        wanted = lent_bytes(self.workspace_bytes, needed_bytes)
        for index, end in enumerate(accumulate(self._sizes)):
            if end <= wanted:
                self._pieces[index] = None

    def take_back(self) -> bool:
        """Have all of the front for pages. False, with nothing changed, where torch still uses some of it."""
        self._allocator.drop_unused()  # which a piece might get instead of its place
        start, pieces = self.bytes.data_ptr(), [*self._pieces]
        for index, size in enumerate(self._sizes):
            if pieces[index] is None:
                with suppress(torch.OutOfMemoryError):
                    pieces[index] = self._allocator.allocate(size)
            here = pieces[index]
            if here is None or here.data_ptr() != start:
                del here, pieces
                self._allocator.drop_unused()  # what was allocated elsewhere
                return False
            start += size
        self._pieces = pieces
        return True

    @property
    def lent_bytes(self) -> int:
        """What torch has of the front now."""
        ends = accumulate(self._sizes)
        return max((end for end, piece in zip(ends, self._pieces, strict=True) if piece is None), default=0)


def allocate_pages(
    allocator: Allocator, wanted_bytes: int, least_bytes: int, workspace_bytes: int, frame_bytes: int
) -> GpuMemory:
    """Allocate up to `wanted_bytes` of a GPU in whole frames, with the workspace in front of them.

    least_bytes: for pages and cache; all numbers include the workspace. DoesNotFit if not even that is left.
    """
    wanted_bytes = wanted_bytes // frame_bytes * frame_bytes
    least_bytes = aligned(least_bytes, frame_bytes)
    step = -(-(wanted_bytes - workspace_bytes) // _STEPS)
    attempt = wanted_bytes
    while attempt >= least_bytes:
        try:
            return _allocate(allocator, attempt, workspace_pieces(workspace_bytes), wanted_bytes)
        except torch.OutOfMemoryError:
            smaller = max(least_bytes, attempt - step) if attempt > least_bytes else 0
            attempt = smaller // frame_bytes * frame_bytes
    raise DoesNotFit(
        f"could not allocate {format_bytes(least_bytes)} on the GPU, the minimum for a conversation, one "
        f"token's experts and {format_bytes(workspace_bytes)} of workspace; {format_bytes(wanted_bytes)} "
        "was planned",
        "another program took memory of the GPU meanwhile, or its driver keeps more than it reports",
        f"close other programs, use a smaller context or {parameter('kv_dtype', 'int8')}, or lower "
        f"{parameter('vram')}",
    )


def _allocate(allocator: Allocator, num_bytes: int, sizes: Sequence[int], planned_bytes: int) -> GpuMemory:
    # A block as large as all parts together: they get their places in it, one behind the other.
    allocator.drop_unused()
    whole = allocator.allocate(num_bytes)
    start = whole.data_ptr()
    del whole
    pieces = [allocator.allocate(size) for size in sizes]
    pages = allocator.allocate(num_bytes - sum(sizes))
    ends = accumulate(sizes, initial=start)
    if all(part.data_ptr() == end for part, end in zip([*pieces, pages], ends, strict=True)):
        return GpuMemory(allocator, pages, pieces, planned_bytes)
    # torch keeps the pieces after they are dropped, and uses them for other work.
    return GpuMemory(allocator, pages, [], planned_bytes - sum(sizes))
