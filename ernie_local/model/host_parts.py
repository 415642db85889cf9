"""Names the parts of a network that lie in RAM beside a GPU, where the processor computes with them."""

from __future__ import annotations

from typing import NamedTuple

from ernie_local.config import ModelConfig


class HostParts(NamedTuple):
    """num_layers: layers, from the first one on, that attend on the processor: the norm before attention, its
    projections, and keys and values lie in RAM. has_head: whether the head lies there too.
    """

    num_layers: int = 0
    has_head: bool = False

    @property
    def layer_modules(self) -> list[str]:
        """Names of modules of layers."""
        parts = ("input_layernorm", "self_attn")
        return [f"layers.{layer_id}.{part}" for layer_id in range(self.num_layers) for part in parts]

    def word_modules(self, config: ModelConfig) -> list[str]:
        """Names of the embedding and of the head, if they lie in RAM.

        An embedding that is not the head always does: a token reads one row, sent as fast as its number.
        """
        is_tied, tables = config.text.tie_word_embeddings, config.quantization
        has_own_head = not is_tied or (tables is not None and "lm_head" in tables.matrices)
        head = "lm_head" if has_own_head else "embed_tokens"
        return [*([] if is_tied else ["embed_tokens"]), *([head] if self.has_head else [])]


ALL_ON_GPU = HostParts()
