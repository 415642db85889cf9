"""Finds the files of a checkpoint in its directory: weights with their index, and hashes.json.

An index and its files have to agree. hashes.json has the size and SHA-256 of every file that `hf:` downloads.
README.md and quant_report.html are not among them and may be changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from ernie_local.checkpoint.header import StoredTensor, read_safetensors_header
from ernie_local.errors import ModelUnusable
from ernie_local.file_names import MODEL_FILES, is_file_name
from ernie_local.files import replaced
from ernie_local.strict_json import read_json_object, show

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HASHES_FILE = "hashes.json"
_HASHES_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_OTHER_FORMATS = {
    ".bin": "PyTorch pickles",
    ".pt": "PyTorch pickles",
    ".pth": "PyTorch pickles",
    ".gguf": "GGUF files",
    ".pdparams": "Paddle files",
    ".npz": "NumPy archives",
}
_AGAIN = "download the model again; a download that was stopped can go on with the same command"
_BOTH_AGAIN = "download this file and the index again, both from the same revision"


def read_stored_tensors(directory: Path, stem: str = "model") -> list[StoredTensor]:
    """All tensors of the model in `directory`; ModelUnusable if files are missing or contradict each other.

    A model.safetensors wins over an index beside it, as in transformers: an older index is often left behind.
    stem: how the files of something else than a model begin.
    """
    single, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    try:
        if (directory / single).exists():
            return list(read_safetensors_header(directory / single).values())
        if (directory / index).exists():
            return _read_shards(directory, index)
        present = sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise ModelUnusable(
            f"{directory} cannot be read", error.strerror or str(error), "check the path and its permissions"
        ) from error
    raise _nothing_found(directory, present, single, index)


def _read_shards(directory: Path, index: str) -> list[StoredTensor]:
    index_path = directory / index
    weight_map = _read_weight_map(index_path)
    shards: dict[str, dict[str, StoredTensor]] = {}
    for file_name in sorted(set(weight_map.values())):
        path = directory / file_name
        if not path.exists():
            count = sum(1 for name in weight_map.values() if name == file_name)
            raise ModelUnusable(
                f"{path} is missing, with {count} of the {len(weight_map)} tensors in {index}",
                f"the model lies in {len(set(weight_map.values()))} files, and all of them are needed",
                _AGAIN,
            )
        shards[file_name] = read_safetensors_header(path)
    _check_agreement(index_path, weight_map, shards)
    return [tensor for shard in shards.values() for tensor in shard.values()]


def _read_weight_map(index_path: Path) -> dict[str, str]:
    weight_map = read_json_object(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelUnusable(
            f"{index_path} has no weight_map with tensors",
            "it says which file holds which tensor",
            _AGAIN,
        )
    checked: dict[str, str] = {}
    for name, file_name in weight_map.items():
        if not is_file_name(file_name) or not file_name.endswith(".safetensors"):
            raise ModelUnusable(
                f"{index_path}: tensor {show(name)} is said to lie in {show(file_name)}",
                "weights are read only from .safetensors files directly in the model's directory",
                _AGAIN,
            )
        checked[name] = file_name
    return checked


def _check_agreement(
    index_path: Path, weight_map: dict[str, str], shards: dict[str, dict[str, StoredTensor]]
) -> None:
    directory, index = index_path.parent, index_path.name
    for name, file_name in weight_map.items():
        if name not in shards[file_name]:
            raise ModelUnusable(
                f"{directory / file_name} has no tensor {show(name)} among its {len(shards[file_name])}",
                f"{index} says that it lies there",
                _BOTH_AGAIN,
            )
    for file_name, shard in shards.items():
        for name in shard:
            listed = weight_map.get(name)
            if listed != file_name:
                raise ModelUnusable(
                    f"{directory / file_name} holds the tensor {show(name)}, "
                    + (f"which also lies in {listed}" if listed else f"one of {len(shard)} there"),
                    f"{index} lists it in {listed}" if listed else f"{index} does not list it",
                    _BOTH_AGAIN,
                )


def _nothing_found(directory: Path, present: list[str], single: str, index: str) -> ModelUnusable:
    why = f"it has {len(present)} entries, none of them weights"
    hint = "name the directory that holds the safetensors files, or download the model"
    for suffix, words in _OTHER_FORMATS.items():
        if found := [name for name in present if name.endswith(suffix)]:
            why = f"it has {len(found)} {words} such as {show(found[0])}, and only safetensors files are read"
            hint = (
                "download the safetensors files of the model, or convert with transformers' save_pretrained"
            )
            break
    if found := [name for name in present if name.endswith(".safetensors")]:
        why = f"it has {len(found)} other safetensors files, the first is {show(found[0])}"
        hint = f"download {index} too if these are shards, or rename the one file to {single}"
    return ModelUnusable(f"{directory} has neither {single} nor {index}", why, hint)


@dataclass(frozen=True, slots=True)
class FileHash:
    """Size and hash of one file; `sha256` in hexadecimal, as sha256sum prints it."""

    num_bytes: int
    sha256: str


def model_files(directory: Path) -> list[str]:
    """Sorted names of the files of the checkpoint in `directory`, without hashes.json."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_file() and path.name != HASHES_FILE and any(fnmatch(path.name, m) for m in MODEL_FILES)
    )


def write_hashes(directory: Path, hashes: Mapping[str, FileHash]) -> None:
    """Write hashes.json in one step, the same bytes for the same hashes."""
    files = {name: asdict(hashes[name]) for name in sorted(hashes)}
    with replaced(directory / HASHES_FILE) as path:
        path.write_text(json.dumps({"version": _HASHES_VERSION, "files": files}, indent=1), encoding="utf-8")


def read_hashes(directory: Path) -> dict[str, FileHash] | None:
    """The content of hashes.json, by file name; None without one. ModelUnusable for one that is not ours."""
    path = directory / HASHES_FILE
    if not os.path.lexists(path):  # a link that leads nowhere is a file that is lost
        return None
    raw = read_json_object(path)
    version, files = raw.get("version"), raw.get("files")
    if type(version) is not int or version != _HASHES_VERSION or not isinstance(files, dict):
        raise _hashes_refused(
            path, f"has version {show(version)}, expected {_HASHES_VERSION} with an object of files"
        )
    return {name: _parse_hash(path, name, value) for name, value in files.items()}


def _parse_hash(path: Path, name: str, value: object) -> FileHash:
    if not is_file_name(name):
        raise _hashes_refused(path, f"names {show(name)}, which is no file of the model's own directory")
    if not isinstance(value, dict) or set(value) != {"num_bytes", "sha256"}:
        raise _hashes_refused(path, f"has for {show(name)} not exactly num_bytes and sha256")
    num_bytes, sha256 = value["num_bytes"], value["sha256"]
    if type(num_bytes) is not int or num_bytes < 0:
        raise _hashes_refused(path, f"has for {show(name)} the size {show(num_bytes)}")
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise _hashes_refused(path, f"has for {show(name)} the sha256 {show(sha256)}")
    return FileHash(num_bytes, sha256)


def _hashes_refused(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path} {problem}", "it was damaged, or written by a newer version", "download the model again"
    )
