"""Computes packed experts on a GPU: by kernels that are told the layouts, or by plain torch.

Kernels that know the layouts read no headers of pages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import add_by_triton
from ernie_local.kernels.reference import add_plain_experts
from ernie_local.packing import PageLayout
from ernie_local.packing.foreign import Dequantize, dequantize_foreign


class TritonPageMath:
    """A PageMath by the Triton kernels. Nothing here waits for the GPU."""

    takes_shared_page = True

    def __init__(self, layouts: Sequence[PageLayout], shared_layout: PageLayout | None) -> None:
        """layouts: all that the pages may have, small ones too. shared_layout: of the layer's shared page."""
        self._layouts = layouts
        self._shared_layout = shared_layout

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them; a page of an unknown layout makes its tokens NaN."""
        add_by_triton(output, call, self._layouts, self._shared_layout)


class TorchPageMath:
    """A PageMath by plain torch: an expert at a time, unpacked to float32. The host waits for each."""

    takes_shared_page = True

    def __init__(self, foreign: Dequantize = dequantize_foreign) -> None:
        """foreign: what unpacks matrices in other libraries' formats, plain torch too by default."""
        self.foreign = foreign

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them in float32."""
        exact = call._replace(hidden=call.hidden.float(), weights=call.weights.float())
        add_plain_experts(output, exact, self.foreign)
