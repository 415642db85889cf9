"""What a piece of work was made from, as short texts: equal exactly if going on with it is sound.

Knows files and tensors as bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

import torch

import ernie_local
from ernie_local.config import QuantizationConfig
from ernie_quant.foreign import FOREIGN_PACKAGES
from ernie_quant.recipe import Recipe
from ernie_quant.token_table import TokenSequence

_SAMPLES = 64
_SAMPLE_BYTES = 64 << 10


def source_identity(directory: Path) -> str:
    """Of config.json and all weight files: sizes, and evenly spaced samples of their bytes.

    Reading 58 GB to begin would cost minutes; another checkpoint differs in every sample.
    """
    digest = hashlib.sha256((directory / "config.json").read_bytes())
    for path in sorted(directory.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def calibration_identity(sequences: Iterable[TokenSequence]) -> str:
    """Of ids and pixels, in order."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(json.dumps(sequence.token_ids).encode())
        for patches in sequence.patches:
            digest.update(patches.pixel_values.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_identity(tables: QuantizationConfig, recipe: Recipe) -> str:
    """Of the format of every weight and of how codes are chosen."""
    return hashlib.sha256(json.dumps([tables.to_json(), repr(recipe)], sort_keys=True).encode()).hexdigest()


def version_identity(recipe: Recipe | None = None) -> str:
    """Versions whose arithmetic the bytes depend on, those of the library that a recipe uses among them."""
    versions = f"ernie-local {ernie_local.__version__}, torch {torch.__version__}"
    package = None if recipe is None else FOREIGN_PACKAGES.get(recipe.method)
    return versions if package is None else f"{versions}, {package} {importlib.metadata.version(package)}"
