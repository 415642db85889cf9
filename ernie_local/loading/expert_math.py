"""Chooses what computes a checkpoint's routed experts from their pages, on the device where these lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import BankKey, ExpertBank, ModelConfig
from ernie_local.errors import DoesNotFit
from ernie_local.experts.gpu_math import TorchPageMath, TritonPageMath
from ernie_local.experts.page_math import PackedPageMath, PageMath, PlainPageMath
from ernie_local.kernels import gpu
from ernie_local.kernels.nf4 import (
    dequantize_by_bitsandbytes,
    nf4_absence,
    warn_without_nf4_kernels,
)
from ernie_local.kernels.reference import FOREIGN_NUMBER_BYTES, UNPACKING_BYTES
from ernie_local.packing import PageLayout
from ernie_local.packing.foreign import Dequantize, dequantize_foreign
from ernie_local.packing.layout import ForeignLayout


def expert_math(
    checkpoint: Checkpoint, config: ModelConfig, device: torch.device, gpu_kernels: str = "auto"
) -> dict[BankKey, PageMath]:
    """What computes the experts of each (layer, bank) on this device."""
    if not config.has_packed_experts:
        by_bank = {bank.name: _plain_math(checkpoint, config, bank) for bank in config.text.banks}
        return {(layer_id, bank): by_bank[bank] for layer_id, bank in _bank_keys(config)}
    if device.type == "cpu":
        return dict.fromkeys(_bank_keys(config), PackedPageMath())
    return gpu_math(config, device, gpu_kernels)


def gpu_math(config: ModelConfig, device: torch.device, gpu_kernels: str = "auto") -> dict[BankKey, PageMath]:
    """What computes packed experts on a GPU: Triton's kernels, or plain torch, as for foreign formats.

    nf4 is unpacked by bitsandbytes' kernels; a warning says, once, where these cannot run.
    """
    has_nf4 = any(layout.foreign.kind == "nf4" for layout in _foreign_layouts(config))
    if has_nf4 and gpu_kernels != "torch":
        return dict.fromkeys(_bank_keys(config), TorchPageMath(_nf4_dequantize(device)))
    layouts = _expert_layouts(config)
    if layouts is None or gpu.triton_missing(device, gpu_kernels) is not None:
        return dict.fromkeys(_bank_keys(config), TorchPageMath())
    shared = _shared_layouts(config)
    return {key: TritonPageMath(layouts[key], shared.get(key[0])) for key in layouts}


def _bank_keys(config: ModelConfig) -> list[BankKey]:
    return [(layer_id, bank.name) for layer_id, bank in config.text.layer_banks()]


def check_triton_formats(config: ModelConfig) -> None:
    """DoesNotFit for packed experts that Triton's kernels do not know."""
    if config.has_packed_experts and _expert_layouts(config) is None:
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
    layouts, foreign = _page_layouts(config), _foreign_layouts(config)
    sizes = [FOREIGN_NUMBER_BYTES * layout.hidden_size * layout.inner_size for layout in foreign]
    is_own = len(foreign) < len(layouts) or bool(tables.matrices or tables.gated_mlps)
    if is_own and gpu.triton_missing(device, gpu_kernels) is not None:
        sizes.append(UNPACKING_BYTES)
    return max(sizes, default=0)


def _page_layouts(config: ModelConfig) -> set[PageLayout | ForeignLayout]:
    """All that pages of experts have, but for small ones."""
    tables = config.quantization
    assert tables is not None
    packed = PackedTensors(config)
    return {layout for key in tables.experts for layout in packed.page_layouts(*key).values()}


def _foreign_layouts(config: ModelConfig) -> list[ForeignLayout]:
    return [layout for layout in _page_layouts(config) if isinstance(layout, ForeignLayout)]


def _nf4_dequantize(device: torch.device) -> Dequantize:
    if nf4_absence(device) is None:
        return dequantize_by_bitsandbytes
    warn_without_nf4_kernels(device)
    return dequantize_foreign


def _expert_layouts(config: ModelConfig) -> dict[BankKey, Sequence[PageLayout]] | None:
    """All that a layer's experts of a bank may have, of small pages too; None if one is a foreign format."""
    tables = config.quantization
    assert tables is not None
    packed = PackedTensors(config)
    layouts: dict[BankKey, Sequence[PageLayout]] = {}
    for layer_id, bank in tables.experts:
        found = list(packed.page_layouts(layer_id, bank).values())
        if (layer_id, bank) in tables.small_experts:
            found += packed.page_layouts(layer_id, bank, small=True).values()
        ours = [layout for layout in dict.fromkeys(found) if isinstance(layout, PageLayout)]
        if len(ours) < len(dict.fromkeys(found)):
            return None
        layouts[layer_id, bank] = ours
    return layouts


def _shared_layouts(config: ModelConfig) -> dict[int, PageLayout]:
    """Of the packed shared experts of each layer."""
    tables = config.quantization
    assert tables is not None
    packed = PackedTensors(config)
    names = {f"layers.{layer_id}.moe.shared_experts": layer_id for layer_id, _ in tables.experts}
    return {
        layer_id: packed.gated_mlp_layout(name)
        for name, layer_id in names.items()
        if name in tables.gated_mlps
    }


def _plain_math(checkpoint: Checkpoint, config: ModelConfig, bank: ExpertBank) -> PlainPageMath:
    layer_id = config.text.moe_layers.index(True)
    name = f"experts.{layer_id}.{bank.name}.0.{PROJECTIONS[0]}"
    return PlainPageMath(checkpoint.dtype(name), config.text.hidden_size, bank.expert_size)
