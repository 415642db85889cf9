"""Lists the tensors that a model of a given config has, under our names, and their shapes.

Names are made and looked up one by one, so a config that claims absurd counts of experts costs no memory
before the files have been compared with it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ernie_local.checkpoint.names import PROJECTIONS
from ernie_local.config import ModelConfig, TextConfig, VisionConfig
from ernie_local.strict_json import show

TensorShape = tuple[int, ...]


class ExpectedShapes:
    """Every tensor of the model that `config` describes. Linear weights are (out, in)."""

    def __init__(self, config: ModelConfig) -> None:
        self._text, self._num_blocks = config.text, 0 if config.tower is None else config.tower.depth
        self._single = _single_shapes(config)
        by_kind = [_layer_shapes(config.text, has_experts=has_experts) for has_experts in (False, True)]
        self._layers = [by_kind[has_experts] for has_experts in config.text.moe_layers]
        self._block = {} if config.tower is None else _block_shapes(config.tower)

    def names(self, *, with_experts: bool = True) -> Iterator[str]:
        """All names, in the order in which a model uses them; with or without those of routed experts."""
        yield "embed_tokens.weight"
        for layer, shapes in enumerate(self._layers):
            yield from (f"layers.{layer}.{suffix}" for suffix in shapes)
            for bank in self._text.banks if with_experts and self._text.moe_layers[layer] else ():
                for expert in range(bank.num_experts):
                    yield from (f"experts.{layer}.{bank.name}.{expert}.{name}" for name in PROJECTIONS)
        yield from (name for name in self._single if name != "embed_tokens.weight")
        for block in range(self._num_blocks):
            yield from (f"vision.blocks.{block}.{suffix}" for suffix in self._block)

    def describe(self) -> str:
        """The counts that decide which names exist, for messages."""
        text = self._text
        banks = " and ".join(f"{bank.num_experts} {bank.name}" for bank in text.banks) or "no"
        layers = f"{text.num_hidden_layers} layers, {sum(text.moe_layers)} of them with {banks} experts"
        return f"{layers}, and {self._num_blocks} vision blocks" if self._num_blocks else layers

    def count(self) -> int:
        """How many names there are, without making them."""
        num_experts = sum(bank.num_experts for _, bank in self._text.layer_banks())
        in_layers = sum(map(len, self._layers)) + num_experts * len(PROJECTIONS)
        return len(self._single) + in_layers + self._num_blocks * len(self._block)

    def shape(self, name: str) -> TensorShape | None:
        """The shape of the tensor `name`, None if the model has no such tensor."""
        match name.split("."):
            case ["layers", layer, *suffix] if int(layer) < len(self._layers):
                return self._layers[int(layer)].get(".".join(suffix))
            case ["experts", layer, bank_name, expert, projection]:
                has_experts = int(layer) < len(self._layers) and self._text.moe_layers[int(layer)]
                for bank in self._text.banks if has_experts else ():
                    if bank.name == bank_name and int(expert) < bank.num_experts:
                        shape = (bank.expert_size, self._text.hidden_size)
                        return shape[::-1] if projection == "down_proj" else shape
            case ["vision", "blocks", block, *suffix] if int(block) < self._num_blocks:
                return self._block.get(".".join(suffix))
        return self._single.get(name)


def _single_shapes(config: ModelConfig) -> dict[str, TensorShape]:
    text = config.text
    shapes: dict[str, TensorShape] = {
        "embed_tokens.weight": (text.vocab_size, text.hidden_size),
        "norm.weight": (text.hidden_size,),
    }
    if config.tower is not None:
        shapes |= _shapes_for_images(config.tower, text.hidden_size)
    if not text.tie_word_embeddings:
        shapes["lm_head.weight"] = (text.vocab_size, text.hidden_size)
    return shapes


def _shapes_for_images(vision: VisionConfig, hidden_size: int) -> dict[str, TensorShape]:
    """Of the tower, blocks apart, and of the resampler. hidden_size: of the decoder."""
    merged = vision.hidden_size * vision.spatial_merge_size**2
    return {
        "vision.patch_embed.weight": (vision.hidden_size, vision.patch_values),
        **_affine("vision.norm", vision.hidden_size),
        **_linear("resampler.spatial.fc1", merged, merged),
        **_linear("resampler.spatial.fc2", merged, merged),
        **_affine("resampler.spatial.norm", merged),
        **_linear("resampler.temporal.fc1", merged, merged * vision.temporal_merge_size),
        **_linear("resampler.temporal.fc2", merged, merged),
        **_affine("resampler.temporal.norm", merged),
        **_linear("resampler.mlp", hidden_size, merged),
        "resampler.norm.weight": (hidden_size,),
    }


def _layer_shapes(text: TextConfig, *, has_experts: bool) -> dict[str, TensorShape]:
    """Of one layer, without routed experts."""
    hidden_size = text.hidden_size
    query_width = text.num_attention_heads * text.head_dim
    key_width = text.num_key_value_heads * text.head_dim
    shapes: dict[str, TensorShape] = {
        "input_layernorm.weight": (hidden_size,),
        "self_attn.q_proj.weight": (query_width, hidden_size),
        "self_attn.k_proj.weight": (key_width, hidden_size),
        "self_attn.v_proj.weight": (key_width, hidden_size),
        "self_attn.o_proj.weight": (hidden_size, query_width),
        "post_attention_layernorm.weight": (hidden_size,),
    }
    for bank in text.banks if has_experts else ():
        shapes[f"moe.{bank.name}_router.weight"] = (bank.num_experts, hidden_size)
        shapes[f"moe.{bank.name}_router.bias"] = (bank.num_experts,)
    mlp, inner_size = "mlp", text.intermediate_size
    if has_experts:
        mlp, inner_size = "moe.shared_experts", text.shared_expert_size
    if inner_size:
        shapes[f"{mlp}.gate_proj.weight"] = shapes[f"{mlp}.up_proj.weight"] = (inner_size, hidden_size)
        shapes[f"{mlp}.down_proj.weight"] = (hidden_size, inner_size)
    return shapes


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


def shape_text(shape: TensorShape) -> str:
    """For messages; of a shape that a file claims, however absurd."""
    return "(" + ", ".join(map(show, shape)) + ")"
