"""How a KV cache lies in memory, and its way into other memory that may overlap the memory it leaves.

Owns the order of rows and of copies. Knows nothing of what the tokens were or of who lends the memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ernie_local.config import TextConfig
from ernie_local.kernels.arguments import LayerStorage
from ernie_local.kernels.memory import empty_bytes


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """states: (layers, key | value, kv_heads, capacity, head_dim): one head's tokens lie together.

    As attention reads them. scales: (layers, key | value, kv_heads, capacity, 1) float32, only with int8.
    """

    states: torch.Tensor
    scales: torch.Tensor | None
    layers: tuple[LayerStorage, ...]

    @staticmethod
    def allocate(config: TextConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> CacheLayout:
        """In new memory, not initialised."""
        shape = _shape(config, capacity)
        scales = None
        if dtype == torch.int8:
            scales = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
        return _with_views(_empty(shape, dtype, device), scales)

    @staticmethod
    def inside(memory: torch.Tensor, config: TextConfig, capacity: int, dtype: torch.dtype) -> CacheLayout:
        """memory: (num_bytes,) uint8, exactly what it takes (KVSize.num_bytes): states first, then scales."""
        shape = _shape(config, capacity)
        states_bytes = math.prod(shape) * dtype.itemsize
        states = memory[:states_bytes].view(dtype).view(shape)
        scales = None
        if dtype == torch.int8:
            scales = memory[states_bytes:].view(torch.float32).view(*shape[:-1], 1)
        return _with_views(states, scales)

    @property
    def capacity(self) -> int:
        """Tokens of a row."""
        return self.states.shape[3]

    @property
    def num_bytes(self) -> int:
        """Bytes of all rows."""
        return self.states.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def rows(self, length: int) -> list[torch.Tensor]:
        """The first `length` tokens of every row, (length, head_dim or 1), in the order of addresses."""
        rows = list(self.states.flatten(0, 2)[:, :length])
        return rows if self.scales is None else rows + list(self.scales.flatten(0, 2)[:, :length])


class RowMove:
    """The rows of one layout on their way into another, one after the other, each through a buffer.

    The layouts may share memory if both end at the same byte and the new one is larger: then each row goes to
    a lower address than it had and ends before the next one begins, so that in ascending order nothing is
    overwritten that is still to be copied.
    """

    def __init__(self, old: CacheLayout, new: CacheLayout, length: int) -> None:
        """length: tokens of each row to bring over. Copies nothing yet, but takes all memory for it."""
        assert length <= min(old.capacity, new.capacity), (length, old.capacity, new.capacity)
        self._sources, self._targets = (old.rows(length), new.rows(length)) if length else ([], [])
        by_dtype = {row.dtype: row for row in self._sources}
        self._buffers = {dtype: torch.empty_like(row) for dtype, row in by_dtype.items()}
        self._num_done = 0
        self._in_buffer = -1  # the row that the buffer holds

    def finish(self) -> None:
        """Copy all that is not copied yet. Where Ctrl-C ended it, it can be called again."""
        while self._num_done < len(self._sources):
            index = self._num_done
            source = self._sources[index]
            buffer = self._buffers[source.dtype]
            if self._in_buffer != index:
                buffer.copy_(source)
                self._in_buffer = index
            self._targets[index].copy_(buffer)
            self._num_done = index + 1


def _shape(config: TextConfig, capacity: int) -> tuple[int, int, int, int, int]:
    return (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)


def _with_views(states: torch.Tensor, scales: torch.Tensor | None) -> CacheLayout:
    # Made once: a view costs as much as any small operation, and decode asks for every layer's each time.
    layers = tuple(
        LayerStorage(*states[layer_id], *((None, None) if scales is None else scales[layer_id]))
        for layer_id in range(states.shape[0])
    )
    return CacheLayout(states, scales, layers)


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # Attention streams it like weights. Memory is taken in steps of 2 MiB for each head's keys and values.
    return empty_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)
