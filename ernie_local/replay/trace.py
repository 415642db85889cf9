"""Describes which experts tokens chose, forward by forward: all that a replay needs, without the model.

A file of a trace is one .npz without pickled objects; every number in it is checked when it is read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ernie_local.config import MODALITIES, Bank, BankKey
from ernie_local.errors import InputUnreadable
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.plan import PagingPlan
from ernie_local.files import open_plain, written_whole

VERSION = 2
_MOST_BYTES = 1 << 30  # unpacked: a million tokens of the original
# Of each array: dtype and number of dimensions.
_ARRAYS = {
    "numbers": ("<i8", 1),  # version, top_k
    "model": ("|u1", 1),  # its name in UTF-8
    "pages": ("<i8", 2),  # layer, bank (0 text, 1 vision), expert, bytes
    "forward_tokens": ("<i8", 1),
    "forward_sequences": ("<i8", 1),
    "forward_rows": ("<i8", 1),
    "is_vision": ("|b1", 1),  # of every token of every forward
    "expert_ids": ("<u2", 2),  # of all forwards, one after the other
    "expert_weights": ("<f2", 2),
}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Forward:
    """One prompt chunk, or one decoded token of each of some sequences.

    is_vision: (tokens,) bool, whether the bank of vision serves the token. expert_ids: (rows, top_k) uint16,
    within the bank; expert_weights: the same shape, float32. A row for each token of each layer: layers in
    order, in each the text tokens first. Fewer layers where the forward was interrupted; never a part of a
    bank.
    """

    is_vision: NDArray[np.bool_]
    expert_ids: NDArray[np.uint16]
    expert_weights: NDArray[np.float32]
    num_sequences: int = 1

    @property
    def is_decode(self) -> bool:
        """Whether each sequence has one token."""
        return len(self.is_vision) == self.num_sequences

    @property
    def tokens(self) -> dict[Bank, int]:
        """Tokens of each bank that has any, text first."""
        num_vision = int(self.is_vision.sum())
        counts: dict[Bank, int] = {"text": len(self.is_vision) - num_vision, "vision": num_vision}
        return {bank: count for bank, count in counts.items() if count}


@dataclass(frozen=True, slots=True)
class Call:
    """What one layer asked of one bank: expert_ids is (tokens, top_k)."""

    layer_id: int
    bank: Bank
    expert_ids: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Trace:
    """Of one model: its name, experts of a token, bytes of every page, and the forwards in order."""

    model: str
    top_k: int
    page_bytes: Mapping[ExpertKey, int]
    forwards: tuple[Forward, ...]

    @property
    def plan(self) -> PagingPlan:
        """How the model's pages share a memory."""
        return PagingPlan(self.page_bytes, self.top_k)

    @property
    def layer_ids(self) -> list[int]:
        """Layers that have experts."""
        return sorted({key.layer_id for key in self.page_bytes})

    @property
    def banks(self) -> list[Bank]:
        """Banks that have experts."""
        return [bank for bank in MODALITIES if any(key.bank == bank for key in self.page_bytes)]

    @property
    def decoded_tokens(self) -> int:
        """Tokens of forwards that decode."""
        return sum(forward.num_sequences for forward in self.forwards if forward.is_decode)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all other forwards."""
        return sum(len(forward.is_vision) for forward in self.forwards) - self.decoded_tokens

    def bank_bytes(self, bank: Bank) -> int:
        """Bytes of all pages of a bank."""
        return sum(size for key, size in self.page_bytes.items() if key.bank == bank)

    def calls(self, forward: Forward) -> Iterator[Call]:
        """The calls of one forward in order."""
        rest = forward.expert_ids
        for layer_id, (bank, num_tokens) in product(self.layer_ids, forward.tokens.items()):
            if len(rest):
                yield Call(layer_id, bank, rest[:num_tokens])
                rest = rest[num_tokens:]


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace to `path`, whole or not at all; ErnieLocalError where it cannot be written."""
    forwards = trace.forwards
    nothing = (np.empty((0, trace.top_k)),)
    values: dict[str, Any] = {
        "numbers": [VERSION, trace.top_k],
        "model": list(trace.model.encode()),
        "pages": [
            (key.layer_id, MODALITIES.index(key.bank), key.expert_id, size)
            for key, size in sorted(trace.page_bytes.items())
        ],
        "forward_tokens": [len(forward.is_vision) for forward in forwards],
        "forward_sequences": [forward.num_sequences for forward in forwards],
        "forward_rows": [len(forward.expert_ids) for forward in forwards],
        "is_vision": np.concatenate([np.empty(0), *(forward.is_vision for forward in forwards)]),
        "expert_ids": np.concatenate([*nothing, *(forward.expert_ids for forward in forwards)]),
        "expert_weights": np.concatenate([*nothing, *(forward.expert_weights for forward in forwards)]),
    }
    arrays: dict[str, Any] = {name: np.asarray(values[name], dtype) for name, (dtype, _) in _ARRAYS.items()}
    with written_whole(path, f"the trace of {len(forwards)} forwards") as file:
        np.savez_compressed(file, **arrays)


def read_trace(path: Path) -> Trace:
    """The trace in `path`; InputUnreadable where the file is missing, damaged, or of another version."""
    try:
        arrays = _read_arrays(path)
        numbers = arrays["numbers"].tolist()
        if numbers[:1] != [VERSION]:
            raise ValueError(f"it is of version {numbers[:1]}, version {VERSION} can be read")
        _expect(len(numbers) == 2, "it lacks the number of experts of a token")
        return _to_trace(arrays, numbers[1])
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputUnreadable(
            f"{path}: no trace that can be read",
            str(error) or type(error).__name__,
            "record one with `ernie-local chat --trace FILE`",
        ) from error


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    with open_plain(path) as file, zipfile.ZipFile(file) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        _expect(set(sizes) == {f"{name}.npy" for name in _ARRAYS}, "its arrays are not those of a trace")
        _expect(sum(sizes.values()) <= _MOST_BYTES, f"it unpacks to more than {_MOST_BYTES} bytes")
        return {name: _to_array(name, archive.read(f"{name}.npy")) for name in _ARRAYS}


def _to_array(name: str, data: bytes) -> NDArray[Any]:
    # Not np.load: it allocates what a header asks for before it looks how much there is.
    dtype, dimensions = _ARRAYS[name]
    file = io.BytesIO(data)
    _expect(np.lib.format.read_magic(file) == (1, 0), f"the array {name} is of another version")
    shape, is_fortran, found = np.lib.format.read_array_header_1_0(file)
    _expect(found == np.dtype(dtype) and not is_fortran, f"the array {name} is of type {found}")
    _expect(len(shape) == dimensions, f"the array {name} has {len(shape)} dimensions")
    return np.frombuffer(data, found, offset=file.tell()).reshape(shape)


def _to_trace(arrays: Arrays, top_k: int) -> Trace:
    page_bytes = _page_bytes(arrays["pages"], top_k)
    tokens, rows = arrays["forward_tokens"], arrays["forward_rows"]
    sequences = arrays["forward_sequences"]
    ids, weights = arrays["expert_ids"], arrays["expert_weights"]
    _expect(len(tokens) == len(rows), f"{len(tokens)} forwards have tokens, {len(rows)} have choices")
    _expect(len(tokens) == len(sequences), f"{len(tokens)} forwards have tokens, {len(sequences)} sequences")
    is_known = (sequences == 1) | ((sequences == tokens) & (sequences > 0))
    _expect(bool(is_known.all()), "a sequence of several has more or fewer tokens than one")
    _expect(bool((tokens > 0).all() and (rows > 0).all()), "a forward has no tokens or no choices")
    _expect(int(tokens.sum()) == len(arrays["is_vision"]), "its tokens are more or fewer than it says")
    _expect(ids.shape == weights.shape == (int(rows.sum()), top_k), "its choices are more or fewer")
    _expect(bool(np.isfinite(weights).all()), "a weight is not finite")
    _expect(bool((np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all()), "a token chose an expert twice")
    token_ends, row_ends = [0, *np.cumsum(tokens).tolist()], [0, *np.cumsum(rows).tolist()]
    forwards = tuple(
        Forward(
            arrays["is_vision"][slice(*token_bounds)],
            ids[slice(*row_bounds)],
            weights[slice(*row_bounds)].astype(np.float32),
            num_sequences,
        )
        for token_bounds, row_bounds, num_sequences in zip(
            pairwise(token_ends), pairwise(row_ends), sequences.tolist(), strict=True
        )
    )
    trace = Trace(arrays["model"].tobytes().decode(), top_k, page_bytes, forwards)
    _check_choices(trace)
    return trace


def _page_bytes(pages: NDArray[Any], top_k: int) -> dict[ExpertKey, int]:
    _expect(pages.shape[1] == 4 and bool((pages >= 0).all()), "its pages are not four numbers each")
    _expect(bool((pages[:, 1] < len(MODALITIES)).all()), "a page is of an unknown bank")
    _expect(bool(((pages[:, 3] > 0) & (pages[:, 3] <= _MOST_BYTES)).all()), "a page has an absurd size")
    sizes = {
        ExpertKey(layer_id, MODALITIES[bank], expert_id): size
        for layer_id, bank, expert_id, size in pages.tolist()
    }
    counts: Counter[BankKey] = Counter()
    for key in sorted(sizes):
        _expect(key.expert_id == counts[key[:2]], "the experts of a layer are not numbered from 0")
        counts[key[:2]] += 1
    _expect(len(sizes) == len(pages), "a page is listed twice")
    _expect(any(bank == "text" for _, bank in counts), "it has no pages of text experts")
    banks = {bank for _, bank in counts}
    _expect(len(counts) == len({layer_id for layer_id, _ in counts}) * len(banks), "a layer lacks a bank")
    _expect(0 < top_k <= min(counts.values()), f"a token chose {top_k} of {min(counts.values())} experts")
    return sizes


def _check_choices(trace: Trace) -> None:
    """Every choice is an expert that there is, and a forward ends where one may end."""
    experts = Counter(key[:2] for key in trace.page_bytes)
    for number, forward in enumerate(trace.forwards):
        num_rows = 0
        for call in trace.calls(forward):
            known = experts[call.layer_id, call.bank]
            _expect(len(call.expert_ids) == forward.tokens[call.bank], f"forward {number} ends in a bank")
            _expect(
                int(call.expert_ids.max()) < known,
                f"forward {number} asks for {call.bank} expert {call.expert_ids.max()} of {known}",
            )
            num_rows += len(call.expert_ids)
        _expect(num_rows == len(forward.expert_ids), f"forward {number} has choices of no layer")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)
