"""Reads an adapter from its directory; one that does not fit the model is refused by a tensor's name."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from ernie_local.adapters.low_rank import Adapter, LowRank
from ernie_local.adapters.settings import (
    PADDLE_SETTINGS,
    PEFT_SETTINGS,
    AdapterSettings,
    read_paddle_settings,
    read_peft_settings,
)
from ernie_local.adapters.stored_product import StoredProduct, check_once, match_paddle, match_peft
from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.index import Accounts, TensorSource, WeightSource
from ernie_local.checkpoint.reader import DTYPES, Checkpoint
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.packing.formats import LARGEST_WEIGHT
from ernie_local.strict_json import show

# How the files of weights begin.
_PEFT_STEM, _PADDLE_STEM = "adapter_model", "peft_model"
_PICKLES = ("adapter_model.bin", "lora_model_state.pdparams")
_FAMILY = re.compile(r"ernie-?4\.5-(?P<vision>vl-)?(?P<size>\d+(?:\.\d+)?b)", re.IGNORECASE | re.ASCII)


def read_adapter(directory: Path, config: ModelConfig, scale: float = 1.0) -> Adapter:
    """The adapter of PEFT, PaddleFormers or ERNIEKit in `directory` for the model of `config`, times `scale`.

    Matrices have the dtype of the files; the scaled one has float32 where that dtype would round it.
    ModelUnusable for a directory without an adapter, and for one that does not fit the model in every tensor.
    """
    is_peft = _check_files(directory) == PEFT_SETTINGS
    settings = read_peft_settings(directory) if is_peft else read_paddle_settings(directory)
    _check_family(settings, ExpectedShapes(config))
    stored = read_stored_tensors(directory, _PEFT_STEM if is_peft else _PADDLE_STEM)
    products = (match_peft if is_peft else match_paddle)(stored, settings, config)
    if not products:
        raise _no_adapter(directory, "its file of weights holds 0 tensors")
    check_once(products)
    settings.ranks.check_used(len(products))
    settings.alphas.check_used(len(products))
    weights: dict[str, LowRank] = {}
    with Checkpoint(_accounts(stored)) as files:
        for product in products:
            weights.update(_low_ranks(product, scale, files))
    return Adapter(weights)


def _check_files(directory: Path) -> str:
    """Which of the files of settings is there; ModelUnusable unless it is one of them, with weights."""
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        hint = "name the directory that holds adapter_config.json, and check its permissions"
        raise ModelUnusable(f"{directory} cannot be read", error.strerror or str(error), hint) from error
    for name in _PICKLES:
        if name in present and not any(other.endswith(".safetensors") for other in present):
            raise ModelUnusable(
                f"{directory} has its weights in {name}, which is not read",
                "it is a pickle, which can run any program when it is opened",
                "load it with the library that wrote it, and save it again as safetensors",
            )
    found = [name for name in (PEFT_SETTINGS, PADDLE_SETTINGS) if name in present]
    if not found:
        missing = f"neither {PEFT_SETTINGS} nor {PADDLE_SETTINGS} is among its {len(present)} entries"
        raise _no_adapter(directory, missing)
    if len(found) > 1:
        raise ModelUnusable(
            f"{directory} holds 2 adapters: {PEFT_SETTINGS} and {PADDLE_SETTINGS} are there",
            "the first is written by PEFT, the second by PaddleFormers, with weights of their own",
            "move the files of one of them to another directory",
        )
    return found[0]


def _check_family(settings: AdapterSettings, expected: ExpectedShapes) -> None:
    """Refuse an adapter of a text model for one with images, and the other way round."""
    match = _FAMILY.search(settings.base_model or "")
    sees_images = expected.shape("vision.patch_embed.weight") is not None
    if match is not None and bool(match["vision"]) != sees_images:
        raise ModelUnusable(
            f"{settings.where}: base_model_name_or_path is {show(settings.base_model)}, and "
            f"the model given has {expected.describe()}",
            "one of them takes images and the other does not, though their layers can have the same sizes",
            "name the model that the adapter was trained on",
        )


def _accounts(stored: list[StoredTensor]) -> Accounts:
    """Every tensor of the adapter's files, under its name there."""
    sources: dict[str, WeightSource] = {
        one.name: TensorSource(one, one.shape, one.offset, one.num_bytes, False) for one in stored
    }
    return Accounts(sources, ignored=(), tied_head=None, layout="hub", packed={})


def _low_ranks(product: StoredProduct, scale: float, files: Checkpoint) -> dict[str, LowRank]:
    """What a product adds to each of its weights."""
    rank, num_experts = product.rank, product.num_experts
    lora_a, lora_b = _read(product.lora_a, files), _read(product.lora_b, files)
    if product.is_reversed:
        lora_a, lora_b = lora_a.t(), lora_b.t()
    lora_a = lora_a.reshape(num_experts, rank, -1)  # (experts, rank, columns)
    lora_b = lora_b.reshape(-1, rank, num_experts)  # (rows, rank, experts)
    weights, columns_of = {}, {}
    for target in product.targets:
        by_columns, by_rows = lora_a[target.expert], lora_b[..., target.expert]
        if product.is_swapped:
            by_columns, by_rows = by_rows.t(), by_columns.t()
        if target.expert not in columns_of:  # weights that were fused share it
            columns_of[target.expert] = by_columns.contiguous()
        rows = by_rows[target.first_row : target.first_row + target.num_rows]
        scaled = _scaled(rows, product.scale * scale, product, scale)
        weights[target.name] = LowRank(columns_of[target.expert], scaled)
    return weights


def _read(stored: StoredTensor, files: Checkpoint) -> Tensor:
    values = torch.empty(stored.shape, dtype=DTYPES[stored.dtype])
    files.read(stored.name, values)
    return values


def _scaled(rows: Tensor, factor: float, product: StoredProduct, scale: float) -> Tensor:
    """`rows` times `factor`, in their dtype if it holds the result exactly, else in float32."""
    exact = rows.float() * factor
    if not float(exact.abs().max()) <= LARGEST_WEIGHT:
        raise ModelUnusable(
            f"{product.lora_b} times {factor:.6g} has elements over {LARGEST_WEIGHT:.0f}",
            f"its settings make {product.scale:.6g} of that, and the scale asked for is {scale:.6g}",
            "ask for a smaller scale",
        )
    narrow = exact.to(rows.dtype)
    return (narrow if torch.equal(narrow.float(), exact) else exact).contiguous()


def _no_adapter(directory: Path, why: str) -> ModelUnusable:
    return ModelUnusable(
        f"{directory} holds no adapter", why, "name a directory that PEFT or PaddleFormers has written"
    )
