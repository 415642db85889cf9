"""Dequantizes matrices of other tools, block by block, by the code of compressed-tensors.

The library is imported when the first matrix is read. Values have the type of a matrix's scales, as there.
"""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ernie_local.checkpoint.compressed import WORD_BITS, CompressedSource, PartRole
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.config.compression import WeightScheme
from ernie_local.errors import DoesNotFit, ModelUnusable

PACKAGE, OLDEST = "compressed-tensors", (0, 20)
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64, "I32": torch.int32, "I8": torch.int8,
}  # fmt: skip
# The library has several copies of a block, of up to four bytes a weight: some 16 MiB in each thread.
_BLOCK_WEIGHTS = 1 << 20
_AGAIN = "download the file again, or take a checkpoint that was quantized otherwise"
# Fills memory with a part's bytes from one byte of it on.
ReadPart = Callable[[StoredTensor, int, torch.Tensor], None]
# Rows and columns of a matrix, and their values.
Block = tuple[slice, slice, torch.Tensor]


def check_dequantizer(directory: Path, num_matrices: int) -> None:
    """DoesNotFit unless the library is installed that dequantizes the matrices; does not import it."""
    oldest = ".".join(map(str, OLDEST))
    try:
        found = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        found = None
    numbers = [] if found is None else [int(part) for part in found.split(".")[:2] if part.isdigit()]
    if tuple(numbers) < OLDEST:
        has = "is not installed" if found is None else f"is installed in version {found}, older than {oldest}"
        raise DoesNotFit(
            f"{directory} has {num_matrices} matrices that {PACKAGE} dequantizes, which {has}",
            "they were quantized by another tool, and the library of their format reads them",
            'pip install "ernie-local[compressed-tensors]"',
        )


def dequantized_blocks(
    source: CompressedSource, first_row: int, num_rows: int, read: ReadPart
) -> Iterator[Block]:
    """Rows of a matrix, in blocks that cover all of it once; slices count from the first row of the matrix.

    ModelUnusable for scales that are not above zero, or parts that contradict each other. Where all rows are
    asked for, every byte of the parts is read once.
    """
    parts = _PartReader(source, read)
    _check_shape(source, parts)
    if source.scheme.storage == "awq":
        yield from _awq_blocks(source, parts, first_row, num_rows)
        return
    scheme, (rows, columns) = source.scheme, source.shape
    # Words of zero points hold numbers of up to 32 rows, a block's scale those of all of its rows.
    step = WORD_BITS if scheme.block is None else scheme.block[0]
    step *= max(_BLOCK_WEIGHTS // (step * columns), 1)
    order = None if "order" not in source.parts else _column_order(source, parts)
    for start in range(first_row // step * step, first_row + num_rows, step):
        stop = min(start + step, rows)
        values = _dequantize_rows(scheme, _row_tensors(scheme, parts, start, stop), columns, order)
        low, high = max(start, first_row), min(stop, first_row + num_rows)
        yield slice(low, high), slice(0, columns), values[low - start : high - start]


class _PartReader:
    """Reads rows of the parts of one matrix."""

    def __init__(self, source: CompressedSource, read: ReadPart) -> None:
        self._source, self._read = source, read
        self._whole: dict[PartRole, torch.Tensor] = {}

    def stored(self, role: PartRole) -> StoredTensor:
        """The part itself."""
        return self._source.parts[role]

    def present(self, *roles: PartRole) -> list[PartRole]:
        """Those of the roles that the matrix has a part for."""
        return [role for role in roles if role in self._source.parts]

    def whole(self, role: PartRole) -> torch.Tensor:
        """All of a small part; it is kept."""
        if role not in self._whole:
            self._whole[role] = self.rows(role, 0, (self._source.parts[role].shape or (1,))[0])
        return self._whole[role]

    def rows(self, role: PartRole, start: int, stop: int) -> torch.Tensor:
        """Rows of a part, of the type in the file. ModelUnusable for scales that cannot be."""
        stored = self._source.parts[role]
        shape = stored.shape or (1,)
        rows = torch.empty((stop - start, *shape[1:]), dtype=_DTYPES[stored.dtype])
        self._read(stored, stored.offset + start * (stored.num_bytes // shape[0]), rows)
        if role == "scales":
            _check_scales(stored, start * (rows[0].numel() if len(rows) else 0), rows)
        return rows


def _check_shape(source: CompressedSource, parts: _PartReader) -> None:
    if "shape" in source.parts and tuple(found := parts.whole("shape").tolist()) != source.shape:
        rows, columns = source.shape
        raise ModelUnusable(
            f"{source.parts['shape']} says {found[0]} x {found[1]}, by config.json it is {rows} x {columns}",
            "it is the shape of the matrix before its codes were packed",
            _AGAIN,
        )


def _check_scales(stored: StoredTensor, first: int, scales: torch.Tensor) -> None:
    usable = scales > 0  # NaN is not
    usable &= scales.isfinite()
    if bool(usable.all()):
        return
    bad = (~usable).flatten().nonzero().flatten()
    value = float(scales.flatten()[bad[0]])
    raise ModelUnusable(
        f"{stored} holds {value:.6g} at element {first + int(bad[0])}, the first of {len(bad)} there",
        "a scale is a finite number above 0: no other makes weights of codes",
        _AGAIN,
    )


def _column_order(source: CompressedSource, parts: _PartReader) -> torch.Tensor | None:
    """Columns in the order of their groups; None where the files say that they are in order."""
    groups, size = parts.whole("order"), source.scheme.group_size
    assert size is not None
    if bool((groups == -1).all()):
        return None
    wanted = torch.arange(len(groups)) // size
    in_order, order = groups.sort(stable=True)
    if not torch.equal(in_order.long(), wanted):
        raise ModelUnusable(
            f"{source.parts['order']} does not give each of {len(groups) // size} groups {size} columns: it "
            f"has groups from {int(groups.min())} to {int(groups.max())}",
            "it says for each column whose scale is its own",
            _AGAIN,
        )
    return order


def _row_tensors(
    scheme: WeightScheme, parts: _PartReader, start: int, stop: int
) -> dict[PartRole, torch.Tensor]:
    """The parts of some rows, as the library takes them."""
    tensors: dict[PartRole, torch.Tensor] = {"codes": parts.rows("codes", start, stop)}
    if not scheme.is_float and scheme.storage != "pack-quantized":
        _check_codes(parts.stored("codes"), tensors["codes"], scheme.num_bits)
    if scheme.strategy == "tensor":
        return tensors | {role: parts.whole(role).reshape(1) for role in parts.present("scales", "zeros")}
    if scheme.block is not None:
        height = scheme.block[0]
        return tensors | {"scales": parts.rows("scales", start // height, -(-stop // height))}
    tensors["scales"] = parts.rows("scales", start, stop)
    if not scheme.is_symmetric:
        bits = scheme.num_bits if scheme.storage == "pack-quantized" else WORD_BITS
        tensors["zeros"] = parts.rows("zeros", start * bits // WORD_BITS, -(-stop * bits // WORD_BITS))
    return tensors


def _check_codes(stored: StoredTensor, codes: torch.Tensor, num_bits: int) -> None:
    low, high = map(int, torch.aminmax(codes))
    most = 1 << (num_bits - 1)
    if low < -most or high >= most:
        raise ModelUnusable(
            f"{stored} holds codes from {low} to {high}, {num_bits} bits have {-most} to {most - 1}",
            "quantization_config says how many bits a code has",
            _AGAIN,
        )


def _dequantize_rows(
    scheme: WeightScheme, tensors: Mapping[PartRole, torch.Tensor], columns: int, order: torch.Tensor | None
) -> torch.Tensor:
    """(rows, columns) in the type of the scales. order: columns in the order of their groups."""
    codes, scales = tensors["codes"], tensors["scales"]
    rows = len(codes)
    if scheme.storage == "fp8":
        from compressed_tensors.entrypoints.convert import FP8BlockDequantizer

        fp8 = FP8BlockDequantizer(
            targets=("Linear",), weight_block_size=scheme.block or (), dtype=scales.dtype
        )
        weights: torch.Tensor = fp8.process({"m.weight": codes, "m.weight_scale_inv": scales})["m.weight"]
        return weights
    if order is None:
        return _decompress(scheme, tensors, (rows, columns))
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    # The library has left this order of columns to its older versions, and still has every step of it.
    zeros = tensors.get("zeros")
    if scheme.storage == "pack-quantized":
        codes = unpack_from_int32(codes, scheme.num_bits, torch.Size((rows, columns)))
        if zeros is not None:
            zeros = unpack_from_int32(_in_columns(zeros), scheme.num_bits, scales.shape, packed_dim=0)
    in_groups = dequantize(codes[:, order], scales, zeros, _library_scheme(scheme).weights)
    weights = torch.empty_like(in_groups)
    weights[:, order] = in_groups
    return weights


def _decompress(
    scheme: WeightScheme, tensors: Mapping[PartRole, torch.Tensor], shape: tuple[int, int]
) -> torch.Tensor:
    """What the library makes of the parts of (rows, columns)."""
    from compressed_tensors.compressors import BaseCompressor

    is_packed = scheme.storage == "pack-quantized"
    names = {
        "codes": "weight_packed" if is_packed else "weight",
        "scales": "weight_scale",
        "zeros": "weight_zero_point",
    }
    state = {names[role]: tensor for role, tensor in tensors.items()}
    if is_packed:
        if "zeros" in tensors:
            state[names["zeros"]] = _in_columns(tensors["zeros"])
        state["weight_shape"] = torch.tensor(shape)
    compressor = BaseCompressor.get_value_from_registry(scheme.storage)
    weights: torch.Tensor = compressor.decompress(state, _library_scheme(scheme))["weight"]
    return weights


def _in_columns(words: torch.Tensor) -> torch.Tensor:
    """The same words. One row of them, of up to 8 rows of 4 bits, the library can view only as a column."""
    return words.reshape(-1, 1).t() if len(words) == 1 else words


@functools.cache
def _library_scheme(scheme: WeightScheme) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(
        num_bits=scheme.num_bits,
        type="float" if scheme.is_float else "int",
        symmetric=scheme.is_symmetric,
        strategy=scheme.strategy,
        group_size=scheme.group_size,
        block_structure=None if scheme.block is None else list(scheme.block),
    )
    return QuantizationScheme(targets=["Linear"], weights=weights)


def _awq_blocks(
    source: CompressedSource, parts: _PartReader, first_row: int, num_rows: int
) -> Iterator[Block]:
    """AutoAWQ stores our columns as rows, so a block has all rows that are asked for, and some columns."""
    from compressed_tensors.entrypoints.convert import AutoAWQConverter

    scheme, columns = source.scheme, source.shape[1]
    size = scheme.group_size
    assert size is not None
    packed = replace(scheme, storage="pack-quantized")
    converter = AutoAWQConverter(
        bits=scheme.num_bits, group_size=size, zero_point=not scheme.is_symmetric, ignore=(), targets=()
    )
    in_word = WORD_BITS // scheme.num_bits
    low, high = first_row // in_word, -(-(first_row + num_rows) // in_word)
    step = size * max(_BLOCK_WEIGHTS // (size * (high - low) * in_word), 1)
    wanted = slice(first_row - low * in_word, first_row - low * in_word + num_rows)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        tensors = {"m.qweight": parts.rows("codes", start, stop)[:, low:high]}
        scales = parts.rows("scales", start // size, stop // size)
        tensors["m.scales"] = scales[:, low * in_word : high * in_word]
        if not scheme.is_symmetric:
            tensors["m.qzeros"] = parts.rows("zeros", start // size, stop // size)[:, low:high]
        made = converter.process(tensors)
        roles: dict[PartRole, torch.Tensor] = {
            "codes": made["m.weight_packed"],
            "scales": made["m.weight_scale"],
        }
        if not scheme.is_symmetric:
            roles["zeros"] = made["m.weight_zero_point"]
        values = _decompress(packed, roles, ((high - low) * in_word, stop - start))
        yield slice(first_row, first_row + num_rows), slice(start, stop), values[wanted]
