"""Keeps keys and values of the tokens seen so far: 32-bit, 16-bit, or int8 with scales; whole, or growing.

Beside a GPU, the rows of the first layers may lie in RAM.
What is written is what is attended to: a token's own keys pass through the stored format too, so cutting a
prompt into other chunks does not change the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ernie_local.config import TextConfig
from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.memory import empty_bytes
from ernie_local.model.memory_use import KV_ITEM_BYTES, KVSize, grown_tokens

KV_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in KV_ITEM_BYTES}
_INT8_LARGEST = 127


class CacheLayout:
    """states: (layers, key | value, kv_heads, capacity, head_dim): one head's tokens lie together.

    As attention reads them. scales: (layers, key | value, kv_heads, capacity, 1) float32, only with int8.
    """

    def __init__(self, states: Tensor, scales: Tensor | None) -> None:
        self.states = states
        self.scales = scales
        # Made once: a view costs as much as any small operation, and decode asks for every layer's each time.
        self.layers = tuple(
            LayerStorage(*states[layer_id], *((None, None) if scales is None else scales[layer_id]))
            for layer_id in range(states.shape[0])
        )

    @staticmethod
    def allocate(size: KVSize, config: TextConfig, dtype: torch.dtype, device: torch.device) -> CacheLayout:
        """In new memory, not initialised."""
        shape = _shape(size, config)
        scales = None
        if dtype == torch.int8:
            scales = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
        if device.type != "cpu":
            return CacheLayout(torch.empty(shape, dtype=dtype, device=device), scales)
        # Streamed like weights. Memory is taken in steps of 2 MiB for each head's keys and values.
        memory = empty_bytes(math.prod(shape) * dtype.itemsize)
        return CacheLayout(memory.view(dtype).view(shape), scales)

    @staticmethod
    def inside(memory: Tensor, size: KVSize, config: TextConfig, dtype: torch.dtype) -> CacheLayout:
        """memory: (num_bytes,) uint8, exactly what it takes (KVSize.num_bytes): states first, then scales."""
        shape = _shape(size, config)
        states_bytes = math.prod(shape) * dtype.itemsize
        states = memory[:states_bytes].view(dtype).view(shape)
        scales = None
        if dtype == torch.int8:
            scales = memory[states_bytes:].view(torch.float32).view(*shape[:-1], 1)
        return CacheLayout(states, scales)

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        return self.states.shape[3]

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.states.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, length: int) -> list[Tensor]:
        """The first `length` tokens of every row, (length, head_dim or 1), in the order of addresses."""
        rows = list(self.states.flatten(0, 2)[:, :length])
        return rows if self.scales is None else rows + list(self.scales.flatten(0, 2)[:, :length])


class RowMove:
    """Copies the rows of one layout into another, one after the other, each through a buffer.

    The layouts may share memory if both end at the same byte and the new one is larger: then each row moves
    to a lower address and ends before the next one begins, so that copying in ascending order overwrites no
    row that is still to be copied.
    """

    def __init__(self, old: CacheLayout, new: CacheLayout, length: int) -> None:
        """length: tokens of each row to copy. Copies nothing yet, but allocates all memory for it."""
        assert length <= min(old.capacity, new.capacity), (length, old.capacity, new.capacity)
        sources, targets = (old.rows(length), new.rows(length)) if length else ([], [])
        by_dtype = {row.dtype: row for row in sources}
        buffers = {dtype: torch.empty_like(row) for dtype, row in by_dtype.items()}
        # Target and source of each copy. Each may be repeated as long as the next one has not begun.
        self._copies = [
            copy
            for source, target in zip(sources, targets, strict=True)
            for copy in ((buffers[source.dtype], source), (target, buffers[source.dtype]))
        ]

    def finish(self) -> None:
        """Copy all that is not copied yet. After Ctrl-C it can be called again."""
        while self._copies:
            target, source = self._copies[0]
            target.copy_(source)
            del self._copies[0]


class CacheMemory(Protocol):
    """Memory lent to one cache, as much as it needs at the moment."""

    def resize(self, num_bytes: int) -> Tensor:
        """(num_bytes,) uint8 for the cache, which has its rows where they were until `use_resized`.

        DoesNotFit, with nothing changed, if there is not enough. Memory lent before keeps its bytes until the
        next call or the first write to the new memory. Where both overlap they end at the same byte.
        """
        ...

    def use_resized(self, memory: Tensor) -> None:
        """The rows are in `memory`, which `resize` gave; it may be said twice."""
        ...

    def on_move(self, follow: Callable[[Tensor], None]) -> None:
        """Between forwards the bytes may be copied elsewhere: `follow` gets that memory, as large as before.

        It is a method, whose object is not kept alive.
        """
        ...

    def keep_in_ram(self, num_bytes: int) -> None:
        """Count so much of RAM for rows that lie there, until the cache is gone.

        DoesNotFit, with nothing changed, for more than was left to caches.
        """
        ...


class KVCache:
    """Room for `capacity` tokens in every layer. `length` counts the tokens that later tokens may see."""

    def __init__(
        self,
        config: TextConfig,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: CacheMemory | None = None,
        host_layers: int = 0,
    ) -> None:
        """memory: where the cache lies, and grows by `reserve`; None for its own, allocated whole.

        host_layers: layers, from the first one on, whose rows lie in RAM, allocated whole, wherever the
        others lie.
        """
        assert dtype in KV_DTYPES.values(), dtype
        self.capacity = capacity
        self.dtype = dtype
        self.length = 0
        self.host_layers = host_layers
        self._config = config
        self._memory = memory
        sizes = KVSize.of(config, capacity, dtype.itemsize).split(config, host_layers)
        self._host_size, self._size = sizes
        size = self._size if memory is None else self._size.holding(0)
        self._host = CacheLayout.allocate(self._host_size, config, dtype, torch.device("cpu"))
        self._layout = CacheLayout.allocate(size, config, dtype, device)
        if memory is not None:
            memory.on_move(self._follow)

    @property
    def is_lent(self) -> bool:
        """Whether it lies in memory that was lent, as on a GPU."""
        return self._memory is not None

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole allocation, as large as it is now."""
        return self._host.num_bytes + self._layout.num_bytes

    def touched_bytes(self, num_tokens: int) -> int:
        """Memory of its own that is in use once so many tokens have been stored.

        0 where memory was lent: the lender counts it.
        """
        if self._memory is not None:
            return 0
        return self._host_size.touched_bytes(num_tokens) + self._size.touched_bytes(num_tokens)

    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` in all, the visible ones included. Call it between forwards.

        A cache in lent memory grows in steps, and shrinks when it is empty. What `storage` returned before is
        invalid then. DoesNotFit, with the cache unchanged, if there is no memory; RAM
        counted for rows of host layers stays counted. Ctrl-C waits for the move.
        """
        assert self.length <= num_tokens <= self.capacity, (self.length, num_tokens, self.capacity)
        if self._memory is None:
            return
        self._memory.keep_in_ram(self._host_size.touched_bytes(num_tokens))
        wanted, now = grown_tokens(num_tokens, self.capacity), self._layout.capacity
        if wanted == now or (wanted < now and self.length):
            return
        size = self._size.holding(wanted)
        memory = self._memory.resize(size.num_bytes)
        layout = CacheLayout.inside(memory, size, self._config, self.dtype)
        self._move_to(layout, partial(self._memory.use_resized, memory))

    def _follow(self, memory: Tensor) -> None:
        size = self._size.holding(self._layout.capacity)
        self._layout = CacheLayout.inside(memory, size, self._config, self.dtype)

    def _move_to(self, layout: CacheLayout, tell: Callable[[], None]) -> None:
        move = RowMove(self._layout, layout, self.length)
        interruption: KeyboardInterrupt | None = None
        is_told = False
        while not is_told:
            try:
                move.finish()
                self._layout = layout
                tell()
                is_told = True
            except KeyboardInterrupt as error:  # a half-moved cache would be lost
                interruption = error
        if interruption is not None:
            raise interruption

    def append(self, layer_id: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """As `store`; gives back all of this layer, old and new.

        Returns (kv_heads, length + tokens, head_dim) in the dtype of keys, views of the cache where that is
        its own.
        """
        self.store(layer_id, keys, values)
        states, scales = self._rows_of(layer_id)
        stored = states[:, :, : self.length + keys.shape[0]]
        if scales is not None:
            stored = stored.float() * scales[:, :, : stored.shape[2]]
        stored = stored.to(keys.dtype)
        return stored[0], stored[1]

    def store(self, layer_id: int, keys: Tensor, values: Tensor) -> None:
        """Store new states behind the visible ones.

        keys, values: (tokens, kv_heads, head_dim). `length` stays until `advance`, when all layers have
        written.
        """
        end = self.length + keys.shape[0]
        assert end <= self._layout.capacity, (end, self._layout.capacity)
        layer_states, layer_scales = self._rows_of(layer_id)
        states = torch.stack((keys, values)).transpose(1, 2)  # (2, kv_heads, tokens, head_dim)
        if layer_scales is None:
            layer_states[:, :, self.length : end] = states.to(self.dtype)
        else:
            # Without a least scale a state of zeros would be 0 / 0, and NaN as int8 is undefined.
            largest = states.abs().amax(-1, keepdim=True).float()
            scales = (largest / _INT8_LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
            layer_scales[:, :, self.length : end] = scales
            layer_states[:, :, self.length : end] = torch.round(states.float() / scales).to(torch.int8)

    def row_bytes(self, num_tokens: int) -> int:
        """Bytes of the rows of so many tokens: exact."""
        return num_tokens * (self._host_size.bytes_per_token + self._size.bytes_per_token)

    def read_rows(self, start: int, stop: int) -> Iterator[Tensor]:
        """The rows of these visible tokens, piece by piece: copies on the CPU, contiguous.

        For each layer (2, kv_heads, tokens, head_dim), with int8 then the scales, (2, kv_heads, tokens, 1).
        """
        assert 0 <= start <= stop <= self.length, (start, stop, self.length)
        for rows in self._pieces(start, stop):
            yield rows.to("cpu", copy=True).contiguous()

    def write_rows(self, num_tokens: int) -> Iterator[Tensor]:
        """Pieces as of `read_rows`, to be filled one by one, of tokens behind the visible ones.

        Each is copied into its place when the next one is asked for; call `advance` after the last one.
        """
        for rows in self._pieces(self.length, self.length + num_tokens):
            piece = torch.empty(rows.shape, dtype=rows.dtype, device="cpu")
            yield piece
            rows.copy_(piece)

    def _pieces(self, start: int, stop: int) -> Iterator[Tensor]:
        for layer_id in range(self._config.num_hidden_layers):
            for part in range(2):
                rows = self._rows_of(layer_id)[part]  # anew: rows may move while the caller has a piece
                if rows is not None:
                    yield rows[:, :, start:stop]

    def _rows_of(self, layer_id: int) -> tuple[Tensor, Tensor | None]:
        """States and scales of this layer, (2, kv_heads, capacity, head_dim or 1)."""
        layout, index = self._place(layer_id)
        return layout.states[index], None if layout.scales is None else layout.scales[index]

    def _place(self, layer_id: int) -> tuple[CacheLayout, int]:
        """The layout that has the layer's rows, and its number there."""
        if layer_id < self.host_layers:
            return self._host, layer_id
        return self._layout, layer_id - self.host_layers

    def storage(self, layer_id: int) -> LayerStorage:
        """This layer's rows, for an operator that stores and attends at once; it writes at `length`.

        Valid until the next `reserve`, which may move them: ask again in every forward. The same object as
        long as they did not move.
        """
        layout, index = self._place(layer_id)
        return layout.layers[index]

    def advance(self, num_tokens: int) -> None:
        """Make the tokens that every layer has appended visible."""
        assert self.length + num_tokens <= self._layout.capacity
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length


def kv_bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes over all layers: computed, exact."""
    return KVSize.of(config, 1, dtype.itemsize).bytes_per_token


def _shape(size: KVSize, config: TextConfig) -> tuple[int, int, int, int, int]:
    heads = config.num_key_value_heads
    return size.rows // (2 * heads), 2, heads, size.capacity, config.head_dim
