"""Lists the tensors that a model of a given config has, under our names, and their shapes.

Names are made and looked up one by one, so that a config that claims absurd counts costs no memory before the
files have been compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.config import ExpertBank, ModelConfig, TextConfig, VisionConfig

TensorShape = tuple[int, ...]


class ExpectedShapes:
    """Every tensor of the model that `config` describes. Linear weights are (out, in)."""

    def __init__(self, config: ModelConfig) -> None:
        self._text = config.text
        self._vision = config.vision
        self._single = _single_shapes(config)
        self._attention = _attention_shapes(config.text)
        self._dense = _swiglu_shapes("mlp", config.text.hidden_size, config.text.intermediate_size)
        self._moe = _moe_shapes(config.text)
        self._experts = _expert_shapes(config.text)
        self._block = _block_shapes(config.vision)

    def names(self, *, with_experts: bool = True) -> Iterator[str]:
        """All names, in the order in which a model uses them; with or without those of routed experts."""
        yield "embed_tokens.weight"
        for layer, has_experts in enumerate(self._text.moe_layers):
            for suffix in (*self._attention, *(self._moe if has_experts else self._dense)):
                yield f"layers.{layer}.{suffix}"
            if has_experts and with_experts:
                for bank in self._text.banks:
                    for expert in range(bank.num_experts):
                        for projection in PROJECTIONS:
                            yield f"experts.{layer}.{bank.name}.{expert}.{projection}"
        yield from (name for name in self._single if name != "embed_tokens.weight")
        for block in range(self._vision.depth):
            for suffix in self._block:
                yield f"vision.blocks.{block}.{suffix}"

    def describe(self) -> str:
        """The counts that decide which names exist, for messages."""
        text = self._text
        banks = " and ".join(f"{bank.num_experts} {bank.name}" for bank in text.banks) or "no"
        return (
            f"{text.num_hidden_layers} layers, {sum(text.moe_layers)} of them with {banks} experts, "
            f"and {self._vision.depth} vision blocks"
        )

    @property
    def banks(self) -> tuple[ExpertBank, ...]:
        """The banks of each layer with experts."""
        return self._text.banks

    def count(self) -> int:
        """How many names there are, without making them."""
        num_experts = sum(bank.num_experts for bank in self._text.banks)
        per_moe_layer = len(self._moe) + num_experts * len(PROJECTIONS)
        num_moe_layers = sum(self._text.moe_layers)
        num_layers = len(self._text.moe_layers)
        return (
            len(self._single)
            + num_layers * len(self._attention)
            + num_moe_layers * per_moe_layer
            + (num_layers - num_moe_layers) * len(self._dense)
            + self._vision.depth * len(self._block)
        )

    def shape(self, name: str) -> TensorShape | None:
        """The shape of the tensor `name`, None if the model has no such tensor."""
        kind, *rest = name.split(".", 2)
        if kind == "layers" and len(rest) == 2:
            layer = int(rest[0])
            if layer >= len(self._text.moe_layers):
                return None
            mlp = self._moe if self._text.moe_layers[layer] else self._dense
            return self._attention.get(rest[1]) or mlp.get(rest[1])
        if kind == "experts":
            layer_text, bank, expert_text, projection = name.removeprefix("experts.").split(".")
            layer = int(layer_text)
            has_experts = layer < len(self._text.moe_layers) and self._text.moe_layers[layer]
            if not has_experts or bank not in self._experts:
                return None
            is_known = int(expert_text) < self._text.bank(bank).num_experts
            return self._experts[bank][projection] if is_known else None
        if name.startswith("vision.blocks."):
            block_text, suffix = name.removeprefix("vision.blocks.").split(".", 1)
            return self._block.get(suffix) if int(block_text) < self._vision.depth else None
        return self._single.get(name)


def _single_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    text, vision = config.text, config.vision
    merged = vision.hidden_size * vision.spatial_merge_size**2
    shapes: dict[str, TensorShape] = {
        "embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "norm.weight": (text.hidden_size,),
        "vision.patch_embed.weight": (vision.hidden_size, vision.patch_values),
        **_affine("vision.norm", vision.hidden_size),
        **_linear("resampler.spatial.fc1", merged, merged),
        **_linear("resampler.spatial.fc2", merged, merged),
        **_affine("resampler.spatial.norm", merged),
        **_linear("resampler.temporal.fc1", merged, merged * vision.temporal_merge_size),
        **_linear("resampler.temporal.fc2", merged, merged),
        **_affine("resampler.temporal.norm", merged),
        **_linear("resampler.mlp", text.hidden_size, merged),
        "resampler.norm.weight": (text.hidden_size,),
    }
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def _attention_shapes(text: TextConfig) -> dict[str, TensorShape]:
    query_width = text.num_attention_heads * text.head_dim
    key_width = text.num_key_value_heads * text.head_dim
    return {
        "input_layernorm.weight": (text.hidden_size,),
        "self_attn.q_proj.weight": (query_width, text.hidden_size),
        "self_attn.k_proj.weight": (key_width, text.hidden_size),
        "self_attn.v_proj.weight": (key_width, text.hidden_size),
        "self_attn.o_proj.weight": (text.hidden_size, query_width),
        "post_attention_layernorm.weight": (text.hidden_size,),
    }


def _moe_shapes(text: TextConfig) -> dict[str, TensorShape]:
    shapes: dict[str, TensorShape] = {}
    for bank in text.banks:
        shapes[f"moe.{bank.name}_router.weight"] = (bank.num_experts, text.hidden_size)
        shapes[f"moe.{bank.name}_router.bias"] = (bank.num_experts,)
    if text.num_shared_experts:
        shapes |= _swiglu_shapes("moe.shared_experts", text.hidden_size, text.shared_expert_size)
    return shapes


def _swiglu_shapes(prefix: str, hidden_size: int, inner_size: int) -> dict[str, TensorShape]:
    return {
        f"{prefix}.gate_proj.weight": (inner_size, hidden_size),
        f"{prefix}.up_proj.weight": (inner_size, hidden_size),
        f"{prefix}.down_proj.weight": (hidden_size, inner_size),
    }


def _expert_shapes(text: TextConfig) -> dict[str, dict[str, TensorShape]]:
    return {
        bank.name: {
            "gate_proj": (bank.expert_size, text.hidden_size),
            "up_proj": (bank.expert_size, text.hidden_size),
            "down_proj": (text.hidden_size, bank.expert_size),
        }
        for bank in text.banks
    }


def _block_shapes(vision: VisionConfig) -> dict[str, TensorShape]:
    width = vision.hidden_size
    return {
        **_affine("norm1", width),
        **_linear("attn.qkv", 3 * width, width),
        **_linear("attn.proj", width, width),
        **_affine("norm2", width),
        **_linear("mlp.fc1", vision.intermediate_size, width),
        **_linear("mlp.fc2", width, vision.intermediate_size),
    }


def _affine(prefix: str, width: int) -> dict[str, TensorShape]:
    return {f"{prefix}.weight": (width,), f"{prefix}.bias": (width,)}


def _linear(prefix: str, out_size: int, in_size: int) -> dict[str, TensorShape]:
    return {f"{prefix}.weight": (out_size, in_size), f"{prefix}.bias": (out_size,)}
