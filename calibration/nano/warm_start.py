"""Fills a fresh network with the weights of a published nano as far as shapes agree, and widens the rest.

A wider bank begins as the narrow one: its new units have weights of their own, but nothing reads them yet.
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece
from safetensors.torch import load_file
from torch import Tensor

from nano.export import published_weights
from nano.network import NanoNetwork


def start_from(network: NanoNetwork, tokenizer_path: Path, directory: Path) -> list[str]:
    """Fill `network` from the checkpoint in `directory`; one line for each tensor that could not be taken.

    Embeddings go by the text of their pieces, so that another vocabulary keeps what it shares.
    """
    published: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        published |= load_file(path)
    state = network.state_dict()
    # Views of the network's own tensors, under the published names: writing to them fills the network.
    notes = []
    for name, ours in published_weights(state, network.shape):
        if name == "model.embed_tokens.weight":
            notes += _fill_embedding(ours, published[name], tokenizer_path, directory / "tokenizer.model")
        elif name.endswith("e_score_correction_bias"):
            continue  # stacked, so no view: below
        elif name not in published or not _fill(ours, published[name], is_down="down_proj" in name):
            notes.append(f"{name} begins anew")
    for index in range(1, network.shape.num_layers):
        biases = published.get(f"model.layers.{index}.mlp.moe_statics.e_score_correction_bias")
        for bank_id, bank in enumerate(("text", "vision")):
            ours = state[f"layers.{index}.banks.{bank}.bias"]
            if biases is not None and biases[bank_id].shape == ours.shape:
                ours.copy_(biases[bank_id])
    return notes


def _fill(ours: Tensor, theirs: Tensor, *, is_down: bool) -> bool:
    """Copy what has a place; of a wider bank, zero what reads its new units. False for other shapes."""
    if ours.shape == theirs.shape:
        ours.copy_(theirs)
        return True
    if ours.dim() != 2 or theirs.dim() != 2:
        return False
    rows, columns = theirs.shape
    if rows > ours.shape[0] or columns > ours.shape[1]:
        return False
    if is_down and rows == ours.shape[0]:
        ours.zero_()
    elif columns != ours.shape[1]:
        return False
    ours[:rows, :columns].copy_(theirs)
    return True


def _fill_embedding(ours: Tensor, theirs: Tensor, tokenizer_path: Path, source_path: Path) -> list[str]:
    if ours.shape[1] != theirs.shape[1]:
        return ["model.embed_tokens.weight begins anew"]
    new, old = (
        sentencepiece.SentencePieceProcessor(model_file=str(path)) for path in (tokenizer_path, source_path)
    )
    old_ids = {old.id_to_piece(index): index for index in range(len(old))}
    missing = 0
    for index in range(len(new)):
        source = old_ids.get(new.id_to_piece(index))
        if source is None:
            missing += 1
        else:
            ours[index].copy_(theirs[source])
    return [f"{missing} of {len(new)} embeddings begin anew"] if missing else []
