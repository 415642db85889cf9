"""What one decoded token asks of a machine, counted in a model that is loaded.

Routed experts count by the mean of their bank; which of them a token takes is not known before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ernie_local.config import ModelConfig
from ernie_local.experts.packed import PackedExperts
from ernie_local.experts.paged import PagedExperts
from ernie_local.experts.resident import ResidentExperts
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.packed_linear import PackedEmbedding, PackedGatedMLP, PackedLinear
from ernie_local.planner.decode_time import DecodeWork

_VISION = ("vision", "resampler")


def decode_work(network: ErnieModel) -> DecodeWork:
    """Of a text token; every layer of the model's text experts that is none of vision."""
    text = network.config.text
    always: Counter[str] = Counter()
    for name, module in network.named_modules():
        if name.partition(".")[0] in _VISION or name.endswith("vision_router"):
            continue
        if name == "embed_tokens" and network.lm_head is not None:
            continue  # one row is read of it
        for format_name, num_bytes in _weights(network.config, name, module):
            always[format_name] += num_bytes
    expert_bytes, expert_format, page_bytes = _expert(network)
    return DecodeWork(
        num_layers=text.num_hidden_layers,
        moe_layers=sum(text.moe_layers),
        experts_per_token=text.experts_per_token,
        always_bytes=dict(always),
        expert_bytes=expert_bytes,
        expert_format=expert_format,
        page_bytes=page_bytes,
    )


def head_bytes(network: ErnieModel) -> tuple[str, int]:
    """Format and bytes of the matrix that logits come from."""
    name = "embed_tokens" if network.lm_head is None else "lm_head"
    return next(_weights(network.config, name, network.get_submodule(name)))


def _weights(config: ModelConfig, name: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    """Format and bytes of what the module itself holds."""
    if isinstance(module, PackedLinear | PackedEmbedding):
        yield module.format_name, module.packed.nbytes
    elif isinstance(module, PackedGatedMLP):
        tables = config.quantization
        assert tables is not None, name
        yield tables.gated_mlps[name].partition("-")[0], module.page.nbytes
    else:
        for parameter in module.parameters(recurse=False):
            yield str(parameter.dtype).removeprefix("torch."), parameter.nbytes


def _expert(network: ErnieModel) -> tuple[int, str, int]:
    """Bytes as they lie in memory, their format, and bytes on disk, of a text expert; zeros without any."""
    experts, config = network.experts, network.config
    dtype_name = str(network.dtype).removeprefix("torch.")
    if isinstance(experts, PagedExperts):
        sizes = [experts.store.page_bytes(key) for key in experts.store.experts if key.bank == "text"]
        page_bytes = sum(sizes) // len(sizes)
        if config.has_packed_experts:
            return page_bytes, _expert_format(config), page_bytes
        # A page in bfloat16 is converted first, and computed with as what it was converted to.
        inner, hidden = config.text.text_expert_size, config.text.hidden_size
        return 3 * inner * hidden * network.dtype.itemsize, dtype_name, page_bytes
    if isinstance(experts, PackedExperts):
        sizes = [slots.shape[1] for (_, bank), slots in experts.banks.items() if bank == "text"]
        mean = sum(sizes) // len(sizes) if sizes else 0
        return mean, _expert_format(config), mean
    assert isinstance(experts, ResidentExperts)
    for (_, bank), weights in experts.banks.items():
        if bank == "text":
            num_bytes = (weights.gate_up.nbytes + weights.down.nbytes) // config.text.num_experts
            return num_bytes, dtype_name, num_bytes
    return 0, dtype_name, 0


def _expert_format(config: ModelConfig) -> str:
    """The format of most text experts."""
    assert config.quantization is not None
    counts = Counter(
        name.partition("-")[0]
        for (_, bank), formats in config.quantization.experts.items()
        if bank == "text"
        for name in formats
    )
    return counts.most_common(1)[0][0]
