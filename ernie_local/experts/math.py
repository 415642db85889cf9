"""Computes experts from pages in one memory, packed or plain, on the processor or on a GPU.

`expert_math` chooses what computes a checkpoint's pages on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import Bank, BankKey, ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.experts.keys import UNIT_BYTES
from ernie_local.kernels import gpu
from ernie_local.kernels.arguments import ABSENT_SLOT, ExpertsCall, LowRankExperts
from ernie_local.kernels.experts import add_by_triton, add_packed_experts
from ernie_local.kernels.nf4 import dequantize_by_bitsandbytes, nf4_absence, warn_without_nf4_kernels
from ernie_local.kernels.reference import (
    FOREIGN_NUMBER_BYTES,
    UNPACKING_BYTES,
    adapted_down,
    add_plain_experts,
    inner_activations,
)
from ernie_local.model.moe import RoutedTokens
from ernie_local.packing import PageLayout
from ernie_local.packing.foreign import Dequantize, dequantize_foreign
from ernie_local.packing.layout import ForeignLayout


def page_call(tokens: RoutedTokens, memory: torch.Tensor, places: torch.Tensor | None) -> ExpertsCall:
    """The call that computes these tokens' experts from a memory of pages, (units, UNIT_BYTES) uint8.

    places: (experts,) int64, see ExpertsCall.
    """
    return ExpertsCall(
        tokens.hidden,
        memory,
        tokens.expert_ids,
        tokens.expert_weights,
        tokens.shared_page,
        places,
        tokens.are_few,
        tokens.adapter,
        tokens.shared_adapter,
    )


class PageMath:
    """Computes the routed experts of one layer and bank from a memory of packed pages, by the operators."""

    takes_shared_page = True  # as of an ExpertProvider

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add to each token's row the weighted sum of those of its experts that have a place.

        output: (tokens, hidden_size) float32. Each page is of its own format.
        """
        add_packed_experts(output, call)


class PlainPageMath(PageMath):
    """From pages of plain numbers: gate, up and down, row after row."""

    takes_shared_page = False

    def __init__(self, dtype: torch.dtype, hidden_size: int, inner_size: int) -> None:
        """dtype: of the numbers in the pages."""
        self._dtype = dtype
        self._hidden_size = hidden_size
        self._inner_size = inner_size

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them in the dtype of the tokens; the call has places and no shared page."""
        assert call.shared_page is None
        assert call.places is not None
        hidden = call.hidden
        adapter = None if call.adapter is None else LowRankExperts(*call.adapter)
        for expert_id in call.expert_ids.unique().tolist():
            place = int(call.places[expert_id])
            if place == ABSENT_SLOT:
                continue
            rows, choices = (call.expert_ids == expert_id).nonzero(as_tuple=True)
            gate_up, down = self._matrices(call.slots, place, hidden.dtype)
            gate, up = functional.linear(hidden[rows], gate_up).chunk(2, dim=-1)  # (chosen, inner) each
            inner = inner_activations(hidden[rows], gate, up, adapter, expert_id)
            result = adapted_down(inner, functional.linear(inner, down), adapter, expert_id)
            output.index_add_(0, rows, (result * call.weights[rows, choices, None]).float())

    def _matrices(
        self, memory: torch.Tensor, place: int, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """gate_up, (2 * inner, hidden), and down, (hidden, inner), as the computation wants them."""
        numbers = memory.view(-1)[place * UNIT_BYTES :]
        count = self._inner_size * self._hidden_size
        plain = numbers[: 3 * count * self._dtype.itemsize].view(self._dtype).to(dtype)
        gate_up = plain[: 2 * count].view(2 * self._inner_size, self._hidden_size)
        return gate_up, plain[2 * count :].view(self._hidden_size, self._inner_size)


class TritonPageMath(PageMath):
    """By the Triton kernels. Nothing here waits for the GPU."""

    def __init__(self, layouts: Sequence[PageLayout], shared_layout: PageLayout | None) -> None:
        """layouts: all that the pages may have, small ones too. shared_layout: of the layer's shared page."""
        self._layouts = layouts
        self._shared_layout = shared_layout

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them; a page of an unknown layout makes its tokens NaN."""
        add_by_triton(output, call, self._layouts, self._shared_layout)


class TorchPageMath(PageMath):
    """By plain torch: an expert at a time, unpacked to float32. The host waits for each."""

    def __init__(self, foreign: Dequantize = dequantize_foreign) -> None:
        """foreign: what unpacks matrices in other libraries' formats, plain torch too by default."""
        self.foreign = foreign

    def add(self, output: torch.Tensor, call: ExpertsCall) -> None:
        """Add them in float32."""
        exact = call._replace(hidden=call.hidden.float(), weights=call.weights.float())
        add_plain_experts(output, exact, self.foreign)


def expert_math(
    checkpoint: Checkpoint, config: ModelConfig, device: torch.device, gpu_kernels: str = "auto"
) -> Mapping[BankKey, PageMath]:
    """What computes the experts of each (layer, bank) on this device."""
    if not config.has_packed_experts:
        layer_id = config.text.moe_layers.index(True)
        by_bank: dict[Bank, PageMath] = {}
        for bank in config.text.banks:
            dtype = checkpoint.dtype(f"experts.{layer_id}.{bank.name}.0.{PROJECTIONS[0]}")
            by_bank[bank.name] = PlainPageMath(dtype, config.text.hidden_size, bank.expert_size)
        return {(layer_id, bank.name): by_bank[bank.name] for layer_id, bank in config.text.layer_banks()}
    if device.type == "cpu":
        return dict.fromkeys(_page_layouts(config), PageMath())
    return gpu_math(config, device, gpu_kernels)


def gpu_math(
    config: ModelConfig, device: torch.device, gpu_kernels: str = "auto"
) -> Mapping[BankKey, PageMath]:
    """What computes packed experts on a GPU: Triton's kernels, or plain torch, as for foreign formats.

    nf4 is unpacked by bitsandbytes' kernels; a warning says, once, where these cannot run.
    """
    layouts, foreign = _page_layouts(config), _foreign_layouts(config)
    if gpu_kernels != "torch" and any(layout.foreign.kind == "nf4" for layout in foreign):
        if nf4_absence(device) is None:
            return dict.fromkeys(layouts, TorchPageMath(dequantize_by_bitsandbytes))
        warn_without_nf4_kernels(device)
    if foreign or gpu.triton_missing(device, gpu_kernels) is not None:
        return dict.fromkeys(layouts, TorchPageMath())
    shared = _shared_layouts(config)
    return {
        key: TritonPageMath([one for one in own if isinstance(one, PageLayout)], shared.get(key[0]))
        for key, own in layouts.items()
    }


def check_triton_formats(config: ModelConfig) -> None:
    """DoesNotFit for packed experts that Triton's kernels do not know."""
    if config.has_packed_experts and _foreign_layouts(config):
        raise DoesNotFit(
            "experts are in another library's format, for which there are 0 Triton kernels",
            "these are for the formats that `ernie-local quantize` makes",
            "leave gpu_kernels at auto, or quantize the original by method gptq or rtn",
        )


def unpacking_room(config: ModelConfig, device: torch.device, gpu_kernels: str = "auto") -> int:
    """Bytes of a GPU for weights that plain torch unpacks there; 0 where Triton's kernels do all."""
    tables = config.quantization
    if tables is None:
        return 0
    foreign = _foreign_layouts(config)
    sizes = [FOREIGN_NUMBER_BYTES * layout.hidden_size * layout.inner_size for layout in foreign]
    all_layouts = {layout for of_bank in _page_layouts(config).values() for layout in of_bank}
    has_own = len(foreign) < len(all_layouts) or bool(tables.matrices or tables.gated_mlps)
    if has_own and gpu.triton_missing(device, gpu_kernels) is not None:
        sizes.append(UNPACKING_BYTES)
    return max(sizes, default=0)


def _page_layouts(config: ModelConfig) -> dict[BankKey, list[PageLayout | ForeignLayout]]:
    """All that the pages of a layer's experts of a bank may have, small pages too."""
    tables = config.quantization
    assert tables is not None
    packed = PackedTensors(config)
    layouts: dict[BankKey, list[PageLayout | ForeignLayout]] = {}
    for layer_id, bank in tables.experts:
        found = list(packed.page_layouts(layer_id, bank).values())
        if (layer_id, bank) in tables.small_experts:
            found += packed.page_layouts(layer_id, bank, small=True).values()
        layouts[layer_id, bank] = list(dict.fromkeys(found))
    return layouts


def _foreign_layouts(config: ModelConfig) -> set[ForeignLayout]:
    """Those of other libraries' formats."""
    layouts = _page_layouts(config).values()
    return {one for of_bank in layouts for one in of_bank if isinstance(one, ForeignLayout)}


def _shared_layouts(config: ModelConfig) -> dict[int, PageLayout]:
    """Of the packed shared experts of each layer."""
    tables = config.quantization
    assert tables is not None
    packed = PackedTensors(config)
    names = {layer_id: f"layers.{layer_id}.moe.shared_experts" for layer_id, _ in tables.experts}
    return {
        layer_id: packed.gated_mlp_layout(name)
        for layer_id, name in names.items()
        if name in tables.gated_mlps
    }
