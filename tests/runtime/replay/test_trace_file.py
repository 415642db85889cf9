"""Files of traces: what comes back, and what is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ernie_local.errors import ErnieLocalError, InputUnreadable
from ernie_local.experts.keys import ExpertKey
from ernie_local.files import written_whole
from ernie_local.replay.trace import Forward, Trace, read_trace, write_trace

PAGES = {
    ExpertKey(layer_id, bank, expert_id): 100 + expert_id
    for layer_id in (1, 3)
    for bank in ("text", "vision")
    for expert_id in range(5)
}


def forward(is_vision: list[bool], ids: list[list[int]], num_sequences: int = 1) -> Forward:
    weights = np.full((len(ids), 2), 0.5, np.float32)
    return Forward(np.array(is_vision), np.array(ids, np.uint16), weights, num_sequences)


@pytest.fixture
def trace() -> Trace:
    prompt = forward([False, True, False], [[0, 1], [1, 2], [3, 4], [4, 0], [0, 2], [1, 3]])
    return Trace("größe", 2, PAGES, (prompt, forward([False], [[3, 1], [2, 0]]), forward([True], [[0, 4]])))


@pytest.fixture
def path(trace: Trace, tmp_path: Path) -> Path:
    write_trace(tmp_path / "chat.trace", trace)
    return tmp_path / "chat.trace"


def test_what_is_written_comes_back(trace: Trace, path: Path) -> None:
    read = read_trace(path)
    assert (read.model, read.top_k, read.page_bytes) == (trace.model, trace.top_k, trace.page_bytes)
    for before, after in zip(trace.forwards, read.forwards, strict=True):
        for name in ("is_vision", "expert_ids", "expert_weights"):
            assert np.array_equal(getattr(before, name), getattr(after, name))
    assert [path.name for path in path.parent.iterdir()] == ["chat.trace"]
    assert (read.prompt_tokens, read.decoded_tokens, read.layer_ids) == (3, 2, [1, 3])
    calls = [
        (call.layer_id, call.bank, call.expert_ids.tolist())
        for one in read.forwards
        for call in read.calls(one)
    ]
    assert calls == [
        (1, "text", [[0, 1], [1, 2]]),
        (1, "vision", [[3, 4]]),
        (3, "text", [[4, 0], [0, 2]]),
        (3, "vision", [[1, 3]]),
        (1, "text", [[3, 1]]),
        (3, "text", [[2, 0]]),
        (1, "vision", [[0, 4]]),
    ]


def test_a_step_of_several_sequences_comes_back(tmp_path: Path) -> None:
    ids = [[0, 1], [1, 2], [3, 4], [0, 2]]
    forwards = forward([False, False], ids, 2), forward([False, False], ids, 1)
    write_trace(tmp_path / "t", Trace("m", 2, PAGES, forwards))
    read = read_trace(tmp_path / "t")
    assert [one.is_decode for one in read.forwards] == [True, False]
    assert (read.decoded_tokens, read.prompt_tokens) == (2, 2)


def test_a_trace_without_forwards(tmp_path: Path) -> None:
    write_trace(tmp_path / "t", Trace("m", 2, PAGES, ()))
    assert read_trace(tmp_path / "t").forwards == ()


Change = Callable[[dict[str, Any]], None]


def put(name: str, index: object, value: object) -> Change:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name][index] = value

    return change


def replaced(name: str, make: Callable[[Any], Any]) -> Change:
    def change(arrays: dict[str, Any]) -> None:
        arrays[name] = make(arrays[name])

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("numbers", 0, 1), r"version \[1\], version 2"),
        (put("numbers", 1, 3), "more or fewer"),
        (put("numbers", 1, 0), "chose 0 of 5"),
        (replaced("numbers", lambda array: array[:1]), "lacks the number"),
        (put("expert_ids", (0, 0), 5), "text expert 5 of 5"),
        (put("expert_ids", (0, 0), 1), "twice"),
        (put("expert_weights", (1, 1), np.inf), "not finite"),
        (put("forward_tokens", 0, 0), "no tokens"),
        (put("forward_tokens", 0, 4), "tokens are more or fewer"),
        (put("forward_sequences", 0, 2), "more or fewer tokens than one"),
        (replaced("forward_sequences", lambda array: array[1:]), "3 forwards have tokens, 2 sequences"),
        (put("forward_rows", 0, 5), "choices are more or fewer"),
        (replaced("forward_rows", lambda array: np.array([4, 4, 1])), "ends in a bank"),
        (replaced("forward_rows", lambda array: np.array([5, 3, 1])), "choices of no layer"),
        (replaced("forward_rows", lambda array: np.array([6, 1, 2])), None),  # the last: two layers
        (replaced("is_vision", lambda array: ~array), None),  # two vision tokens and one of text
        (replaced("is_vision", lambda array: array.astype(np.int64)), "is of type int64"),
        (replaced("expert_ids", lambda array: array.astype(object)), "Object|type"),
        (replaced("pages", lambda array: array[:-2]), "vision expert 3 of 3"),
        (replaced("pages", lambda array: array[array[:, 1] == 1]), "no pages of text"),
        (replaced("pages", lambda array: array[:15]), "lacks a bank"),
        (replaced("pages", lambda array: np.concatenate([array, array[:1]])), "listed twice"),
        (put("pages", (0, 1), 2), "unknown bank"),
        (put("pages", (0, 3), 0), "absurd size"),
        (put("pages", (0, 2), 7), "not numbered from 0"),
        (put("pages", (0, 0), -1), "four numbers"),
        (lambda arrays: arrays.pop("model"), "not those of a trace"),
        (replaced("model", lambda array: np.array([255], np.uint8)), "utf-8"),
    ],
)
def test_what_cannot_be_is_refused(path: Path, change: Change, why: str | None) -> None:
    arrays = {name: array.copy() for name, array in np.load(path).items()}
    change(arrays)
    with path.open("wb") as file:
        np.savez(file, **arrays)
    if why is None:
        read_trace(path)
        return
    with pytest.raises(InputUnreadable, match=why) as caught:
        read_trace(path)
    assert len(str(caught.value).splitlines()) == 3


def test_every_cut_and_every_flipped_byte_is_refused_or_means_the_same(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(InputUnreadable):
            read_trace(path)
    for index in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[index] ^= 0x55
        path.write_bytes(damaged)
        with suppress(InputUnreadable):
            assert read_trace(path).page_bytes == PAGES


def test_a_header_that_asks_for_terabytes_takes_no_memory(path: Path) -> None:
    header = b"\x93NUMPY\x01\x00\x76\x00"
    shape = b"{'descr': '|b1', 'fortran_order': False, 'shape': (9999999999999,), }"
    arrays = dict(np.load(path).items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as file:
                if name == "is_vision":
                    file.write(header + shape.ljust(0x76 - 1) + b"\n" + bytes(5))
                else:
                    np.lib.format.write_array(file, array)
    with pytest.raises(InputUnreadable, match="cannot reshape"):
        read_trace(path)


def test_missing_file_and_folder_that_is_none(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(InputUnreadable, match="no trace that can be read"):
        read_trace(tmp_path / "no")
    with pytest.raises(ErnieLocalError, match="cannot write the trace of 3 forwards"):
        write_trace(tmp_path / "no" / "t", trace)


def test_a_file_that_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_text("old")

    def fail() -> None:
        with written_whole(path, "it") as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["old"]
