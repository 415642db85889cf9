"""What computes packed weights on GPUs, Triton's kernels or plain torch: the choice alone.

One choice for the process: the operators are registered with torch once, and serve every model in it.
"""

from __future__ import annotations

import gc
from collections.abc import Hashable
from typing import Literal
from weakref import WeakSet

from ernie_local.errors import UsageError, parameter
from ernie_local.kernels.native import Absence

GpuKernels = Literal["auto", "triton", "torch"]


class GpuKernelsChoice:
    """auto: Triton's kernels where they run; triton: these or an error; torch: plain torch for all."""

    def __init__(self) -> None:
        self._name: GpuKernels = "auto"
        self._users: WeakSet[Hashable] = WeakSet()

    @property
    def is_triton_forced(self) -> bool:
        """Whether plain torch in their place is an error."""
        return self._name == "triton"

    @property
    def absence(self) -> Absence | None:
        """What it means that plain torch was chosen; None where it was not."""
        if self._name != "torch":
            return None
        why = "plain PyTorch was asked for (gpu_kernels torch)"
        return Absence("ernie-local runs without its Triton kernels", why, "leave that choice away")

    def choose(self, name: GpuKernels) -> None:
        """From now on. UsageError while a model is in memory that was loaded with another choice."""
        if (name == "torch") != (self._name == "torch") and self._users:
            gc.collect()  # one that nobody can reach any more may still be there
            if self._users:
                raise UsageError(
                    f"{parameter('gpu_kernels', name)} was asked for, {len(self._users)} model on a GPU uses "
                    f"{self._name}",
                    "all models of a process compute by the same kernels",
                    "delete the other model first, or load this one in a process of its own",
                )
        self._name = name

    def hold(self, user: Hashable) -> None:
        """The choice may not change as long as this model lives."""
        self._users.add(user)


CHOICE = GpuKernelsChoice()
