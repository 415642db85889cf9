"""The memory that encoding takes where torch computes attention, as on a GPU, against the rule for it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ernie_local.model.memory_use import encoding_bytes
from ernie_local.model.vision import Resampler, VisionTower
from ernie_local.planner.model_size import published_model
from ernie_local.sizes import MIB
from tests.draws import rest_slow


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that live at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        self.peak = max(self.peak, self._live)
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:
            self._known.add(storage)
            self._live += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, num_bytes: int) -> None:
        self._live -= num_bytes


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    rest_slow(
        [
            *product([30], [30], (torch.float32, torch.bfloat16)),
            *product([50], [72], (torch.float32, torch.bfloat16)),
            (84, 132, torch.bfloat16),
            (84, 132, torch.float32),
        ],
        5,
    ),
)
@pytest.mark.filterwarnings("ignore:CUDA page-locks no memory")
def test_encoding_takes_what_is_kept_for_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, columns: int
) -> None:
    """At full width, without values (meta); a GPU's attention holds nothing of patches times patches."""
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda q, _k, _v: torch.empty_like(q))
    published = published_model().config
    # Each block takes the same memory.
    config = replace(published, tower=replace(published.vision, depth=3))
    patches, grids = rows * columns, [(1, rows, columns)]
    with torch.device("meta"):
        tower, resampler = VisionTower(config.vision).to(dtype), Resampler(config).to(dtype)
    values = torch.empty(patches, config.vision.patch_values)
    with torch.inference_mode(), LiveBytes() as live:
        features = resampler(tower(values, grids), grids)
    kept = encoding_bytes(config.vision, [patches], dtype.itemsize)
    taken = live.peak - features.nbytes
    assert taken < kept
    assert patches < 3600 or taken > 0.6 * kept
    if (patches, dtype) == (11088, torch.bfloat16):
        assert kept < 200 * MIB
