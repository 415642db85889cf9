"""From a directory of weights to a model that answers: the one place that joins files, memory and network.

`options` reads what a caller may say, `build` fills the network, `model` is what callers hold; what does not
fit is refused by the planner, `gpu` does so for a GPU. Knows nothing of chat.
"""

from __future__ import annotations

from ernie_local.loading.loader import load
from ernie_local.loading.model import LoadedModel

__all__ = ["LoadedModel", "load"]
