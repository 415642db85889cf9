"""Turns a directory of weights into a model: the one place that joins files, memory and network.

`options` defines what a caller may choose, `loader` loads in order of cost, `build` fills the network,
`model` is what callers hold.
"""

from __future__ import annotations

from ernie_local.loading.loader import load, load_model
from ernie_local.loading.model import LoadedModel
from ernie_local.loading.options import LoadOptions

__all__ = ["LoadOptions", "LoadedModel", "load", "load_model"]
