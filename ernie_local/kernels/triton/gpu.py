"""What a GPU can do, and the sizes of programs that follow from it. Pure numbers; nothing asks the driver.

The sizes are chosen for registers and shared memory as the compiler reports them (docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

from ernie_local.errors import UsageError
from ernie_local.kernels.triton.tile_shape import TileShape

_TENSOR_CORES_FROM = (8, 0)  # Triton uses none before Ampere, though Turing has some
MULTIPLIED_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Gpu:
    """dtype: what many tokens are rounded to before they are multiplied; sums are float32 in any case."""

    dtype: torch.dtype = torch.float16
    uses_tensor_cores: bool = True

    @staticmethod
    def of_capability(capability: tuple[int, int], dtype: torch.dtype = torch.float16) -> Gpu:
        """Raises UsageError for a dtype that this GPU does not multiply."""
        uses_tensor_cores = capability >= _TENSOR_CORES_FROM
        if dtype not in MULTIPLIED_DTYPES or (dtype == torch.bfloat16 and not uses_tensor_cores):
            raise UsageError(
                f"a GPU of compute capability {capability[0]}.{capability[1]} multiplies no {dtype}",
                "kernels multiply float16 on every GPU, bfloat16 from 8.0 on, and add in float32",
                "use float16: rows that would leave its range are divided by a power of two first",
            )
        return Gpu(dtype, uses_tensor_cores)

    def sizes_for_many(self, shape: TileShape, num_tokens: int) -> dict[str, int]:
        """Of a program of `multiply_many`: tokens, rows, blocks at a time, and how it is compiled."""
        tokens = min(64, max(16, triton.next_power_of_2(num_tokens)))
        if not self.uses_tensor_cores:
            return {"TOKENS": tokens, "ROWS": 32, "BLOCKS": 16, "num_warps": 8, "num_stages": 2}
        # A block of w8 has few columns, and a step is worth its price from 128 on.
        blocks = max(16, 128 // shape.block_columns)
        return {"TOKENS": tokens, "ROWS": 64, "BLOCKS": blocks, "num_warps": 4, "num_stages": 2}

    def sizes_for_attention(self) -> dict[str, int]:
        """Of a program of `attend_stretch`: tokens at a time, and how it is compiled."""
        if not self.uses_tensor_cores:
            return {"AT_ONCE": 16, "num_warps": 8, "num_stages": 1}
        return {"AT_ONCE": 64, "num_warps": 4, "num_stages": 2}
