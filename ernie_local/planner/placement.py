"""What a model takes in memory, whether its experts are paged, and the refusal of what does not fit.

Decided before anything is read. Weights and KV cache are counted exactly, the memory to compute in by a
rule that was measured, the process as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.config import TextConfig
from ernie_local.errors import DoesNotFit
from ernie_local.model.memory_use import DEFAULT_CHUNK_TOKENS, attention_bytes
from ernie_local.planner.free_memory import free_memory, process_memory
from ernie_local.sizes import GIB, MIB, format_bytes

DEFAULT_RESERVE = GIB  # left to other programs where nobody said how much
# Of an allocator's leftovers, threads' stacks and modules imported late.
SLACK_BYTES = 128 * MIB
_SMALLEST_CHUNK = 128
_WORKING_SHARE = 10  # a prompt's chunk may take one in so many of the bytes that experts could have
# Where no limit was named a conversation is taken to grow to this before experts have to make room.
_EXPECTED_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes: of all weights but routed experts, of these, of the KV cache at its full length.

    least_expert_bytes: with which experts can be paged; None where they cannot. prompt_bytes: what the
    largest prompt takes for a while (`prompt_room`); paged experts make room for it, resident ones cannot.
    context_size: tokens of the cache, which the longest text is attended to at once. Both 0 where what a
    prompt takes is counted elsewhere.
    """

    dense_bytes: int
    expert_bytes: int
    kv_cache_bytes: int
    least_expert_bytes: int | None
    prompt_bytes: int = 0
    context_size: int = 0

    @property
    def weight_bytes(self) -> int:
        """All weights."""
        return self.dense_bytes + self.expert_bytes


@dataclass(frozen=True, slots=True)
class Placement:
    """paged_bytes: memory that experts share with conversations and images; None where all are resident.

    gpu_bytes: of a second memory, a GPU's or one that stands for it, where experts are paged through two;
    then conversations share that one. On a GPU it is only their KV cache that does, which takes up to
    gpu_cache_bytes of it, and all else has gpu_room_bytes beside it; None where there is no GPU.
    """

    paged_bytes: int | None
    chunk_tokens: int
    gpu_bytes: int | None = None
    gpu_room_bytes: int | None = None
    gpu_cache_bytes: int | None = None


def expected_tokens(limit: int | None, context_size: int) -> int:
    """How many tokens a conversation is taken to have where memory is shared out: all, or a usual number."""
    return context_size if limit is not None else min(context_size, _EXPECTED_TOKENS)


def working_bytes(config: TextConfig, chunk_tokens: int) -> int:
    """About what a chunk of a prompt takes while a layer is computed.

    Hidden states and what attention makes of them, and the widest layer's inner activations with their int8
    copies. Measured with the 28B model's sizes: 0.25 MiB a token, which this is within a tenth.
    """
    widest = max((bank.expert_size for bank in config.banks), default=0)
    routed = config.experts_per_token * widest + config.shared_expert_size
    inner = max(config.intermediate_size, routed)
    return chunk_tokens * (48 * config.hidden_size + 10 * inner)


def place_in_ram(
    need: MemoryNeed,
    config: TextConfig,
    limit: int | None,
    reserve: int = DEFAULT_RESERVE,
    chunk_tokens: int | None = None,
    *,
    process: int | None = None,
    free: int | None = None,
    option: str | None = "ram",
) -> Placement:
    """Where experts go, and the size of chunks, so that the process stays below `limit` for good.

    limit: of the whole process; None for what is free now, less `reserve`. chunk_tokens: None for as many as
    suit the memory. process, free: bytes that the process has and that are free beside it; None for those of
    this process now. option: what the limit is called, None for one that nobody set. DoesNotFit, with the
    numbers, where even paging does not help.
    """
    process = process_memory() if process is None else process
    free = free_memory() if free is None else free
    allowed = process + max(0, free - reserve) if limit is None else limit
    num_tokens = expected_tokens(limit, need.context_size)
    cache_bytes = need.kv_cache_bytes
    if need.context_size:
        cache_bytes = cache_bytes * num_tokens // need.context_size
    chunk = DEFAULT_CHUNK_TOKENS if chunk_tokens is None else chunk_tokens
    fixed = _fixed_bytes(need, process)
    resident = need.expert_bytes + cache_bytes + _kept_bytes(need)
    if fixed + working_bytes(config, chunk) + resident <= allowed:
        return Placement(None, chunk)
    left = allowed - fixed

    def paged_bytes(chunk: int) -> int:
        """The least that experts and the conversation have together."""
        return _floor_bytes(need) + cache_bytes + attention_bytes(config, chunk, num_tokens)

    def is_large(chunk: int) -> bool:
        working = working_bytes(config, chunk)
        return working * _WORKING_SHARE > left or working + paged_bytes(chunk) > left

    while chunk_tokens is None and chunk > _SMALLEST_CHUNK and is_large(chunk):
        chunk //= 2
    left -= working_bytes(config, chunk)
    least = paged_bytes(chunk)
    if left < least:
        raise _refused(need, allowed, None if limit is None else option, allowed - left + least)
    if left >= resident:
        return Placement(None, chunk)
    if limit is not None and limit - process > free:
        raise DoesNotFit(
            f"the ram limit is {format_bytes(limit)}, but the process has {format_bytes(process)} and "
            f"{format_bytes(free)} are free",
            "experts would fill the limit, and swapping makes every token take minutes",
            "ram auto, or a limit of what is free",
        )
    return Placement(left, chunk)


def least_limit(need: MemoryNeed, config: TextConfig, process: int) -> int:
    """The smallest limit that `place_in_ram` takes for a process that has so many bytes."""
    attention = attention_bytes(config, _SMALLEST_CHUNK, need.context_size)
    working = working_bytes(config, _SMALLEST_CHUNK) + attention
    return _fixed_bytes(need, process) + working + _floor_bytes(need) + need.kv_cache_bytes


def resident_limit(need: MemoryNeed, config: TextConfig, process: int) -> int:
    """A limit with which every expert is in memory, and chunks are as large as they get."""
    working = working_bytes(config, DEFAULT_CHUNK_TOKENS)
    return _fixed_bytes(need, process) + working + need.expert_bytes + need.kv_cache_bytes + _kept_bytes(need)


def place_on_gpu(
    need: MemoryNeed,
    config: TextConfig,
    gpu_limit: int,
    limit: int | None,
    reserve: int = DEFAULT_RESERVE,
    chunk_tokens: int | None = None,
    *,
    process: int | None = None,
    free: int | None = None,
    option: str | None = "vram",
) -> Placement:
    """As `place_in_ram` where all but experts, and as many of these as fit, lie in `gpu_limit` bytes.

    The others lie in what the process may have beside that, or on disk. option: what gpu_limit is called.
    """
    process = process_memory() if process is None else process
    free = free_memory() if free is None else free
    on_gpu = place_in_ram(need, config, gpu_limit, 0, chunk_tokens, process=0, free=gpu_limit, option=option)
    if on_gpu.paged_bytes is None:
        return on_gpu
    assert need.least_expert_bytes is not None, "what cannot be paged is resident, or was refused"
    allowed = process + max(0, free - reserve) if limit is None else limit
    left = allowed - process - SLACK_BYTES
    if left < need.least_expert_bytes:
        raise DoesNotFit(
            f"{format_bytes(max(0, left))} of memory are left for experts beside the GPU, "
            f"{format_bytes(need.least_expert_bytes)} are needed",
            "what the GPU does not hold passes through memory, the experts of one token at least",
            f"ram {-(-(process + SLACK_BYTES + need.least_expert_bytes) // MIB)}MiB or more",
        )
    return Placement(left, on_gpu.chunk_tokens, on_gpu.paged_bytes)


def _fixed_bytes(need: MemoryNeed, process: int) -> int:
    """What is there wherever experts go."""
    return process + need.dense_bytes + SLACK_BYTES


def _kept_bytes(need: MemoryNeed) -> int:
    """What is kept free for a prompt where experts are resident, if there is the choice to page them."""
    return 0 if need.least_expert_bytes is None else need.prompt_bytes


def _floor_bytes(need: MemoryNeed) -> int:
    """The least memory for experts."""
    return need.expert_bytes if need.least_expert_bytes is None else need.least_expert_bytes


def _refused(need: MemoryNeed, allowed: int, option: str | None, least: int) -> DoesNotFit:
    rounded = -(-least // (64 * MIB)) * 64 * MIB
    there = (
        f"the {option} limit is {format_bytes(allowed)}"
        if option is not None
        else f"{format_bytes(allowed)} can be had"
    )
    return DoesNotFit(
        f"the model needs {format_bytes(least)} of memory at least, {there}",
        f"of it {format_bytes(need.dense_bytes)} are weights that every token reads, "
        f"{format_bytes(need.kv_cache_bytes)} the KV cache of the whole context, the rest is experts of one "
        "token, room to compute in and the process itself",
        f"{option} {rounded // MIB}MiB, a smaller context, or kv_dtype int8"
        if option is not None
        else "close other programs, or take a smaller context, kv_dtype int8 or a smaller checkpoint",
    )
