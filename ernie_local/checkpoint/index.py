"""Accounts for every tensor: each tensor of the model has one source, each tensor in the files one use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ernie_local.checkpoint.header import ITEM_BYTES, StoredTensor
from ernie_local.checkpoint.names import (
    Part,
    WeightLayout,
    is_paddle_name,
    is_training_counter,
    layout_of,
    map_name,
    name_in_file,
)
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape
from ernie_local.config import ModelConfig
from ernie_local.config.relatives import paddle_format
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

WEIGHT_DTYPES = ("F32", "F16", "BF16")
_HEAD, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"
_COMPARE = "check that config.json and the weights come from the same model and revision"


@dataclass(frozen=True, slots=True)
class TensorSource:
    """Where the bytes of one of our tensors lie: one range of a file."""

    stored: StoredTensor
    shape: TensorShape  # ours; reversed in the file if `transposed`
    offset: int
    num_bytes: int
    transposed: bool


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where the tensors of a model lie in its files."""

    sources: dict[str, TensorSource]  # of each tensor that is not packed, by our name
    ignored: tuple[str, ...]  # tensors in the files that the model does not use
    tied_head: StoredTensor | None  # a second copy of the embedding, to be compared when that is read
    layout: WeightLayout  # whose names the files use
    packed: dict[str, StoredTensor]  # uint8 tensors, by their name in the file, which is also ours


def account(directory: Path, stored: Iterable[StoredTensor], config: ModelConfig) -> Accounts:
    """Match the tensors of the files with those of `config`; ModelUnusable names the first that fails."""
    stored = list(stored)
    _check_not_paddle(stored, config)
    expected = ExpectedShapes(config)
    packed_tensors = PackedTensors(config)
    packed: dict[str, StoredTensor] = {}
    sources: dict[str, TensorSource] = {}
    ignored: list[str] = []
    heads: list[StoredTensor] = []
    layouts: set[WeightLayout | None] = set()
    for tensor in stored:
        if is_training_counter(tensor.name):
            ignored.append(tensor.name)
            continue
        if tensor.name in packed_tensors.shapes:
            if tensor.name in packed:
                raise _double(tensor, packed[tensor.name])
            _check_packed(tensor, packed_tensors.shapes[tensor.name])
            packed[tensor.name] = tensor
            continue
        layouts.add(layout_of(tensor.name))
        parts = map_name(tensor.name, config.text.banks)
        if config.text.tie_word_embeddings and [part.name for part in parts] == [_HEAD]:
            _check_tensor(tensor, (Part(_EMBEDDING),), expected)
            heads.append(tensor)
            continue
        _check_tensor(tensor, parts, expected)
        for part in parts:
            if packed_tensors.replaces(part.name):
                raise _packed_too(tensor)
            if part.name in sources:
                raise _double(tensor, sources[part.name].stored)
            sources[part.name] = _source(tensor, part, expected)
    if len(heads) > 1:
        raise _double(heads[1], heads[0])
    if heads and packed_tensors.replaces(_EMBEDDING):
        raise _packed_too(heads[0])
    if heads and _EMBEDDING not in sources:
        # A writer that stores shared tensors once may have kept either name.
        sources[_EMBEDDING] = _source(heads.pop(), Part(_EMBEDDING), expected)
    layout: WeightLayout = "native" if "native" in layouts else "hub"
    accounts = Accounts(sources, tuple(ignored), heads[0] if heads else None, layout, packed)
    _check_complete(directory, accounts, config, expected, packed_tensors)
    return accounts


def _check_not_paddle(stored: Iterable[StoredTensor], config: ModelConfig) -> None:
    for tensor in stored:
        if is_paddle_name(tensor.name):
            raise paddle_format(f"{tensor} is named as in a -Paddle repository", config.text.hidden_size)


def _check_tensor(tensor: StoredTensor, parts: tuple[Part, ...], expected: ExpectedShapes) -> None:
    shapes = [expected.shape(part.name) for part in parts]
    if not shapes or shapes[0] is None:
        raise ModelUnusable(
            f"{tensor} of shape {_shape_text(tensor.shape)} is one too many",
            f"by config.json the model has {expected.describe()}, and no such tensor",
            _COMPARE,
        )
    wanted = _stored_shape(parts, shapes[0])
    if tensor.shape != wanted:
        raise ModelUnusable(
            f"{tensor} has the shape {_shape_text(tensor.shape)}, expected {_shape_text(wanted)}",
            "the expected shape follows from the sizes in config.json",
            _COMPARE,
        )
    if tensor.dtype not in WEIGHT_DTYPES:
        raise ModelUnusable(
            f"{tensor} has the dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}",
            "weights are floating-point numbers; other types belong to quantized or damaged files",
            "use a checkpoint in bfloat16, float16 or float32",
        )


def _stored_shape(parts: tuple[Part, ...], ours: TensorShape) -> TensorShape:
    """The shape in the file of a tensor with exactly these parts, each of the shape `ours`."""
    part = parts[0]
    shape = ours[::-1] if part.transposed else ours
    if part.half is not None:
        shape = (2 * shape[0], *shape[1:])
    if part.row is not None:
        shape = (len({part.row for part in parts}), *shape)
    return shape


def _source(tensor: StoredTensor, part: Part, expected: ExpectedShapes) -> TensorSource:
    shape = expected.shape(part.name)
    assert shape is not None, part.name  # _check_tensor saw to it
    num_bytes = math.prod(shape) * ITEM_BYTES[tensor.dtype]
    halves_per_row = 2 if part.half is not None else 1
    skipped = (part.row or 0) * halves_per_row + (part.half or 0)
    return TensorSource(tensor, shape, tensor.offset + skipped * num_bytes, num_bytes, part.transposed)


def _check_packed(tensor: StoredTensor, wanted: TensorShape) -> None:
    if tensor.shape != wanted or tensor.dtype != "U8":
        raise ModelUnusable(
            f"{tensor} is {tensor.dtype} of shape {_shape_text(tensor.shape)}, "
            f"expected U8 of shape {_shape_text(wanted)}",
            "the expected shape follows from the sizes and formats in config.json",
            _COMPARE,
        )


def _check_complete(
    directory: Path,
    accounts: Accounts,
    config: ModelConfig,
    expected: ExpectedShapes,
    packed_tensors: PackedTensors,
) -> None:
    """ModelUnusable for the first tensor of the model, plain or packed, that no file holds."""
    hint = f"{_COMPARE}, and that the download is complete"
    for name in expected.names():
        if name in accounts.sources or packed_tensors.replaces(name):
            continue
        if packed_tensors.shapes:
            in_file, counted = name, f"{len(accounts.sources)} others that are not packed"
        else:
            in_file = name_in_file(name, accounts.layout, config.text.banks)
            counted = f"{len(accounts.sources)} of {expected.count()} tensors"
        raise ModelUnusable(
            f"{directory}: tensor {show(in_file)} of shape {_shape_text(expected.shape(name) or ())} is "
            f"missing; {counted} were found",
            f"by config.json the model has it (here as {name})",
            hint,
        )
    for name, shape in packed_tensors.shapes.items():
        if name not in accounts.packed:
            raise ModelUnusable(
                f"{directory}: packed tensor {show(name)} of shape {_shape_text(shape)} is missing; "
                f"{len(accounts.packed)} of {len(packed_tensors.shapes)} packed tensors were found",
                "quantization_config in config.json names it",
                hint,
            )


def _packed_too(tensor: StoredTensor) -> ModelUnusable:
    return ModelUnusable(
        f"{tensor} is there, and quantization_config says that it is packed",
        "the same weights must not be there twice",
        _COMPARE,
    )


def _double(tensor: StoredTensor, other: StoredTensor) -> ModelUnusable:
    return ModelUnusable(
        f"{tensor} at byte {tensor.offset} is there twice, "
        f"also as {show(other.name)} at byte {other.offset} of {other.path.name}",
        "both stand for the same weights of the model, and only one can be right",
        _COMPARE,
    )


def _shape_text(shape: TensorShape) -> str:
    return "(" + ", ".join(show(size) for size in shape) + ")"
