"""Finds and keeps the results of one loaded model, for all of its chats: in memory, and in a cache folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ernie_local.progress import OnProgress
from ernie_local.reuse.cache_folder import CacheFolder
from ernie_local.reuse.features import FeatureMemory
from ernie_local.reuse.identity import computation, digest_of
from ernie_local.reuse.model_hash import ModelHash


class ModelCache:
    """A cache folder, and what tells the results of one model in it from those of others."""

    def __init__(self, folder: CacheFolder, directory: Path, choices: str) -> None:
        """directory: of the model, whose weights are still to be loaded; OSError where it cannot be read.

        choices: everything that was chosen at loading and changes what is computed.
        """
        self.folder = folder
        self.hash = ModelHash(directory, folder)
        self.choices = choices


class KeptResults:
    """Results of a loaded model. Several threads may use them at once."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, memory_bytes: int = 0, cache: ModelCache | None = None
    ) -> None:
        """device, dtype: of the computation. memory_bytes: for features of images. cache: on disk, if any."""
        self.memory = FeatureMemory(memory_bytes)
        self._device, self._dtype, self._cache = device, dtype, cache
        self._unwritten: set[str] = set()  # keys of features from before the model's hash was known
        self._lock = threading.Lock()

    @property
    def folder(self) -> CacheFolder | None:
        """Where results are stored; None where they are not."""
        return None if self._cache is None else self._cache.folder

    def has_features(self, image_key: str) -> bool:
        """Whether `find_features` will very likely find them."""
        key = self._features_key(image_key)
        name = self._features_name(key)
        return self.memory.find(key) is not None or (
            name is not None and self.folder is not None and name in self.folder.names()
        )

    def find_features(self, image_key: str, shape: tuple[int, int]) -> torch.Tensor | None:
        """What the model sees of an image, (tokens, hidden_size), on the CPU; None where it is not known.

        image_key: a hash of its pixels and of all that made patches of them. shape: of the result.
        """
        key = self._features_key(image_key)
        features = self.memory.find(key)
        name = self._features_name(key)
        if features is not None or name is None or self.folder is None:
            return features
        stored = torch.empty(shape, dtype=self._dtype, device="cpu")
        if not self.folder.read(name, stored.nbytes, [bytes_of(stored)]):
            return None
        self.memory.keep(key, stored)
        return stored

    def keep_features(self, image_key: str, features: torch.Tensor) -> None:
        """Keep what the model sees of an image, (tokens, hidden_size)."""
        key = self._features_key(image_key)
        copied = features.detach().to("cpu", copy=True).contiguous()
        self.memory.keep(key, copied)
        if not self._write_features(key, copied):
            with self._lock:
                self._unwritten.add(key)

    def identify(self, on_progress: OnProgress | None, should_stop: Callable[[], bool]) -> bool:
        """Find the model's hash, on which all names in the folder depend; whether results can be stored.

        It may read all files of the model. Features from before are stored now, if they are still kept.
        """
        if self._cache is None or self._cache.hash.find(on_progress, should_stop) is None:
            return False
        with self._lock:
            keys, self._unwritten = self._unwritten, set()
        for key in keys:
            features = self.memory.find(key)
            if features is not None:
                self._write_features(key, features)
        return True

    def prefix_root(self, kv_dtype: torch.dtype, vision_rule: str) -> str | None:
        """What keys and values depend on besides tokens and images; None while nothing can be found."""
        if self._cache is None or self._cache.hash.value is None:
            return None
        same = computation(self._device, self._dtype)
        return digest_of(self._cache.hash.value, same, self._cache.choices, kv_dtype, vision_rule)

    def _write_features(self, key: str, features: torch.Tensor) -> bool:
        name = self._features_name(key)
        if name is None or self.folder is None:
            return False
        self.folder.write(name, features.nbytes, [bytes_of(features)])
        return True

    def _features_key(self, image_key: str) -> str:
        return digest_of(image_key, computation(self._device, self._dtype))

    def _features_name(self, key: str) -> str | None:
        """Of the entry in the folder; None while the model's hash is not known."""
        if self._cache is None or self._cache.hash.value is None:
            return None
        return f"features-{digest_of(self._cache.hash.value, self._cache.choices, key)}"


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return tensor.view(-1).view(torch.uint8).numpy().data
