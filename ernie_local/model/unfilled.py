"""torch's Linear and Embedding without their random start: every value comes from a checkpoint.

The random start is lost work, and on empty (meta) tensors it makes torch import its compiler, for seconds.
"""

from __future__ import annotations

from torch import nn


class Linear(nn.Linear):
    """A linear layer whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""


class Embedding(nn.Embedding):
    """An embedding whose values are to be filled in."""

    def reset_parameters(self) -> None:
        """Leave the values as they are."""
