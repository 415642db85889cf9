"""Accounts for every tensor: each tensor of the model has one source, each tensor in the files one use."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ernie_local.checkpoint.compressed import CompressedSource, check_ignored, split_compressed
from ernie_local.checkpoint.header import ITEM_BYTES, StoredTensor
from ernie_local.checkpoint.names import (
    Part,
    WeightLayout,
    is_left_out,
    is_paddle_name,
    layout_of,
    map_name,
    name_in_file,
)
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape, shape_text
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

    @property
    def stored_parts(self) -> tuple[StoredTensor, ...]:
        """The tensor that it lies in."""
        return (self.stored,)

    @property
    def dtype(self) -> str:
        """The type of its values."""
        return self.stored.dtype

    @property
    def format_name(self) -> str:
        """For tables."""
        return self.stored.dtype.lower()


# Where a tensor that is not packed comes from.
WeightSource = TensorSource | CompressedSource


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where the tensors of a model lie in its files."""

    sources: dict[str, WeightSource]  # of each tensor that is not packed, by our name
    ignored: tuple[str, ...]  # tensors in the files that the model does not use
    tied_head: StoredTensor | None  # a second copy of the embedding, to be compared when that is read
    layout: WeightLayout  # whose names the files use
    packed: dict[str, StoredTensor]  # uint8 tensors, by their name in the file, which is also ours
    unused_scales: int = 0  # tensors with scales of activations or of a KV cache

    @property
    def num_compressed(self) -> int:
        """Matrices that another tool has quantized."""
        return sum(isinstance(source, CompressedSource) for source in self.sources.values())


def compression_notes(config: ModelConfig, accounts: Accounts) -> list[str]:
    """A line for each thing to know of weights that another tool has quantized; none for other models."""
    if config.compression is None:
        return []
    lines = config.compression.notes(accounts.num_compressed)
    if accounts.unused_scales:
        lines.append(f"{accounts.unused_scales} scales of activations or of a KV cache are not used")
    return lines


def account(directory: Path, stored: Iterable[StoredTensor], config: ModelConfig) -> Accounts:
    """Match the tensors of the files with those of `config`; ModelUnusable names the first that fails."""
    stored = list(stored)
    _check_not_paddle(stored, config)
    expected = ExpectedShapes(config)
    packed_tensors = PackedTensors(config)
    packed: dict[str, StoredTensor] = {}
    stored, compressed, unused = split_compressed(stored, config, expected)
    sources: dict[str, WeightSource] = dict(compressed)
    ignored: list[str] = []
    heads: list[StoredTensor] = []
    layouts = {layout_of(source.stored.name) for source in compressed.values()}
    for tensor in stored:
        if is_left_out(tensor.name):
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
    head = heads[0] if heads else None
    accounts = Accounts(sources, tuple(ignored), head, layout, packed, len(unused))
    plain = {name: one.stored for name, one in sources.items() if name not in compressed}
    check_ignored(plain, len(compressed), config)
    _check_complete(directory, accounts, config, expected, packed_tensors)
    return accounts


def _check_not_paddle(stored: Iterable[StoredTensor], config: ModelConfig) -> None:
    for tensor in stored:
        if is_paddle_name(tensor.name):
            problem = f"{tensor} is named as in a -Paddle repository"
            raise paddle_format(problem, config.text.hidden_size, reads_images=config.reads_images)


def _check_tensor(tensor: StoredTensor, parts: tuple[Part, ...], expected: ExpectedShapes) -> None:
    shapes = [expected.shape(part.name) for part in parts]
    if not shapes or shapes[0] is None:
        raise ModelUnusable(
            f"{tensor} of shape {shape_text(tensor.shape)} is one too many",
            f"by config.json the model has {expected.describe()}, and no such tensor",
            _COMPARE,
        )
    wanted = stored_shape(parts, shapes[0])
    if tensor.shape != wanted:
        raise ModelUnusable(
            f"{tensor} has the shape {shape_text(tensor.shape)}, expected {shape_text(wanted)}",
            "the expected shape follows from the sizes in config.json",
            _COMPARE,
        )
    if tensor.dtype not in WEIGHT_DTYPES:
        raise ModelUnusable(
            f"{tensor} has the dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}",
            "weights are floating-point numbers; other types belong to quantized or damaged files",
            "use a checkpoint in bfloat16, float16 or float32",
        )


def stored_shape(parts: tuple[Part, ...], ours: TensorShape) -> TensorShape:
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
            f"{tensor} is {tensor.dtype} of shape {shape_text(tensor.shape)}, "
            f"expected U8 of shape {shape_text(wanted)}",
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
            f"{directory}: tensor {show(in_file)} of shape {shape_text(expected.shape(name) or ())} is "
            f"missing; {counted} were found",
            f"by config.json the model has it (here as {name})",
            hint,
        )
    for name, shape in packed_tensors.shapes.items():
        if name not in accounts.packed:
            raise ModelUnusable(
                f"{directory}: packed tensor {show(name)} of shape {shape_text(shape)} is missing; "
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
