"""hashes.json: size and SHA-256 of every file that a checkpoint consists of, for who copies or downloads it.

Owns that file and which files belong in it: those that `hf:` downloads, so not what is for people (README.md,
quant_report.html), which may be changed. Knows nothing of what files hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

from ernie_local.checkpoint.hub import MODEL_FILES
from ernie_local.errors import ModelUnusable
from ernie_local.files import replaced
from ernie_local.strict_json import read_json_object, show

HASHES_FILE = "hashes.json"
_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FileHash:
    """Of one whole file; `sha256` in hexadecimal, as sha256sum prints it."""

    num_bytes: int
    sha256: str


def model_files(directory: Path) -> list[str]:
    """Names of the files in `directory` that the checkpoint consists of, sorted, without hashes.json."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_file() and path.name != HASHES_FILE and any(fnmatch(path.name, m) for m in MODEL_FILES)
    )


def write_hashes(directory: Path, hashes: Mapping[str, FileHash]) -> None:
    """Write hashes.json in one step, the same bytes for the same hashes."""
    files = {name: asdict(hashes[name]) for name in sorted(hashes)}
    with replaced(directory / HASHES_FILE) as path:
        path.write_text(json.dumps({"version": _VERSION, "files": files}, indent=1), encoding="utf-8")


def read_hashes(directory: Path) -> dict[str, FileHash] | None:
    """By file name what hashes.json says, None without one; ModelUnusable for one that is not ours."""
    path = directory / HASHES_FILE
    if not path.exists():
        return None
    raw = read_json_object(path)
    version, files = raw.get("version"), raw.get("files")
    if type(version) is not int or version != _VERSION or not isinstance(files, dict):
        raise _refused(path, f"has version {show(version)}, expected {_VERSION} with an object of files")
    return {name: _parse(path, name, value) for name, value in files.items()}


def _parse(path: Path, name: str, value: object) -> FileHash:
    # A path could lead out of the directory, to any file that the user may read.
    if not name or set(name) & set("/\\\0"):
        raise _refused(path, f"names {show(name)}, which is no file of the model's own directory")
    if not isinstance(value, dict) or set(value) != {"num_bytes", "sha256"}:
        raise _refused(path, f"has for {show(name)} not exactly num_bytes and sha256")
    num_bytes, sha256 = value["num_bytes"], value["sha256"]
    if type(num_bytes) is not int or num_bytes < 0:
        raise _refused(path, f"has for {show(name)} the size {show(num_bytes)}")
    if not isinstance(sha256, str) or _SHA256.fullmatch(sha256) is None:
        raise _refused(path, f"has for {show(name)} the sha256 {show(sha256)}")
    return FileHash(num_bytes, sha256)


def _refused(path: Path, problem: str) -> ModelUnusable:
    return ModelUnusable(
        f"{path} {problem}", "it was damaged, or written by a newer version", "download the model again"
    )
