"""Reads `quantization_config` of other tools: which weights the files hold quantized, and how.

compressed-tensors, which llm-compressor writes, AutoAWQ (`awq`), and fp8 in blocks (`fp8`). Such weights are
dequantized when they are read, and from then on plain. Ours is read by `quantization`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from ernie_local.config.keys import Keys
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

CompressedFormat = Literal[
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "awq", "fp8"
]
Strategy = Literal["tensor", "channel", "group", "block"]
ModuleKind = Literal["Linear", "Embedding", "other"]  # as targets name classes of modules

COMPRESSED_TENSORS = "compressed-tensors"
_STORED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_STRATEGIES = ("tensor", "channel", "group", "block")
_TAKE = "take the bfloat16 checkpoint, or one in pack-quantized, int-quantized or float-quantized format"
_REGEX = "re:"
_SIZES = re.compile(r"[0-9]{1,8}x[0-9]{1,8}", re.ASCII)
_LARGEST_BLOCK = 1024  # rows or columns; matrices are padded to whole blocks, and 128 are usual
# A pattern of strangers is tried on every name: one that repeats what it repeats can take forever.
_LONGEST_PATTERN, _MOST_REPEATS = 512, 8


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """How the weights of some modules are quantized: one of `config_groups`.

    group_size: columns that share a scale, for the strategy `group`. block: rows and columns that do, for
    `block`. is_reordered: whether columns are in groups in another order, which the files name. targets:
    names of modules, `re:` patterns, or classes. activations: what the config says of them, None without.
    """

    name: str
    storage: CompressedFormat
    num_bits: int
    is_float: bool = False
    is_symmetric: bool = True
    strategy: Strategy = "group"
    group_size: int | None = None
    block: tuple[int, int] | None = None
    is_reordered: bool = False
    targets: tuple[str, ...] = ("Linear",)
    activations: str | None = None

    @property
    def format_name(self) -> str:
        """For tables: `int4-g32`, `int4-g128-zeros`, `fp8-channel`, `fp8-128x128`."""
        unit = f"g{self.group_size}" if self.group_size is not None else self.strategy
        unit = f"{self.block[0]}x{self.block[1]}" if self.block is not None else unit
        zeros = "" if self.is_symmetric else "-zeros"
        return f"{'fp' if self.is_float else 'int'}{self.num_bits}-{unit}{zeros}"


@dataclass(frozen=True, slots=True)
class CompressionConfig:
    """What another tool has quantized. method: its `quant_method`.

    ignore: modules that are plain, as `targets`. names_all: whether every other module that is targeted is
    quantized. cache: what it says of the KV cache, None if nothing.
    """

    method: str
    schemes: tuple[WeightScheme, ...]
    ignore: tuple[str, ...]
    names_all: bool
    cache: str | None = None

    def find(self, names: Sequence[str], kind: ModuleKind) -> WeightScheme | None:
        """The scheme of the module with these names in files and programs; None for one of no group.

        A name in `targets` counts before a pattern, and a pattern before a class, as in compressed-tensors.
        """
        ranked = ((_rank(names, kind, one.targets), one) for one in self.schemes)
        found = [(rank, scheme) for rank, scheme in ranked if rank is not None]
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def ignores(self, names: Sequence[str], kind: ModuleKind) -> bool:
        """Whether the module with these names is to be plain."""
        return _rank(names, kind, self.ignore) is not None

    @property
    def formats(self) -> str:
        """For people, such as `int4-g32`."""
        return ", ".join(dict.fromkeys(one.format_name for one in self.schemes))

    def notes(self, num_matrices: int) -> list[str]:
        """A line for each thing that a user should know where so many matrices are read."""
        who = f"{num_matrices} matrices are quantized by {self.method} ({self.formats})"
        lines = [f"{who}: they are dequantized as they are read, and take memory like others"]
        activations = dict.fromkeys(one.activations for one in self.schemes if one.activations is not None)
        if activations:
            lines.append(
                f"quantization_config has activations in {', '.join(activations)}: they are computed "
                "unquantized"
            )
        if self.cache is not None:
            lines.append(f"quantization_config has a KV cache in {self.cache}: it is not quantized like that")
        return lines


def read_compression(keys: Keys) -> CompressionConfig:
    """keys: of a `quantization_config` that is not ours. ModelUnusable for what cannot be read."""
    method = keys.value("quant_method")
    if method == COMPRESSED_TENSORS:
        return _compressed_tensors(keys)
    if method == "awq":
        return _awq(keys)
    if method == "fp8":
        return _fp8(keys)
    raise ModelUnusable(
        f"{keys.where}: quantization_config has quant_method {show(method)}, read are ernie_local, "
        f"{COMPRESSED_TENSORS}, awq and fp8",
        "there is no code here that dequantizes weights of another tool",
        _TAKE,
    )


def _compressed_tensors(keys: Keys) -> CompressionConfig:
    for key in ("version", "global_compression_ratio", "run_compressed", "dequantize"):
        keys.value(key)  # who wrote it, and how another program computes with it
    keys.only("quantization_status", "compressed", "frozen")  # older files say frozen of compressed weights
    for key, subject in (
        ("sparsity_config", "sparse weights"),
        ("transform_config", "weights that were rotated"),
        ("moe_sparsity_config", "pruned experts"),
    ):
        value = keys.value(key)
        if value and value != {"format": "dense"}:
            raise _unread(keys, key, f"is {show(value)}", f"{subject} are not restored here")
    form = keys.value("format")
    schemes: list[WeightScheme] = []
    for name, group in keys.mapping("config_groups").items():
        if not isinstance(group, dict):
            raise _unread(keys, f"config_groups.{name}", f"is {show(group)}", "presets by name are not read")
        own = Keys(group, keys.where, f"quantization_config.config_groups.{show(name)}.")
        schemes.append(_group(own, name, form))
    if not schemes:
        raise keys.refuse("config_groups", "names no group of weights")
    cache = keys.value("kv_cache_scheme")
    words = None if cache is None else _described(keys.section("kv_cache_scheme"))
    ignore = _texts(keys, "ignore")
    keys.finish()
    return CompressionConfig(COMPRESSED_TENSORS, tuple(schemes), ignore, names_all=True, cache=words)


def _group(keys: Keys, name: str, form: object) -> WeightScheme:
    """One of `config_groups`. form: of the whole file, for a group that names none."""
    own = keys.value("format")
    storage = form if own is None else own
    if storage not in _STORED:
        raise _unread(keys, "format", f"is {show(storage)}", f"read are {', '.join(_STORED)}")
    activations = [
        _described(keys.section(key))
        for key in ("input_activations", "output_activations")
        if keys.value(key) is not None
    ]
    targets = _texts(keys, "targets")
    weights = keys.section("weights")
    keys.finish()
    scheme = _weights(
        weights, name, cast("CompressedFormat", storage), targets, " and ".join(activations) or None
    )
    if scheme.is_float and (storage == "pack-quantized" or scheme.num_bits != 8):
        raise _unread(weights, "num_bits", f"is {scheme.num_bits} of float", "of floats, fp8 is read")
    if scheme.is_float != (storage == "float-quantized") and storage != "naive-quantized":
        raise weights.refuse("type", f"is {'float' if scheme.is_float else 'int'} in the format {storage}")
    if scheme.is_float and not scheme.is_symmetric:
        raise weights.refuse("symmetric", "is false, and fp8 has no zero points")
    return scheme


def _weights(
    keys: Keys, name: str, storage: CompressedFormat, targets: tuple[str, ...], activations: str | None
) -> WeightScheme:
    for key in ("observer", "observer_kwargs", "scale_dtype", "zp_dtype"):
        keys.value(key)  # how scales were found; the files say their types
    keys.only("dynamic", False)
    keys.only("type", "int", "float")
    order = keys.value("actorder")
    if order not in (None, False, "weight", "static", "group", "dynamic"):
        raise keys.refuse("actorder", f"is {show(order)}, expected weight, static, group or dynamic")
    group_size = None if keys.value("group_size") is None else keys.integer("group_size", low=-1)
    strategy = keys.value("strategy")
    if strategy is None:
        strategy = "tensor" if group_size is None else "channel" if group_size == -1 else "group"
    if strategy not in _STRATEGIES:
        raise _unread(keys, "strategy", f"is {show(strategy)}", f"read are {', '.join(_STRATEGIES)}")
    if (strategy == "group") != (group_size is not None and group_size > 0):
        raise keys.refuse("group_size", f"is {show(keys.value('group_size'))} with the strategy {strategy}")
    block = _block(keys, "block_structure")
    if (strategy == "block") != (block is not None):
        problem = f"is {show(keys.value('block_structure'))} with the strategy {strategy}"
        raise keys.refuse("block_structure", problem)
    is_reordered = order in ("group", "dynamic")
    if is_reordered and strategy != "group":
        raise keys.refuse("actorder", f"is {show(order)} with the strategy {strategy}")
    scheme = WeightScheme(
        name=name,
        storage=storage,
        num_bits=keys.integer("num_bits", 8, low=2, high=8),
        is_float=keys.value("type") == "float",
        is_symmetric=keys.boolean("symmetric", True),
        strategy=cast("Strategy", strategy),
        group_size=group_size if strategy == "group" else None,
        block=block,
        is_reordered=is_reordered,
        targets=targets,
        activations=activations,
    )
    if block is not None and not (scheme.is_symmetric and storage != "pack-quantized"):
        raise keys.refuse("strategy", f"is block in {storage} with zero points, or packed")
    keys.finish()
    return scheme


def _awq(keys: Keys) -> CompressionConfig:
    for key in ("backend", "do_fuse", "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "desc_act"):
        keys.value(key)  # how another program computes with it
    version = keys.value(keys.alias("version", "format"))
    if not isinstance(version, str) or version.lower() != "gemm":
        raise _unread(keys, "version", f"is {show(version)}", "of AutoAWQ's layouts, gemm is read")
    bits = keys.integer(keys.alias("bits", "w_bit"))
    if bits != 4:
        raise _unread(keys, "bits", f"is {bits}", "AutoAWQ's layout is read with 4 bits")
    scheme = WeightScheme(
        name="awq",
        storage="awq",
        num_bits=bits,
        is_symmetric=not keys.boolean("zero_point", True),
        group_size=keys.integer(keys.alias("group_size", "q_group_size")),
    )
    plain = _parts_of_names(keys, "modules_to_not_convert")
    keys.finish()
    return CompressionConfig("awq", (scheme,), plain, names_all=False)


def _fp8(keys: Keys) -> CompressionConfig:
    keys.only("fmt", "e4m3")
    keys.only("scale_fmt", "float")
    keys.only("expert_dtype", "fp8")
    keys.only("dequantize", False)
    if keys.value("weight_block_size") is None:
        raise _unread(keys, "weight_block_size", "is missing", "of this kind, fp8 in blocks is read")
    activations = keys.value("activation_scheme")
    scheme = WeightScheme(
        name="fp8",
        storage="fp8",
        num_bits=8,
        is_float=True,
        strategy="block",
        block=_block(keys, "weight_block_size"),
        activations=None if activations is None else f"fp8 ({show(activations)})",
    )
    plain = _parts_of_names(keys, keys.alias("modules_to_not_convert", "ignored_layers"))
    keys.finish()
    return CompressionConfig("fp8", (scheme,), plain, names_all=False)


def _described(keys: Keys) -> str:
    """What a config says of activations or a cache, for a line."""
    for key in (
        *("actorder", "block_structure", "dynamic", "group_size", "observer", "observer_kwargs"),
        *("scale_dtype", "strategy", "symmetric", "zp_dtype"),
    ):
        keys.value(key)
    kind = "fp" if keys.value("type") == "float" else "int"
    text = f"{kind}{keys.integer('num_bits', 8, low=1, high=16)}"
    keys.finish()
    return text


def _block(keys: Keys, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block, as a list or as a text like 128x128."""
    value = keys.value(key)
    if value is None:
        return None
    sizes: object = value
    if isinstance(value, str) and _SIZES.fullmatch(value):
        sizes = [int(size) for size in value.split("x")]
    match sizes:
        case [int(rows), int(columns)] if min(rows, columns) > 0 and max(rows, columns) <= _LARGEST_BLOCK:
            return rows, columns
    raise keys.refuse(key, f"is {show(value)}, expected rows and columns of a block, up to {_LARGEST_BLOCK}")


def _texts(keys: Keys, key: str) -> tuple[str, ...]:
    """A list of names and patterns; empty where there is none."""
    values = keys.value(key)
    if not isinstance(values, list | tuple | None):
        raise keys.refuse(key, f"is {show(values)}, a list is expected")
    for value in values or ():
        if not isinstance(value, str):
            raise keys.refuse(key, f"holds {show(value)}, a name is expected")
        if value.startswith(_REGEX):
            _check_pattern(keys, key, value)
    return tuple(str(value) for value in values or ())


def _check_pattern(keys: Keys, key: str, value: str) -> None:
    pattern = value.removeprefix(_REGEX)
    repeats = len(re.findall(r"[*+{]", pattern))
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise keys.refuse(key, f"holds {show(value)}, which is no pattern: {error}") from error
    if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        problem = f"holds {show(value)} of {len(pattern)} characters with {repeats} repetitions"
        raise keys.refuse(key, f"{problem}; at most {_LONGEST_PATTERN} and {_MOST_REPEATS}, of no group")


def _parts_of_names(keys: Keys, key: str) -> tuple[str, ...]:
    """A list whose entries are parts of names, as patterns."""
    return tuple(f"{_REGEX}.*{re.escape(text)}" for text in _texts(keys, key))


def _rank(names: Sequence[str], kind: ModuleKind, targets: Sequence[str]) -> int | None:
    """0 where a name is among the targets, 1 for a pattern, 2 for a class; None for none of them."""
    if any(name in targets for name in names):
        return 0
    patterns = (target.removeprefix(_REGEX) for target in targets if target.startswith(_REGEX))
    if any(re.match(pattern, name) for pattern in patterns for name in names):
        return 1
    return 2 if kind in targets else None


def _unread(keys: Keys, key: str, problem: str, why: str) -> ModelUnusable:
    """The error for what a tool can write and this program does not read."""
    return ModelUnusable(keys.refuse(key, problem).what, why, _TAKE)
