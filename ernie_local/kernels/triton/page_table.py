"""Where an expert's page lies, found on the GPU.

`slots` is the memory with the pages, `places` says at which slot an expert's begins; a negative place means
that somebody else computes it. A page of another layout than the kernel's is left to the kernel for that.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def find_place(expert_id: tl.tensor, places: tl.tensor):
    """Slot of the expert's page, int64; without a table it is the expert's number."""
    if places is None:
        place = expert_id.to(tl.int64)
    else:
        place = tl.load(places + expert_id).to(tl.int64)
    return place


@triton.jit
def has_header(page: tl.tensor, LOW: tl.constexpr, HIGH: tl.constexpr):
    """Whether a page begins with these 16 bytes."""
    halves = page.to(tl.pointer_type(tl.int64))
    return (tl.load(halves) == LOW) & (tl.load(halves + 1) == HIGH)
