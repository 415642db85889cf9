"""Says which modules of a checkpoint for vLLM are compressed and how, and writes its quantization_config.

Routed experts have the format that was asked for; attention, dense layers and shared experts have 8 bits or
stay plain. A model without experts has that format in all layers. Routers, embedding, head, vision tower and
resampler are never compressed: vLLM builds the resampler without a format, and a tower in few bits loses more
than it saves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ernie_local.config import TextConfig
from ernie_local.errors import UsageError
from ernie_quant.export.compressed import GroupedFormat
from ernie_quant.export.hub_layout import HubTensor

# Of compressed-tensors, whose form of quantization_config this is.
LIBRARY_VERSION = "0.20.1"
ExportFormat = Literal["int4", "int8", "bf16"]
GROUP_SIZES = (128, 64)  # that kernels of vLLM read, and that are worth their scales
_PROJECTION = re.compile(r"model\.layers\.\d+\.(?:mlp|self_attn)\.(.*)[a-z]+_proj\.weight")
# vLLM asks with its own names of modules: `text_experts_gate`, and `qkv_proj` for three of ours.
_NEVER = (
    "lm_head",
    r"re:.*lm_head$",
    r"re:.*experts_gate$",
    r"re:.*mlp\.gate$",
    r"re:.*vision_model.*",
    r"re:.*resampler.*",
)


@dataclass(frozen=True, slots=True)
class CompressedLayout:
    """experts: their format; dense: that of attention, dense layers and shared experts; None for plain.

    Of a model without experts both are the same.
    """

    experts: GroupedFormat | None
    dense: GroupedFormat | None

    @classmethod
    def of(
        cls,
        name: ExportFormat,
        group_size: int,
        *,
        is_symmetric: bool = True,
        compresses_dense: bool = True,
        has_experts: bool = True,
    ) -> CompressedLayout:
        """UsageError for asymmetric codes of 8 bits, which nothing needs."""
        if name == "bf16":
            return cls(None, None)
        if name == "int8" and not is_symmetric:
            raise UsageError(
                "asymmetric codes in int8",
                "8 symmetric bits lose next to nothing, and zeros take memory",
                "use int4, or remove --asymmetric",
            )
        experts = GroupedFormat(4 if name == "int4" else 8, group_size, is_symmetric)
        if not has_experts:
            return cls(experts, experts)
        return cls(experts, GroupedFormat(8, group_size) if compresses_dense else None)

    def form_of(self, tensor: HubTensor) -> GroupedFormat | None:
        """How a tensor of the hub's layout is stored; None for as it is."""
        if _PROJECTION.fullmatch(tensor.name) is None:
            return None
        return self.experts if ".mlp.experts." in tensor.name else self.dense

    def check(self, tensors: list[HubTensor]) -> None:
        """UsageError for a matrix that the groups do not divide."""
        compressed = [(tensor, form) for tensor in tensors if (form := self.form_of(tensor)) is not None]
        for tensor, form in compressed:
            if tensor.shape[1] % form.group_size:
                fitting = [
                    size for size in GROUP_SIZES if not any(one.shape[1] % size for one, _ in compressed)
                ]
                raise UsageError(
                    f"{tensor.name} has {tensor.shape[1]} columns, which groups of {form.group_size} do not "
                    "divide",
                    "a group of columns shares a scale, and vLLM takes no shorter one",
                    f"--group {fitting[0]}" if fitting else "--format bf16",
                )

    def quantization_config(self, text: TextConfig) -> dict[str, object] | None:
        """The value of `quantization_config`, as compressed-tensors writes it; None where all is plain."""
        if self.experts is None:
            return None
        groups, ignored = [_group(self.experts, ["Linear"])], list(_NEVER)
        dense_names = _dense_patterns(text)
        if self.dense is None:
            ignored += dense_names
        elif self.dense != self.experts:
            # First: the library's own dequantizer takes the first group that fits, and "Linear" fits all.
            groups.insert(0, _group(self.dense, dense_names))
        return {
            "config_groups": {f"group_{index}": group for index, group in enumerate(groups)},
            "format": "pack-quantized",
            "global_compression_ratio": None,
            "ignore": ignored,
            "kv_cache_scheme": None,
            "moe_sparsity_config": None,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
            "sparsity_config": {},
            "transform_config": {},
            "version": LIBRARY_VERSION,
        }


def _dense_patterns(text: TextConfig) -> list[str]:
    dense = [str(layer_id) for layer_id, has_experts in enumerate(text.moe_layers) if not has_experts]
    mlps = [rf"re:.*layers\.({'|'.join(dense)})\.mlp\.[a-z_]*_proj$"] if dense else []
    shared = [r"re:.*shared_experts\.[a-z_]*_proj$"] if text.shared_expert_size else []
    return [r"re:.*self_attn\.[a-z]+_proj$", *mlps, *shared]


def _group(form: GroupedFormat, targets: list[str]) -> dict[str, object]:
    return {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": targets,
        "weights": {
            "dynamic": False,
            "group_size": form.group_size,
            "num_bits": form.bits,
            "strategy": "group",
            "symmetric": form.is_symmetric,
            "type": "int",
        },
    }
