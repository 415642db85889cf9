"""The order in which a model is looked at: its settings, headers, then every file from end to end.

Nothing stops at the first fault. At most one page, or a few MiB, of a file are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.files import HASHES_FILE, FileHash, model_files, read_hashes, read_stored_tensors
from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.index import Accounts, account
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import ModelUnusable
from ernie_local.verify.companions import check_companions
from ernie_local.verify.finding import Finding, Findings
from ernie_local.verify.stream import PIECE_BYTES, FileStream
from ernie_local.verify.weights import check_values

_EMBEDDING = "embed_tokens.weight"
_WEIGHTS = ".safetensors"
# The file at hand, bytes read, bytes to be read in all; first of all no file and 0.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What was looked at and found. `hashes`: of every file as it is now, by name.

    num_tensors: of the model that are there in their shape; num_compared: files whose hash was known before.
    """

    num_tensors: int
    num_pages: int
    num_bytes: int
    num_compared: int
    hashes: Mapping[str, FileHash]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]


def verify(
    directory: Path, on_progress: OnProgress | None = None, *, companions: bool = True
) -> Verification:
    """Look at everything in `directory`; what is wrong is in the result, nothing of it is raised.

    companions: also whether tokenizer and processor can be read.
    """
    findings, notes = Findings(), list[str]()
    config: ModelConfig | None = None
    with findings.catch("config.json"):
        config = read_config(directory)
    accounts = None if config is None else _account(directory, config, findings)
    known: dict[str, FileHash] | None = None
    with findings.catch(HASHES_FILE):
        known = read_hashes(directory)
        if known is None:
            notes.append(
                f"{directory} has no {HASHES_FILE}: its bytes are compared with nothing, "
                "only headers and numbers are checked"
            )
    files = _Files(directory, config, findings, on_progress)
    hashes = files.read_all(sorted({*model_files(directory), *(known or {})}))
    if known is not None:
        _compare(directory, known, hashes, accounts, findings, notes)
    if accounts is not None:
        with findings.catch(), Checkpoint(accounts) as checkpoint:
            _compare_tied_head(checkpoint, accounts)
    if companions and config is not None:
        check_companions(directory, config, findings)
    return Verification(
        num_tensors=0 if accounts is None else len(accounts.sources) + len(accounts.packed),
        num_pages=files.num_pages,
        num_bytes=sum(file.num_bytes for file in hashes.values()),
        num_compared=0 if known is None else len(known.keys() & hashes.keys()),
        hashes=hashes,
        notes=tuple(notes),
        findings=tuple(findings.all),
    )


def _account(directory: Path, config: ModelConfig, findings: Findings) -> Accounts | None:
    with findings.catch():
        return account(directory, read_stored_tensors(directory), config)
    return None


def _compare_tied_head(checkpoint: Checkpoint, accounts: Accounts) -> None:
    """Where the files hold a second copy of a tied embedding: reading the one compares it with the other."""
    if accounts.tied_head is None:
        return
    rows, width = checkpoint.shape(_EMBEDDING)
    most = max(PIECE_BYTES // (4 * width), 1)
    for first in range(0, rows, most):
        checkpoint.read_rows(_EMBEDDING, first, torch.empty(min(most, rows - first), width))


class _Files:
    """Reads files, weights with their values."""

    def __init__(
        self,
        directory: Path,
        config: ModelConfig | None,
        findings: Findings,
        on_progress: OnProgress | None,
    ) -> None:
        self._directory, self._findings, self._on_progress = directory, findings, on_progress
        self._packed: PackedTensors | None = None
        if config is not None:
            with findings.catch("config.json"):
                self._packed = PackedTensors(config)
        self.num_pages = 0
        self._done = self._total = 0

    def read_all(self, names: list[str]) -> dict[str, FileHash]:
        """Hashes of those that are there and can be read."""
        paths = [self._directory / name for name in names]
        paths = [path for path in paths if path.is_file()]
        self._total = sum(path.stat().st_size for path in paths)
        if self._on_progress is not None:
            self._on_progress("", 0, self._total)
        hashes: dict[str, FileHash] = {}
        for path in paths:
            with self._findings.catch(path.name):
                try:
                    hashes[path.name] = self._read(path)
                except OSError as error:
                    raise ModelUnusable(
                        f"{path} cannot be read",
                        error.strerror or str(error),
                        "check its permissions, the disk and its cable or network",
                    ) from error
        return hashes

    def _read(self, path: Path) -> FileHash:
        with FileStream(path, self._note) as stream:
            if path.name.endswith(_WEIGHTS) and self._packed is not None:
                with self._findings.catch(path.name):
                    tensors = list(read_safetensors_header(path).values())
                    self.num_pages += check_values(stream, tensors, self._packed, self._findings)
            return stream.finish()

    def _note(self, name: str, num_bytes: int) -> None:
        self._done += num_bytes
        if self._on_progress is not None:
            self._on_progress(name, self._done, self._total)


def _compare(
    directory: Path,
    known: Mapping[str, FileHash],
    found: Mapping[str, FileHash],
    accounts: Accounts | None,
    findings: Findings,
    notes: list[str],
) -> None:
    read = set[str]()
    if accounts is not None:
        tensors = [*(source.stored for source in accounts.sources.values()), *accounts.packed.values()]
        read = {tensor.path.name for tensor in tensors}
    again = "download or copy this file again"
    for name, wanted in known.items():
        path, is_ = directory / name, found.get(name)
        if is_ is None and not path.exists():
            why = f"{HASHES_FILE} lists it with {wanted.num_bytes} bytes"
            findings.add(Finding(ModelUnusable(f"{path} is missing", why, again), name))
        elif is_ is not None and is_ != wanted:
            what = f"{path} has {is_.num_bytes} bytes with the SHA-256 {is_.sha256}"
            why = f"{HASHES_FILE} says {wanted.num_bytes} bytes with {wanted.sha256}"
            findings.add(Finding(ModelUnusable(what, why, again), name))
    for name in sorted(found.keys() - known.keys()):
        if name in read:
            what = f"{directory / name} holds weights and is not in {HASHES_FILE}"
            why = "the checkpoint was written without it, and it is read in place of what was written"
            findings.add(Finding(ModelUnusable(what, why, "move this file away"), name))
        else:
            notes.append(f"{name} is not in {HASHES_FILE}: it was added later, and is compared with nothing")
