"""Matches matrices that another tool has quantized: several tensors in the files are one weight of the model.

Only headers are read. What the bytes mean is in `dequantize`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.names import map_name, name_in_file
from ernie_local.checkpoint.shapes import ExpectedShapes, TensorShape, shape_text
from ernie_local.config import ModelConfig
from ernie_local.config.compression import CompressedFormat, CompressionConfig, ModuleKind, WeightScheme
from ernie_local.errors import ModelUnusable

PartRole = Literal["codes", "scales", "zeros", "shape", "order"]

_PACKED: dict[str, PartRole] = {
    "weight_packed": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zeros",
    "weight_shape": "shape",
    "weight_g_idx": "order",
}
_PLAIN: dict[str, PartRole] = {"weight": "codes", **{name: _PACKED[name] for name in list(_PACKED)[1:]}}
# How the tensors of a matrix end in files, and what each is.
_SUFFIXES: dict[CompressedFormat, dict[str, PartRole]] = {
    "pack-quantized": _PACKED,
    "int-quantized": _PLAIN,
    "float-quantized": _PLAIN,
    "naive-quantized": _PLAIN,
    "awq": {"qweight": "codes", "scales": "scales", "qzeros": "zeros"},
    "fp8": {"weight": "codes", "weight_scale_inv": "scales"},
}
_ANY_SUFFIX = frozenset(suffix for one in _SUFFIXES.values() for suffix in one) - {"weight"}
# Of activations and of the KV cache, which are not quantized here.
_UNUSED = frozenset(
    f"{name}_{what}" for name in ("input", "output") for what in ("scale", "zero_point", "global_scale")
) | {"q_scale", "k_scale", "v_scale"}
_CODE_DTYPES = ("I8", "F8_E4M3")  # of a matrix whose codes have the name of a plain weight
SCALE_DTYPES = ("F32", "F16", "BF16")
WORD_BITS = 32
_COMPARE = "check that config.json and the weights come from the same model and revision"
# What models keep as nn.Linear, and what tools quantize.
_NOT_LINEAR = ("_router.weight", "embed_tokens.weight", "patch_embed.weight")


@dataclass(frozen=True, slots=True)
class CompressedSource:
    """Where one of our matrices lies that another tool has quantized. shape: (rows, columns), as ours."""

    scheme: WeightScheme
    shape: TensorShape
    parts: Mapping[PartRole, StoredTensor]

    @property
    def stored(self) -> StoredTensor:
        """The codes."""
        return self.parts["codes"]

    @property
    def stored_parts(self) -> tuple[StoredTensor, ...]:
        """All of its tensors in the files."""
        return tuple(self.parts.values())

    @property
    def offset(self) -> int:
        """Of the codes in their file."""
        return self.stored.offset

    @property
    def num_bytes(self) -> int:
        """Of all of its tensors."""
        return sum(part.num_bytes for part in self.parts.values())

    @property
    def dtype(self) -> str:
        """The type of its values: that of its scales."""
        return self.parts["scales"].dtype

    @property
    def transposed(self) -> bool:
        """Never: only routers are, which nobody quantizes."""
        return False

    @property
    def format_name(self) -> str:
        """For tables, such as `int4-g32`."""
        return self.scheme.format_name


def is_compressed_part(name: str) -> bool:
    """Whether a file's tensor is a part of a quantized matrix by its name; codes may be named as weights."""
    return name.rpartition(".")[2] in _ANY_SUFFIX


def split_compressed(
    stored: Iterable[StoredTensor], config: ModelConfig, expected: ExpectedShapes
) -> tuple[list[StoredTensor], dict[str, CompressedSource], list[StoredTensor]]:
    """Plain tensors; quantized matrices by our name; and scales of activations, which are not used.

    ModelUnusable for a matrix of which parts are missing, one too many, of another shape or type, or not as
    quantization_config says.
    """
    plain: list[StoredTensor] = []
    unused: list[StoredTensor] = []
    modules: dict[str, dict[str, StoredTensor]] = {}
    weights: dict[str, StoredTensor] = {}
    for tensor in stored:
        module, _, suffix = tensor.name.rpartition(".")
        if suffix in _ANY_SUFFIX or (suffix == "weight" and tensor.dtype in _CODE_DTYPES):
            modules.setdefault(module, {})[suffix] = tensor
        elif suffix in _UNUSED and config.compression is not None:
            unused.append(tensor)
        else:
            plain.append(tensor)
            if suffix == "weight":
                weights[module] = tensor
    if modules and config.compression is None:
        first = next(iter(next(iter(modules.values())).values()))
        raise ModelUnusable(
            f"{first} is a part of a quantized matrix, one of {len(modules)}, and config.json has no "
            "quantization_config",
            "it says how the numbers are to be read",
            _COMPARE,
        )
    if config.compression is None:
        return plain, {}, []
    found: dict[str, CompressedSource] = {}
    for module, parts in modules.items():
        if module in weights:
            raise _two_layouts(module, parts, weights[module])
        ours, source = _matrix(module, parts, config, config.compression, expected)
        if ours in found:
            raise _twice(source, found[ours])
        found[ours] = source
    _check_groups(config.compression, found)
    return plain, found, unused


def check_ignored(plain: Mapping[str, StoredTensor], num_quantized: int, config: ModelConfig) -> None:
    """ModelUnusable where quantization_config says that a matrix is quantized, and the files have it plain.

    plain: of our names. num_quantized: matrices that are quantized.
    """
    compression = config.compression
    if compression is None or not compression.names_all:
        return
    wrong: list[StoredTensor] = []
    for ours, tensor in plain.items():
        module, _, suffix = tensor.name.rpartition(".")
        if suffix != "weight" or len(tensor.shape) != 2 or ours.endswith(_NOT_LINEAR):
            continue
        names = _names(module, ours, config)
        if compression.find(names, "Linear") is not None and not compression.ignores(names, "Linear"):
            wrong.append(tensor)
    if wrong:
        raise ModelUnusable(
            f"{wrong[0]} is {wrong[0].dtype}, one of {len(wrong)} matrices that quantization_config says are "
            f"quantized and that are not; {num_quantized} are",
            "a group of config_groups targets it, and ignore does not name it",
            _COMPARE,
        )


def _matrix(
    module: str,
    parts: Mapping[str, StoredTensor],
    config: ModelConfig,
    compression: CompressionConfig,
    expected: ExpectedShapes,
) -> tuple[str, CompressedSource]:
    first = next(iter(parts.values()))
    mapped = map_name(f"{module}.weight", config.text.banks)
    shape = expected.shape(mapped[0].name) if len(mapped) == 1 else None
    is_matrix = shape is not None and len(shape) == 2 and not mapped[0].transposed
    if shape is None or not is_matrix:
        raise ModelUnusable(
            f"{first} of shape {shape_text(first.shape)} is one too many",
            f"by config.json the model has {expected.describe()}, and no such matrix to quantize",
            _COMPARE,
        )
    ours = mapped[0].name
    names, kind = _names(module, ours, config), _kind(ours)
    scheme = compression.find(names, kind)
    if scheme is None:
        targets = [target for one in compression.schemes for target in one.targets]
        raise ModelUnusable(
            f"{first} is a part of a quantized matrix, and 0 of {len(targets)} targets in "
            "quantization_config name it",
            "the group of its module says how the numbers are to be read",
            _COMPARE,
        )
    if compression.ignores(names, kind):
        raise ModelUnusable(
            f"{first} is {first.dtype}, a part of a quantized matrix; ignore in quantization_config names it "
            f"among {len(compression.ignore)}",
            "modules that ignore names are plain in the files",
            _COMPARE,
        )
    wanted = dict(_wanted_parts(scheme, shape, first))
    return ours, CompressedSource(scheme, shape, dict(_checked(module, parts, scheme, wanted)))


def _checked(
    module: str,
    parts: Mapping[str, StoredTensor],
    scheme: WeightScheme,
    wanted: Mapping[PartRole, tuple[tuple[str, ...], list[TensorShape]]],
) -> Iterator[tuple[PartRole, StoredTensor]]:
    """The parts by role. wanted: the types and shapes that each may have."""
    suffixes = _SUFFIXES[scheme.storage]
    needed = {suffix: role for suffix, role in suffixes.items() if role in wanted}
    first = next(iter(parts.values()))
    words = f"{scheme.storage}, {scheme.format_name}"
    for suffix in needed:
        if suffix not in parts:
            raise ModelUnusable(
                f"{first} is there, and {module}.{suffix} is missing: {len(parts)} of {len(needed)} parts",
                f"a matrix in {words} has {', '.join(needed)}",
                f"{_COMPARE}, and that the download is complete",
            )
    for suffix, tensor in parts.items():
        if suffix not in needed:
            raise ModelUnusable(
                f"{tensor} is one too many: a matrix in {words} has {len(needed)} parts, not {len(parts)}",
                f"by quantization_config they are {', '.join(needed)}",
                _COMPARE,
            )
    for suffix, role in needed.items():
        tensor, (dtypes, shapes) = parts[suffix], wanted[role]
        if tensor.dtype not in dtypes or tensor.shape not in shapes:
            raise ModelUnusable(
                f"{tensor} is {tensor.dtype} of shape {shape_text(tensor.shape)}, expected "
                f"{' or '.join(dtypes)} of shape {shape_text(shapes[0])}",
                f"that follows from the sizes in config.json and its quantization_config, {words}",
                _COMPARE,
            )
        yield role, tensor


def _wanted_parts(
    scheme: WeightScheme, shape: TensorShape, first: StoredTensor
) -> Iterator[tuple[PartRole, tuple[tuple[str, ...], list[TensorShape]]]]:
    """Types and shapes of the parts of a matrix of (rows, columns). The first shape is the usual one."""
    rows, columns = shape
    if scheme.group_size is not None and columns % scheme.group_size:
        raise ModelUnusable(
            f"{first}: groups of {scheme.group_size} columns in a matrix of {columns}",
            "each group has one scale, and no column is left over",
            _COMPARE,
        )
    scales = _scale_shapes(scheme, rows, columns)
    words = rows * scheme.num_bits / WORD_BITS  # of codes or zero points that are packed along rows
    zeros: tuple[tuple[str, ...], list[TensorShape]] = ("I8",), scales
    if scheme.storage == "awq":
        if not words.is_integer():
            raise ModelUnusable(
                f"{first}: {rows} rows of {scheme.num_bits} bits in words of {WORD_BITS}",
                "AutoAWQ packs 8 rows into each word",
                _COMPARE,
            )
        yield "codes", (("I32",), [(columns, int(words))])
        scales = [one[::-1] for one in scales]
        zeros = ("I32",), [(scales[0][0], int(words))]
    elif scheme.storage == "pack-quantized":
        yield "codes", (("I32",), [(rows, -(-columns * scheme.num_bits // WORD_BITS))])
        yield "shape", (("I64", "I32"), [(2,)])
        if scheme.strategy != "tensor":
            zeros = ("I32",), [(-(-rows * scheme.num_bits // WORD_BITS), scales[0][1])]
    else:
        yield "codes", (("F8_E4M3" if scheme.is_float else "I8",), [shape])
    yield "scales", (SCALE_DTYPES, scales)
    if not scheme.is_symmetric:
        yield "zeros", zeros
    if scheme.is_reordered:
        yield "order", (("I32", "I64"), [(columns,)])


def _scale_shapes(scheme: WeightScheme, rows: int, columns: int) -> list[TensorShape]:
    if scheme.group_size is not None:
        return [(rows, columns // scheme.group_size)]
    if scheme.block is not None:
        return [(-(-rows // scheme.block[0]), -(-columns // scheme.block[1]))]
    return [(rows, 1)] if scheme.strategy == "channel" else [(1,), ()]


def _names(module: str, ours: str, config: ModelConfig) -> tuple[str, ...]:
    """Names of a module: in the files, with and without `model.`, and in transformers' own model."""
    other = module.removeprefix("model.") if module.startswith("model.") else f"model.{module}"
    native = name_in_file(ours, "native", config.text.banks).removesuffix(".weight")
    return module, other, native


def _kind(ours: str) -> ModuleKind:
    if ours == "embed_tokens.weight":
        return "Embedding"
    return "other" if ours.endswith(_NOT_LINEAR) else "Linear"


def _check_groups(compression: CompressionConfig, found: Mapping[str, CompressedSource]) -> None:
    used = {source.scheme.name for source in found.values()}
    for scheme in compression.schemes:
        if scheme.name not in used:
            raise ModelUnusable(
                f"quantization_config has the group {scheme.name} in {scheme.format_name}, and 0 of the "
                f"{len(found)} quantized matrices in the files are of it",
                f"it targets {', '.join(scheme.targets) or 'nothing'}",
                _COMPARE,
            )


def _two_layouts(module: str, parts: Mapping[str, StoredTensor], weight: StoredTensor) -> ModelUnusable:
    return ModelUnusable(
        f"{weight} is {weight.dtype}, and {len(parts)} parts of the same matrix in a quantized format are "
        f"there too: {', '.join(f'{module}.{suffix}' for suffix in parts)}",
        "only one of them can be right",
        _COMPARE,
    )


def _twice(source: CompressedSource, other: CompressedSource) -> ModelUnusable:
    return ModelUnusable(
        f"{source.stored} is there twice, also as {other.stored.name} in {other.stored.path.name}",
        "both stand for the same weights of the model, and only one can be right",
        _COMPARE,
    )
