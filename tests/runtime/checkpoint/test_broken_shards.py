"""Shards and index that contradict each other, or lead elsewhere: refused by file, tensor and number."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"  # in the first shard
NORM = "model.norm.weight"  # in the second
Index = dict[str, Any]


@pytest.fixture
def shards(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model in two shards of 30 and 143 tensors; the caller adds the index."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(tiny_checkpoint / "model.safetensors")
    names = sorted(tensors, key=lambda name: (name != EMBEDDING, name == NORM, name))
    save_file({name: tensors[name] for name in names[:30]}, tmp_path / FIRST)
    save_file({name: tensors[name] for name in names[30:]}, tmp_path / SECOND)
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    weight_map = {name: FIRST if position < 30 else SECOND for position, name in enumerate(names)}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return tmp_path


def read_index(directory: Path) -> Index:
    index: Index = json.loads((directory / INDEX).read_text())
    return index


def count_tensors(directory: Path) -> int:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        return len(checkpoint.names())


def test_two_shards_are_one_model(shards: Path, tiny_checkpoint: Path) -> None:
    assert count_tensors(shards) == count_tensors(tiny_checkpoint)
    assert {len(read_index(shards)["weight_map"])} == {173}


def test_a_single_file_wins_over_an_index_left_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(tiny_checkpoint / name)
    (tmp_path / INDEX).write_text("{}")
    assert count_tensors(tmp_path) > 0


def says(name: str, file_name: Any) -> Callable[[Path, Index], object]:
    return lambda directory, index: index["weight_map"].update({name: file_name})


def in_both(directory: Path, index: Index) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / SECOND)
    tensors[EMBEDDING] = torch.zeros(96, 64)
    save_file(tensors, directory / SECOND)


def unlisted(directory: Path, index: Index) -> None:
    del index["weight_map"][EMBEDDING]


def broken_link(directory: Path, index: Index) -> None:
    (directory / SECOND).unlink()
    (directory / SECOND).symlink_to("gone")


def a_directory(directory: Path, index: Index) -> None:
    (directory / SECOND).unlink()
    (directory / SECOND).mkdir()


BROKEN: dict[str, tuple[Callable[[Path, Index], object], str]] = {
    "missing": (
        lambda directory, index: (directory / SECOND).unlink(),
        f"{SECOND} is missing, with 143 of the 173 tensors[^|]*lies in 2 files",
    ),
    "broken link": (broken_link, f"{SECOND} is missing"),
    "a directory": (a_directory, f"{SECOND} cannot be read\n.*not a plain file"),
    "absent": (says("model.extra.weight", FIRST), f"{FIRST} has no tensor 'model.extra.weight' among its 30"),
    "elsewhere": (says(EMBEDDING, SECOND), f"{SECOND} has no tensor '{EMBEDDING}' among its 143"),
    "in two shards": (in_both, f"{SECOND} holds the tensor '{EMBEDDING}', which also lies in {FIRST}"),
    "not listed": (unlisted, f"{FIRST} holds the tensor '{EMBEDDING}', one of 30[^|]*does not list it"),
    "outside": (says(NORM, "../model.safetensors"), "is said to lie in '../model.safetensors'"),
    "absolute": (says(NORM, "/etc/x.safetensors"), "is said to lie in '/etc/x.safetensors'"),
    "another kind": (says(NORM, "model.bin"), "is said to lie in 'model.bin'"),
    "no name": (says(NORM, None), "is said to lie in null"),
    "no map": (lambda directory, index: index.pop("weight_map"), "index.json has no weight_map"),
    "cut off": (
        lambda directory, index: os.truncate(directory / FIRST, 9000),
        f"{FIRST}: has 9000 bytes, but tensor",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_shards(kind: str, shards: Path) -> None:
    damage, message = BROKEN[kind]
    index = read_index(shards)
    damage(shards, index)
    (shards / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelUnusable, match=message) as caught:
        count_tensors(shards)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert str(shards) in lines[0]
    assert lines[2].startswith("try: ")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"weight_map": {"a": "b", "a": "c"}}', b'{"weight_map": []}']
)
def test_a_broken_index(content: bytes, shards: Path) -> None:
    (shards / INDEX).write_bytes(content)
    with pytest.raises(ModelUnusable, match=r"index\.json"):
        count_tensors(shards)
