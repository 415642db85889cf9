"""Tiny random models of transformers that read only text, with what they compute: the oracles of siblings."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY

NANO_VOCAB = {"vocab_size": json.loads((NANO_DIRECTORY / "config.json").read_text())["vocab_size"]}
# A name, what differs from the smallest model, and whether it has experts.
TEXT_MODELS: dict[str, tuple[bool, Mapping[str, Any]]] = {
    "21B": (True, {}),
    "300B": (True, {"moe_num_shared_experts": 0, "tie_word_embeddings": False, "moe_layer_start_index": 2}),
    "interval": (True, {"num_hidden_layers": 4, "moe_layer_interval": 2, "moe_layer_start_index": 0}),
    "end": (True, {"num_hidden_layers": 4, "moe_layer_end_index": 2}),
    "all experts": (True, {"moe_layer_start_index": 0, "moe_num_experts": 5, "moe_k": 5}),
    "square router": (True, {"moe_num_experts": 64, "moe_k": 6, "moe_intermediate_size": 16}),
    "no experts": (True, {"moe_layer_start_index": 3}),
    "wide heads": (True, {"head_dim": 24, "num_key_value_heads": 1}),
    "theta": (True, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "moe_norm_min": 0.5}),
    "0.3B": (False, {"head_dim": 32}),
    "no head_dim": (False, {"head_dim": None, "tie_word_embeddings": False}),
    "all key heads": (False, {"num_key_value_heads": None, "num_hidden_layers": 1}),
    "theta of 0.3B": (
        False,
        {"head_dim": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
}
_TINY: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
_TINY_EXPERTS = {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 2}


@dataclass(frozen=True)
class TextOracle:
    """A model of transformers in float32."""

    model: Any

    @classmethod
    def of(cls, changes: Mapping[str, Any], *, has_experts: bool, seed: int = 0) -> TextOracle:
        """changes: what differs from the smallest model. Biases of the choice and routers say something."""
        from transformers import (
            Ernie4_5_MoeConfig,
            Ernie4_5_MoeForCausalLM,
            Ernie4_5Config,
            Ernie4_5ForCausalLM,
        )

        torch.manual_seed(seed)
        if has_experts:
            config = Ernie4_5_MoeConfig(**(_TINY | _TINY_EXPERTS | dict(changes)))
            config._experts_implementation = "eager"
            model: Any = Ernie4_5_MoeForCausalLM(config)
        else:
            model = Ernie4_5ForCausalLM(Ernie4_5Config(**(_TINY | dict(changes))))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith(("gate.weight", "norm.weight", "embed_tokens.weight")):
                spread = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.data.copy_(1 + spread if name.endswith("norm.weight") else 3 * spread)
            elif name.endswith("e_score_correction_bias"):
                parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        return cls(model.eval())

    def save(self, directory: Path, *, fused: bool = False) -> Path:
        """As transformers saves it: experts one by one, as on the hub, or fused as it computes with them."""
        self.model.save_pretrained(directory, save_original_format=not fused)
        return directory

    def save_with_tokenizer(self, directory: Path, template: str | None = None) -> Path:
        """As `save`, with nano's tokenizer, for a model of NANO_VOCAB. template: as Jinja."""
        self.save(directory)
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(NANO_DIRECTORY / name, directory / name)
        if template is not None:
            (directory / "chat_template.jinja").write_text(template)
        return directory

    def ids(self, count: int, seed: int = 0) -> list[int]:
        """Random ids of the vocabulary."""
        draw = random.Random(seed)
        return [draw.randrange(self.model.config.vocab_size) for _ in range(count)]

    def run(self, ids: Sequence[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (tokens, vocab), and the experts chosen in each layer that has some, (tokens, top_k)."""
        choices: list[torch.Tensor] = []
        hooks = [
            module.register_forward_hook(lambda _module, _inputs, output: choices.append(output[2]))
            for name, module in self.model.named_modules()
            if name.endswith("mlp.gate")
        ]
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        for hook in hooks:
            hook.remove()
        return logits, choices
