"""Writes the weights that a packed checkpoint means into a checkpoint of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ernie_local.checkpoint.names import map_name
from ernie_local.checkpoint.packed import QKV, PackedTensors, known_format
from ernie_local.config import read_config
from ernie_local.packing import QuantizedMatrix, dequantize, unpack_page
from ernie_local.packing.matrix import unpack_matrix

_QKV_PARTS = ("q_proj", "k_proj", "v_proj")


def write_dequantized(packed: Path, saved: Path) -> int:
    """Replace each weight in `saved`, written by save_pretrained in the original names, by that of `packed`.

    Returns how many of them were in few bits.
    """
    weights = _Weights(packed)
    (path,) = saved.glob("*.safetensors")
    tensors = load_file(path)
    for name, before in tensors.items():
        parts = map_name(name, weights.config.text.banks)
        assert parts, name
        plain = [
            weights.plain(part.name).t() if part.transposed else weights.plain(part.name) for part in parts
        ]
        tensors[name] = (plain[0] if parts[0].row is None else torch.stack(plain)).contiguous()
        assert tensors[name].shape == before.shape, name
    save_file(tensors, path, {"format": "pt"})
    return weights.num_packed


class _Weights:
    """Every weight of a packed checkpoint, in float32, by our name of it."""

    def __init__(self, directory: Path) -> None:
        self.config = read_config(directory)
        assert self.config.quantization is not None
        self._tables, self._packed = self.config.quantization, PackedTensors(self.config)
        self._stored: dict[str, torch.Tensor] = {}
        for path in directory.glob("*.safetensors"):
            self._stored |= load_file(path)
        self.num_packed = 0

    def plain(self, name: str) -> torch.Tensor:
        """The tensor `name`, whose rows and columns are those of the plain one."""
        if name in self._stored:
            return self._stored[name].float()
        self.num_packed += 1
        stem = name.removesuffix(".weight")
        parent, _, own = stem.rpartition(".")
        if name.startswith("experts."):
            _, layer, bank, expert, own = name.split(".")
            place, row = self._packed.locate_experts(int(layer), bank)[int(expert)]
            return self._of_page(place, row, own)
        if parent in self._tables.gated_mlps:
            return self._of_page(f"{parent}.{self._tables.gated_mlps[parent]}", 0, own)
        if own in _QKV_PARTS:
            text = self.config.text
            width = text.num_key_value_heads * text.head_dim
            widths = text.num_attention_heads * text.head_dim, width, width
            start = sum(widths[: _QKV_PARTS.index(own)])
            return self._matrix(f"{parent}.{QKV}")[start : start + widths[_QKV_PARTS.index(own)]]
        return self._matrix(stem)

    def _matrix(self, name: str) -> torch.Tensor:
        format_name = self._tables.matrices[name]
        shape = self._packed.matrix_shape(name)
        return dequantize(
            unpack_matrix(self._stored[f"{name}.{format_name}"], known_format(format_name), *shape)
        )

    def _of_page(self, name: str, row: int, projection: str) -> torch.Tensor:
        page = unpack_page(self._stored[name][row])
        own: QuantizedMatrix = getattr(page, projection.removesuffix("_proj"))
        return dequantize(own)
