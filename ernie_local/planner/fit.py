"""Decides what of a model RAM holds, and refuses what does not fit; gpu_fit.py does so with a GPU.

Nothing is read for that: `load` places a model by these functions, and `vram` predicts with the same ones.
"""

from __future__ import annotations

import platform
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ernie_local.errors import DoesNotFit, parameter
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, SMALLEST_CHUNK_TOKENS, working_bytes
from ernie_local.planner.need import EXPECTED_TOKENS, MemoryNeed
from ernie_local.sizes import GIB, MIB, format_bytes

# Left to other programs where no reserve was given. A desktop leaves some 3/4 of a laptop's memory free, and
# at less than a tenth of it programs such as earlyoom kill the largest process.
_MOST_RESERVED, _RESERVED_SHARE = 2 * GIB, 7
# Leftovers of an allocator, stacks of threads, and modules that are imported late.
SLACK_BYTES = 128 * MIB
_WORKING_SHARE = 10  # a chunk of a prompt may take 1/10 of the bytes that experts could have
CONTEXT_STEP = 1024
# Of the memory for paged experts that several chats at once leave: caches of eight take an eighth of 8 GiB.
_LEAST_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """One memory, RAM or a GPU's; all numbers are bytes.

    total: what may be taken of it, `used` included; used: what this process has of it already.
    limit_name: the parameter that set `total`, None where it follows from what is free.
    free: what is free beside `used`, None where that need not be looked at.
    """

    total: int
    used: int = 0
    limit_name: str | None = None
    free: int | None = None

    @staticmethod
    def of_ram(limit: int | None, reserve: int | None, *, used: int, free: int) -> AvailableMemory:
        """For a process with `used` bytes: up to `limit`; without one, all that is free but the reserve.

        No reserve: `default_reserve`.
        """
        if limit is None:
            left = default_reserve(used + free) if reserve is None else reserve
            return AvailableMemory(used + max(0, free - left), used, free=free)
        return AvailableMemory(limit, used, "ram", free)

    @staticmethod
    def of_gpu(free: int, limit: int | None = None, headroom: int | None = None) -> AvailableMemory:
        """A GPU with `free` bytes: up to `limit`, or all but a headroom (None: `headroom_bytes`)."""
        if limit is not None:
            return AvailableMemory(limit, limit_name="vram", free=free)
        return AvailableMemory(max(0, free - (headroom_bytes() if headroom is None else headroom)), free=free)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model without a GPU goes.

    paged_bytes: RAM for paged experts, shared with the conversation; None where all experts are resident.
    spare_bytes: RAM that is left where all experts are resident.

    swapped_bytes: of vision tower and resampler where they are in memory only while images are encoded, in
    paged_bytes then; 0 where they stay. decisions: lines for people, of which there are none.
    """

    paged_bytes: int | None
    chunk_tokens: int
    spare_bytes: int = field(default=0, compare=False)
    swapped_bytes: int = 0
    decisions: tuple[str, ...] = ()


def default_reserve(num_bytes: int) -> int:
    """What is left to other programs of the RAM that a process could have: 2 GiB, or 1/7 if that is less."""
    return min(_MOST_RESERVED, num_bytes // _RESERVED_SHARE)


def headroom_bytes(system: str = sys.platform, release: str | None = None) -> int:
    """What is left free on a GPU where no limit was given.

    Windows, and Linux inside it, move what is too much to RAM without a word, and answers take eight times
    as long; a desktop there changes its use by some hundred MiB.
    """
    return GIB if system == "win32" or runs_in_wsl(release) else 512 * MIB


def runs_in_wsl(release: str | None = None) -> bool:
    """Whether this Linux runs inside Windows. release: of the kernel, None for this one."""
    return "microsoft" in (platform.release() if release is None else release).lower()


def place(need: MemoryNeed, ram: AvailableMemory) -> Placement:
    """Keep the model in RAM, with experts paged from disk where not all of them fit.

    DoesNotFit, with the numbers, where even that is too much. For a GPU, see gpu_fit.py.
    """
    if ram.limit_name is None:
        return _fit(ram, need.expecting(EXPECTED_TOKENS), need)
    placement = _fit(ram, need)
    if placement.paged_bytes is not None and ram.free is not None and ram.total - ram.used > ram.free:
        raise DoesNotFit(
            f"{parameter(ram.limit_name)} is {format_bytes(ram.total)}, but the process has "
            f"{format_bytes(ram.used)} and {format_bytes(ram.free)} are free",
            "paged experts fill the limit, and a system that swaps takes minutes for every token",
            f"{parameter(ram.limit_name, 'auto')}, or a limit within what is free",
        )
    return placement


def most_parallel(need_of: Callable[[int], MemoryNeed], ram: AvailableMemory, most: int) -> int:
    """How many chats, at most `most`, are answered at once without making each step slower than it gains.

    need_of: of so many. Experts that are resident with one chat stay so; paged ones keep _LEAST_SHARE of the
    memory that one chat leaves them. DoesNotFit where one does not fit.
    """
    need = need_of(1)
    alone = place(need, ram)
    enough = _decode_slots(need, alone) * _LEAST_SHARE
    for count in range(2, most + 1):
        try:
            need = need_of(count)
            placement = place(need, ram)
        except DoesNotFit:
            return count - 1
        is_paged = placement.paged_bytes is not None
        if is_paged != (alone.paged_bytes is not None) or _decode_slots(need, placement) < enough:
            return count - 1
    return most


def _decode_slots(need: MemoryNeed, placement: Placement) -> int:
    """Bytes for paged experts in decode; 0 where all are resident."""
    if placement.paged_bytes is None:
        return 0
    return min(placement.paged_bytes - need.decode_bytes(placement.chunk_tokens), need.text_expert_bytes)


def least_total(need: MemoryNeed, used: int) -> int:
    """The smallest `AvailableMemory.total` that `place` accepts for the whole context."""
    chunk = SMALLEST_CHUNK_TOKENS if need.chunk_tokens is None else need.chunk_tokens
    working = working_bytes(need.config, chunk)
    return _fixed_bytes(need, used) + working + need.least_bytes(chunk)


def resident_total(need: MemoryNeed, used: int) -> int:
    """The smallest `AvailableMemory.total` with every expert in memory and chunks of full size."""
    return _fixed_bytes(need, used) + working_bytes(need.config, DEFAULT_CHUNK_TOKENS) + need.resident_bytes


def longest_context(most: int, fits: Callable[[int], bool], least: int = CONTEXT_STEP) -> int | None:
    """The most tokens, in steps of 1024 from `least` to `most`, that fit; None if not even `least` does.

    Where one length does not fit, no longer one may fit.
    """
    if not fits(least):
        return None
    if fits(most):
        return most
    steps = range(most // CONTEXT_STEP, least // CONTEXT_STEP, -1)  # the first one does not fit
    skipped = bisect_left(steps, True, lo=1, key=lambda step: fits(step * CONTEXT_STEP))
    return max(least, (most // CONTEXT_STEP - skipped) * CONTEXT_STEP)


def _fixed_bytes(need: MemoryNeed, used: int) -> int:
    return used + need.dense_bytes + need.compiled_bytes + SLACK_BYTES


def _fit(memory: AvailableMemory, need: MemoryNeed, whole: MemoryNeed | None = None) -> Placement:
    """Keep all experts in `memory` if they fit, else page them. DoesNotFit where even that is too much.

    whole: what a full context would need, where `need` is that of a usual conversation.
    """
    left = memory.total - _fixed_bytes(need, memory.used)
    chunk = DEFAULT_CHUNK_TOKENS if need.chunk_tokens is None else need.chunk_tokens
    working = working_bytes(need.config, chunk)
    if working + need.resident_bytes <= left:
        return Placement(None, chunk, spare_bytes=need.spare_bytes(left - working))
    while (need.chunk_tokens is None and chunk > SMALLEST_CHUNK_TOKENS) and (
        working * _WORKING_SHARE > left + need.image_weight_bytes or working + need.least_bytes(chunk) > left
    ):
        chunk //= 2
        working = working_bytes(need.config, chunk)
    left -= working
    if left < need.least_bytes(chunk):
        raise _refusal(memory, need, whole or need, memory.total - left + need.least_bytes(chunk))
    if left >= need.resident_bytes:
        return Placement(None, chunk, spare_bytes=need.spare_bytes(left))
    swapped = 0 if _holds_experts_of_decode(need, left, chunk) else need.image_weight_bytes
    return Placement(left + swapped, chunk, swapped_bytes=swapped)


def _holds_experts_of_decode(need: MemoryNeed, left: int, chunk_tokens: int) -> bool:
    """Whether these bytes hold every expert of decode besides a conversation: more of them gain nothing."""
    enough = max(need.text_expert_bytes, need.least_expert_bytes or 0)
    return left >= enough + need.prefill_bytes(chunk_tokens)


def _refusal(memory: AvailableMemory, need: MemoryNeed, whole: MemoryNeed, least: int) -> DoesNotFit:
    smaller = f"a smaller context, {parameter('kv_dtype', 'int8')}"
    if need.image_tokens:
        smaller += ", fewer or smaller images"
    if memory.limit_name is None:
        available = f"{format_bytes(memory.total)} are available"
        close = "close other programs, or raise the limit of the container"
        limits = ", ".join(_sufficient_limits(memory, whole, least))
        hint = f"{limits or close}, or take {smaller} or a smaller checkpoint"
    else:
        rounded = -(-least // (64 * MIB)) * 64
        available = f"{parameter(memory.limit_name)} is {format_bytes(memory.total)}"
        hint = f"{parameter(memory.limit_name, f'{rounded}MiB')}, {smaller}"
    what = f"the model needs at least {format_bytes(least)} of memory, {available}"
    if need.expert_bytes and need.least_expert_bytes is None:
        return unpaged_refusal(what, need.expert_bytes, hint)
    return DoesNotFit(
        what,
        f"every token reads {format_bytes(need.dense_bytes - need.image_weight_bytes)} of weights, the KV "
        f"cache takes {format_bytes(need.cache_bytes)}, and the rest is the experts of one token, workspace "
        "and the process itself",
        hint,
    )


def unpaged_refusal(what: str, expert_bytes: int, hint: str) -> DoesNotFit:
    """The error for too little memory, where experts are stored as another tool quantized them."""
    return DoesNotFit(
        what,
        f"its {format_bytes(expert_bytes)} of experts are dequantized as they are read, and cannot be paged",
        f"let `ernie-local quantize` make a checkpoint that is paged: it reads layer by layer; or {hint}",
    )


def _sufficient_limits(ram: AvailableMemory, whole: MemoryNeed, least: int) -> Iterator[str]:
    """Arguments that leave less to others; none where all that is free is too little.

    least: with a usual conversation, which is all that is asked for without a limit.
    """
    most = ram.used + (ram.free or 0)
    if (spare := (most - least) // MIB) > 0:
        yield parameter("reserve", f"{spare}MiB")
    if (enough := -(-least_total(whole, ram.used) // MIB)) * MIB <= most:
        yield parameter("ram", f"{enough}MiB")
