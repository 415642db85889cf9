"""How fast a machine moves and computes, in the terms that a model's speed is predicted from.

Numbers alone: who measured or assumed them is said by whoever made them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class GpuRates:
    """Of a graphics GPU: its own memory as kernels read it, the link to it, and a prompt's arithmetic."""

    memory_bytes_per_second: float
    link_bytes_per_second: float
    operations_per_second: float


@dataclass(frozen=True, slots=True)
class PagingCosts:
    """What paging costs a decoded token beside the disk: in each layer, and for each page that is missing."""

    layer_seconds: float
    page_seconds: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Of a machine as decode and prefill meet it.

    disk_bytes_per_second: reads of one expert's size, several at a time. memory_bytes_per_second: packed
    weights as the CPU's kernels pass over them for one token. operations_per_second: multiplications and
    additions, each counted, of the CPU in a prompt. token_seconds: of a decoded token beside its layers;
    layer_seconds: of each of its layers beside reading weights, attention to few tokens included.
    format_rates: as memory_bytes_per_second, by the name of a format, where it differs.
    """

    disk_bytes_per_second: float
    memory_bytes_per_second: float
    operations_per_second: float
    token_seconds: float
    layer_seconds: float
    gpu: GpuRates | None = None
    paging: PagingCosts | None = None
    format_rates: Mapping[str, float] = field(default_factory=dict)

    def slowed(self, share: float) -> Rates:
        """Where weights come at this share of the rates."""
        formats = {name: share * rate for name, rate in self.format_rates.items()}
        memory = share * self.memory_bytes_per_second
        return dataclasses.replace(self, memory_bytes_per_second=memory, format_rates=formats)

    def bytes_per_second(self, format_name: str) -> float:
        """Of weights in this format, such as `w4` or `bfloat16`, for one token on the CPU."""
        return self.format_rates.get(format_name, self.memory_bytes_per_second)
