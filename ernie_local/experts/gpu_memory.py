"""One allocation of a GPU for pages and a KV cache; torch's allocator has its front while it needs workspace.

    [ workspace, in pieces | pages of experts ... | weights for images | KV cache ]

Images that are encoded and chunks of prompts need memory that decode does not need. torch gives it out, and
could use no hole in an allocation of ours. So the front of the allocation is made of pieces, each a tensor of
its own: a piece that is dropped is torch's again, and one that is allocated again comes back to its place,
as torch takes the free block that fits best, from its beginning on. Where torch has put something else there,
pages do without.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate
from typing import Protocol

import torch

from ernie_local.errors import DoesNotFit, OutOfMemory, parameter
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.experts.plan import lent_bytes, workspace_pieces
from ernie_local.sizes import aligned, format_bytes

# After a failed allocation, the next try asks for a sixteenth less of what pages and cache wanted.
_STEPS = 16


class GpuMemoryWarning(UserWarning):
    """Experts have less memory of a GPU than was planned."""


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

    num_bytes: of all; total_bytes: with a workspace that lies apart. workspace_bytes: what torch may have of
    the front, 0 where it lies apart. Pages lie behind what torch has now.
    """

    def __init__(self, allocator: Allocator, workspace_bytes: int, frame_bytes: int) -> None:
        """Nothing yet; `allocate` follows. workspace_bytes: that torch shall have, in front or apart."""
        self._allocator = allocator
        self._wanted_workspace = workspace_bytes
        self._frame_bytes = frame_bytes
        self._planned_bytes = 0
        self._clear()

    def _clear(self) -> None:
        self._owned: torch.Tensor | None = None
        self._sizes: list[int] = []  # of the pieces
        self._pieces: list[torch.Tensor | None] = []  # None for those that torch has
        self.workspace_bytes = self.num_bytes = self.total_bytes = 0
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self.units = self.bytes.view(-1, UNIT_BYTES)

    def allocate(self, wanted_bytes: int, least_bytes: int) -> None:
        """Have up to `wanted_bytes` in whole frames instead of what there was, whose content is lost.

        least_bytes: for pages and cache; both include the workspace. DoesNotFit, with nothing left, if not
        even that can be had.
        """
        frame = self._frame_bytes
        wanted_bytes = wanted_bytes // frame * frame
        self._planned_bytes = max(self._planned_bytes, wanted_bytes)
        least_bytes = aligned(least_bytes, frame)
        step = -(-(wanted_bytes - self._wanted_workspace) // _STEPS)
        self._clear()
        attempt = wanted_bytes
        while attempt >= least_bytes:
            try:
                self._allocate(attempt)
                return
            except torch.OutOfMemoryError:
                smaller = max(least_bytes, attempt - step) if attempt > least_bytes else 0
                attempt = smaller // frame * frame
        raise DoesNotFit(
            f"could not allocate {format_bytes(least_bytes)} on the GPU, the minimum for a conversation, one "
            f"token's experts and {format_bytes(self._wanted_workspace)} of workspace; "
            f"{format_bytes(wanted_bytes)} was planned",
            "another program took memory of the GPU meanwhile, or its driver keeps more than it reports",
            f"close other programs, use a smaller context or {parameter('kv_dtype', 'int8')}, or lower "
            f"{parameter('vram')}",
        )

    def _allocate(self, num_bytes: int) -> None:
        # A block as large as all parts together: they get their places in it, one behind the other.
        sizes = workspace_pieces(self._wanted_workspace)
        self._allocator.drop_unused()
        whole = self._allocator.allocate(num_bytes)
        start = whole.data_ptr()
        del whole
        pieces = [self._allocator.allocate(size) for size in sizes]
        pages = self._allocator.allocate(num_bytes - sum(sizes))
        ends = accumulate(sizes, initial=start)
        if any(part.data_ptr() != end for part, end in zip([*pieces, pages], ends, strict=True)):
            # torch keeps the pieces after they are dropped, and uses them for other work.
            pieces = []
        self._owned, self._pieces = pages, [*pieces]
        self._sizes = [len(piece) for piece in pieces]
        self.workspace_bytes = sum(self._sizes)
        self.num_bytes, self.total_bytes = self.workspace_bytes + len(pages), num_bytes
        assert self.num_bytes % UNIT_BYTES == 0, self.num_bytes
        # It owns nothing, so that nobody who computes with it keeps the memory.
        self.bytes = self._allocator.span(pieces[0] if pieces else pages, self.num_bytes)
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
    def planned_bytes(self) -> int:
        """What was asked for at first, of what may lie here."""
        return self._planned_bytes - (self.total_bytes - self.num_bytes)

    @property
    def lent_bytes(self) -> int:
        """What torch has of the front now."""
        ends = accumulate(self._sizes)
        return max((end for end, piece in zip(ends, self._pieces, strict=True) if piece is None), default=0)


def allocate_pages(
    allocator: Allocator, wanted_bytes: int, least_bytes: int, workspace_bytes: int, frame_bytes: int
) -> GpuMemory:
    """Memory of up to `wanted_bytes`; see GpuMemory.allocate for numbers and errors."""
    memory = GpuMemory(allocator, workspace_bytes, frame_bytes)
    memory.allocate(wanted_bytes, least_bytes)
    return memory


def out_of_memory(refusal: str) -> OutOfMemory:
    """Of a memory of which experts can give nothing up. refusal: what the allocator says."""
    return OutOfMemory(
        f"the GPU has no more memory: {refusal}",
        "another program took memory that was free when the model was loaded, and experts give none up",
        f"close other programs, or load with less {parameter('vram')}, so that experts can give way",
    )
