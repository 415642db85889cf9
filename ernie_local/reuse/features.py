"""Keeps features of images in memory, those that were used last, up to a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch


class FeatureMemory:
    """Features, (tokens, hidden_size) each, by a key that says all that they depend on.

    Several threads may use it at once.
    """

    def __init__(self, limit_bytes: int) -> None:
        """limit_bytes: of all features together; 0 keeps none."""
        self.limit_bytes = limit_bytes
        self._features: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of what is kept now."""
        return sum(features.nbytes for features in self._features.values())

    def find(self, key: str) -> torch.Tensor | None:
        """What was kept by this key; None where it was not, or gave way to others."""
        with self._lock:
            features = self._features.get(key)
            if features is not None:
                self._features.move_to_end(key)
            return features

    def keep(self, key: str, features: torch.Tensor) -> None:
        """Keep these; those that were not used for the longest time give way."""
        if features.nbytes > self.limit_bytes:
            return
        with self._lock:
            self._features.pop(key, None)
            while self.num_bytes + features.nbytes > self.limit_bytes:
                self._features.popitem(last=False)
            self._features[key] = features
