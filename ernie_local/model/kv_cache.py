"""Keys and values of the tokens seen so far, preallocated: 32-bit, 16-bit, or int8 with scales.

Knows nothing of attention or of what the tokens were. What is written is what is attended to: a token's own
keys pass through the stored format too, so cutting a prompt into other chunks does not change the result.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ernie_local.config import TextConfig
from ernie_local.kernels.huge_pages import empty_bytes
from ernie_local.model.memory_use import KVSize

KV_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
_INT8_LARGEST = 127


class LayerStorage(NamedTuple):
    """One layer's rows, lent to be read and written in place: (kv_heads, capacity, head_dim) each.

    Scales, (kv_heads, capacity, 1), only with int8.
    """

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None


class KVCache:
    """Room for `capacity` tokens in every layer. `length` counts the tokens that later tokens may see."""

    def __init__(self, config: TextConfig, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        assert dtype in KV_DTYPES.values(), dtype
        # (layers, key | value, kv_heads, tokens, head_dim): one head's tokens lie together, as attention
        # reads them.
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity = capacity
        self.dtype = dtype
        self.length = 0
        self._size = KVSize.of(config, capacity, dtype.itemsize)
        self._states = _empty(shape, dtype, device)
        self._scales: torch.Tensor | None = None
        if dtype == torch.int8:
            self._scales = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
        # Made once: a view costs as much as any small operation, and decode asks for every layer's each time.
        self._layers = [self._layer_storage(layer_id) for layer_id in range(config.num_hidden_layers)]

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole allocation."""
        return self._states.nbytes + (0 if self._scales is None else self._scales.nbytes)

    def touched_bytes(self, num_tokens: int) -> int:
        """Memory that is really taken once so many tokens have been stored."""
        return self._size.touched_bytes(num_tokens)

    def append(
        self, layer_id: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new states behind the visible ones; give back all of this layer, old and new.

        keys, values: (tokens, kv_heads, head_dim). Returns (kv_heads, length + tokens, head_dim) in their
        dtype, views of the cache where the dtypes agree. `length` stays until `advance`, when all layers have
        written.
        """
        end = self.length + keys.shape[0]
        assert end <= self.capacity, (end, self.capacity)
        states = torch.stack((keys, values)).transpose(1, 2)  # (2, kv_heads, tokens, head_dim)
        if self._scales is None:
            self._states[layer_id, :, :, self.length : end] = states.to(self.dtype)
            stored = self._states[layer_id, :, :, :end].to(keys.dtype)
        else:
            # Without a least scale a state of zeros would be 0 / 0, and NaN as int8 is undefined.
            largest = states.abs().amax(-1, keepdim=True).float()
            scales = (largest / _INT8_LARGEST).clamp_min(torch.finfo(torch.float32).tiny)
            self._scales[layer_id, :, :, self.length : end] = scales
            self._states[layer_id, :, :, self.length : end] = torch.round(states.float() / scales).to(
                torch.int8
            )
            exact = self._states[layer_id, :, :, :end].float() * self._scales[layer_id, :, :, :end]
            stored = exact.to(keys.dtype)
        return stored[0], stored[1]

    def storage(self, layer_id: int) -> LayerStorage:
        """This layer's rows, for an operator that stores and attends at once; it writes at `length`."""
        return self._layers[layer_id]

    def _layer_storage(self, layer_id: int) -> LayerStorage:
        keys, values = self._states[layer_id]
        if self._scales is None:
            return LayerStorage(keys, values, None, None)
        return LayerStorage(keys, values, *self._scales[layer_id])

    def advance(self, num_tokens: int) -> None:
        """Make the tokens that every layer has appended visible."""
        assert self.length + num_tokens <= self.capacity
        self.length += num_tokens

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, (length, self.length)
        self.length = length


def _empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    # Attention streams it like weights. Memory is taken in steps of 2 MiB for each head's keys and values.
    return empty_bytes(math.prod(shape) * dtype.itemsize).view(dtype).view(shape)


def kv_bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Bytes that one token takes over all layers: computed, exact."""
    return KVSize.of(config, 1, dtype.itemsize).bytes_per_token
