"""What packed experts compute on a GPU: by kernels that are told the layouts, so that nobody reads headers.

Knows which layouts a layer's pages may have. What stands in where there are no kernels is plain torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ernie_local.config import BankKey
from ernie_local.kernels import reference
from ernie_local.kernels.cuda_ops import gpu_of
from ernie_local.model.moe import RoutedTokens
from ernie_local.packing import PageLayout
from ernie_local.packing.foreign_matrix import dequantize_foreign
from ernie_local.packing.foreign_page import Dequantize


class TritonPageMath:
    """A PageMath by the Triton kernels. Nothing here waits for the GPU."""

    takes_shared_page = True

    def __init__(
        self,
        layouts: Mapping[BankKey, Sequence[PageLayout]],
        shared_layouts: Mapping[int, PageLayout],
    ) -> None:
        """layouts: of a layer's pages in a bank, small ones too. shared_layouts: of its shared page."""
        self._layouts = layouts
        self._shared_layouts = shared_layouts

    def add(
        self,
        output: torch.Tensor,
        memory: torch.Tensor,
        tokens: RoutedTokens,
        places: torch.Tensor | None,
    ) -> None:
        """See PageMath.add."""
        from ernie_local.kernels.triton.experts import add_packed_experts

        add_packed_experts(
            output,
            tokens.hidden,
            memory,
            tokens.expert_ids,
            tokens.expert_weights,
            tokens.shared_page,
            places,
            self._layouts[tokens.layer_id, tokens.bank],
            None if tokens.shared_page is None else self._shared_layouts[tokens.layer_id],
            gpu_of(tokens.hidden.device),
        )


class TorchPageMath:
    """A PageMath by plain torch: an expert at a time, unpacked to float32. The host waits for each."""

    takes_shared_page = True

    def __init__(self, foreign: Dequantize = dequantize_foreign) -> None:
        """foreign: what unpacks matrices in other libraries' formats, plain torch too by default."""
        self._foreign = foreign

    def add(
        self,
        output: torch.Tensor,
        memory: torch.Tensor,
        tokens: RoutedTokens,
        places: torch.Tensor | None,
    ) -> None:
        """See PageMath.add."""
        reference.add_packed_experts(
            output,
            tokens.hidden.float(),
            memory,
            tokens.expert_ids,
            tokens.expert_weights.float(),
            tokens.shared_page,
            places,
            self._foreign,
        )
