"""Says what a GPU can do by its compute capability, the pair of numbers that NVIDIA gives a generation."""

from __future__ import annotations

# Older GPUs (Pascal, 6.x) have no Triton; for this one and newer ones every kernel has been compiled.
LEAST_CAPABILITY: tuple[int, int] = (7, 0)
# Triton uses no tensor cores before Ampere, though Turing has some; and only from there on a GPU has products
# of bfloat16.
TENSOR_CORES_FROM: tuple[int, int] = (8, 0)


def multiplies_bfloat16(capability: tuple[int, int] | None) -> bool:
    """Whether a GPU does, and so attends to a cache in bfloat16 by its kernel for one token.

    None: of an unknown one, which is taken for a new one.
    """
    return capability is None or capability >= TENSOR_CORES_FROM
