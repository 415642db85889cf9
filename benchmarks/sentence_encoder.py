"""Runs a small trained transformer in plain torch: all-MiniLM-L6-v2, a BERT with replaceable feed-forwards.

It equals transformers to 1e-6. It takes one passage at a time, so there is no padding.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

Tensor = torch.Tensor
MOST_TOKENS = 256  # the encoder was trained with at most this many


class SentenceEncoder:
    """Weights in float32, as they are in the package."""

    def __init__(self, directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        self.num_layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]
        self._eps: float = config["layer_norm_eps"]
        self._weights = load_file(directory / "model.safetensors")
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)

    def token_ids(self, text: str) -> list[int]:
        """With the marks at both ends."""
        return list(self._tokenizer.encode(text).ids)

    def feed_forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """The two matrices of a layer: up (inner, hidden) and down (hidden, inner)."""
        return self._of(layer, "intermediate.dense.weight"), self._of(layer, "output.dense.weight")

    def enter(self, token_ids: list[int]) -> Tensor:
        """Hidden states before the first layer, (tokens, hidden)."""
        names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
        words, positions, types = (self._weights[f"embeddings.{name}.weight"] for name in names)
        return self._norm("embeddings.LayerNorm", words[token_ids] + positions[: len(token_ids)] + types[0])

    def attend(self, layer: int, hidden: Tensor) -> Tensor:
        """hidden: (tokens, hidden) of one passage, which sees itself alone."""
        heads = [
            self._linear(layer, f"attention.self.{name}", hidden)
            .unflatten(-1, (self._heads, -1))
            .transpose(0, 1)
            for name in ("query", "key", "value")
        ]  # (heads, tokens, head size) each
        attended = functional.scaled_dot_product_attention(*heads).transpose(0, 1).flatten(1)
        mixed = self._linear(layer, "attention.output.dense", attended)
        return self._norm(f"encoder.layer.{layer}.attention.output.LayerNorm", hidden + mixed)

    def inner(self, layer: int, attended: Tensor, up: Tensor) -> Tensor:
        """(tokens, hidden) -> (tokens, inner), what the second matrix sees."""
        return functional.gelu(functional.linear(attended, up, self._of(layer, "intermediate.dense.bias")))

    def feed_forward_output(self, layer: int, inner: Tensor, down: Tensor) -> Tensor:
        """(tokens, inner) -> (tokens, hidden), what is added to the hidden states."""
        return functional.linear(inner, down, self._of(layer, "output.dense.bias"))

    def leave(self, layer: int, attended: Tensor, output: Tensor) -> Tensor:
        """Hidden states behind the layer."""
        return self._norm(f"encoder.layer.{layer}.output.LayerNorm", attended + output)

    def embed(self, token_ids: list[int], matrices: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The passage's embedding, (hidden,) of length 1, with these feed-forward matrices."""
        hidden = self.enter(token_ids)
        for layer, (up, down) in enumerate(matrices):
            attended = self.attend(layer, hidden)
            output = self.feed_forward_output(layer, self.inner(layer, attended, up), down)
            hidden = self.leave(layer, attended, output)
        return functional.normalize(hidden.mean(0), dim=0)

    def _of(self, layer: int, name: str) -> Tensor:
        return self._weights[f"encoder.layer.{layer}.{name}"]

    def _linear(self, layer: int, name: str, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self._of(layer, f"{name}.weight"), self._of(layer, f"{name}.bias"))

    def _norm(self, name: str, hidden: Tensor) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(hidden, weight.shape, weight, bias, self._eps)
