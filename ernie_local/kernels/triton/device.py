"""Holds what kernels are compiled for: a GPU's abilities, and the numbers of a matrix or a kind of page.

Pure numbers; nothing asks the driver. The sizes of programs are chosen for registers and shared memory as the
compiler reports them (docs/performance.md). A kernel gets a shape as one constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton

from ernie_local.errors import UsageError
from ernie_local.kernels.gpu_capability import TENSOR_CORES_FROM
from ernie_local.packing import TILE_ROWS, LowBitFormat, PageLayout

_BLOCK_BITS = 32  # of one row in a block of codes
_ABOVE_LEVELS = 32
_W3_LOW_BITS = 2  # the third lies in a plane of its own
MULTIPLIED_DTYPES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class TileShape:
    """A tile of 16 rows; docs/format.md tells what the bytes mean."""

    columns: int
    code_bits: int  # of a code within a block; w3 has one more elsewhere
    has_high_plane: bool
    group_size: int
    scale_bits: int
    zero_divisor: int
    has_fp16_scales: bool
    is_trellis: bool
    tile_bytes: int
    metadata_bytes: int

    @staticmethod
    def of(low_bit: LowBitFormat, columns: int) -> TileShape:
        """Tiles of a matrix in this format with this number of columns."""
        return TileShape(
            columns=columns,
            code_bits=_W3_LOW_BITS if low_bit.bits == 3 else low_bit.bits,
            has_high_plane=low_bit.bits == 3,
            group_size=low_bit.group_size,
            scale_bits=low_bit.scale_bits,
            zero_divisor=low_bit.zero_divisor,
            has_fp16_scales=low_bit.has_fp16_scales,
            is_trellis=low_bit.is_trellis,
            tile_bytes=low_bit.tile_bytes(columns),
            metadata_bytes=low_bit.metadata_bytes(columns),
        )

    @property
    def code_step(self) -> int:
        """What `codes_as_fractions` divides by: a power of two above all codes, or above all levels."""
        return _ABOVE_LEVELS if self.is_trellis else 1 << self.code_bits

    @property
    def block_columns(self) -> int:
        """Columns of a block of codes, of which each row has 32 bits."""
        return _BLOCK_BITS // self.code_bits

    @property
    def planes(self) -> int:
        """Codes in a byte."""
        return 8 // self.code_bits

    @property
    def num_blocks(self) -> int:
        """Blocks of a tile."""
        return self.columns // self.block_columns

    @property
    def group_blocks(self) -> int:
        """Blocks that share scales and zeros."""
        return self.group_size // self.block_columns

    @property
    def high_plane_bytes(self) -> int:
        """Where w3's highest bits begin, from a tile's first byte."""
        return self.metadata_bytes + TILE_ROWS * self.columns * self.code_bits // 8


@dataclass(frozen=True, slots=True)
class PageShape:
    """Experts' pages of one layout."""

    gate_up: TileShape
    down: TileShape
    hidden_size: int
    inner_size: int
    gate_up_offset: int
    down_offset: int
    # The first 16 bytes of every such page, as two whole numbers.
    header_low: int
    header_high: int

    @staticmethod
    def of(layout: PageLayout) -> PageShape:
        """Pages of this layout."""
        return PageShape(
            gate_up=TileShape.of(layout.gate_up, layout.hidden_size),
            down=TileShape.of(layout.down, layout.inner_size),
            hidden_size=layout.hidden_size,
            inner_size=layout.inner_size,
            gate_up_offset=layout.gate_up_offset,
            down_offset=layout.down_offset,
            header_low=int.from_bytes(layout.header[:8], "little"),
            header_high=int.from_bytes(layout.header[8:16], "little"),
        )


def shapes_of_bank(layouts: Sequence[PageLayout]) -> tuple[PageShape, ...]:
    """One for each different layout. Raises UsageError unless all are of one model's bank."""
    shapes = tuple(dict.fromkeys(PageShape.of(layout) for layout in layouts))
    sizes = {(shape.hidden_size, shape.inner_size) for shape in shapes}
    if len(sizes) != 1:
        raise UsageError(
            f"pages of {len(sizes)} sizes (hidden, inner) in one call: {sorted(sizes)}",
            "the experts of a bank have one size, whatever their formats",
            "pass the layouts of one bank",
        )
    return shapes


@dataclass(frozen=True, slots=True)
class TritonDevice:
    """A GPU's abilities. dtype: many tokens are rounded to it before products; sums are float32."""

    dtype: torch.dtype = torch.float16
    uses_tensor_cores: bool = True

    @staticmethod
    def of_capability(capability: tuple[int, int], dtype: torch.dtype = torch.float16) -> TritonDevice:
        """The device with this compute capability. UsageError for a dtype that it does not multiply."""
        uses_tensor_cores = capability >= TENSOR_CORES_FROM
        if dtype not in MULTIPLIED_DTYPES or (dtype == torch.bfloat16 and not uses_tensor_cores):
            raise UsageError(
                f"a GPU of compute capability {capability[0]}.{capability[1]} multiplies no {dtype}",
                "kernels multiply float16 on every GPU, bfloat16 from 8.0 on, and add in float32",
                "use float16: rows that would leave its range are divided by a power of two first",
            )
        return TritonDevice(dtype, uses_tensor_cores)

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

    def dtype_of_cache(self, cache_dtype: torch.dtype) -> torch.dtype:
        """What a chunk's attention multiplies: a cache as it lies there, int8 as this GPU's dtype, and what
        it does not multiply as float32."""
        dtype = self.dtype if cache_dtype == torch.int8 else cache_dtype
        return torch.float32 if dtype == torch.bfloat16 and not self.uses_tensor_cores else dtype

    def sizes_for_chunk(self, dtype: torch.dtype) -> dict[str, int]:
        """Of a program of `attend_many` that multiplies this dtype: rows, tokens at a time, and how it is
        compiled."""
        if not self.uses_tensor_cores or dtype == torch.float32:
            return {"ROWS": 32, "AT_ONCE": 16, "num_warps": 8, "num_stages": 1}
        return {"ROWS": 64, "AT_ONCE": 32, "num_warps": 4, "num_stages": 2}
