"""Checks a model's directory: its settings, its headers, then every file from end to end.

It goes on after a fault, and holds at most one page or a few MiB of a file in memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ernie_local.checkpoint.compressed import CompressedSource
from ernie_local.checkpoint.dequantize import check_dequantizer
from ernie_local.checkpoint.files import HASHES_FILE, FileHash, model_files, read_hashes, read_stored_tensors
from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.index import Accounts, account
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.checkpoint.reader import Checkpoint
from ernie_local.config import ModelConfig, read_config
from ernie_local.errors import DoesNotFit, ModelUnusable
from ernie_local.files import open_plain
from ernie_local.model_files import ModelFiles
from ernie_local.progress import OnProgress
from ernie_local.sampling import model_sampling
from ernie_local.session.writer import check_same_model
from ernie_local.text.template import encode_segments, user_message
from ernie_local.text.tokenizer import TOKENIZER_MODEL_NAME
from ernie_local.verify.finding import Finding, Findings
from ernie_local.verify.templates import compare_template
from ernie_local.verify.weights import PIECE_BYTES, FileStream, OnBytes, check_values

_EMBEDDING = "embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Verification:
    """What was checked and found.

    num_tensors: tensors of the model that the files hold in their shape; 0 if they do not hold all of them.
    num_compared: files whose hash was known before. hashes: of every file as it is now, by name.
    """

    num_tensors: int
    num_pages: int
    num_bytes: int
    num_compared: int
    hashes: Mapping[str, FileHash]
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]


def verify(
    directory: Path,
    on_progress: OnProgress | None = None,
    *,
    companions: bool = True,
    template: bool = True,
) -> Verification:
    """Check everything in `directory`. Faults are returned, not raised.

    on_progress: gets the name of a file, and bytes of all files; first of all "" and 0.
    companions: also check that tokenizer, chat template and image processor can be read. template: also
    compare the chat template with ours.
    """
    findings, notes = Findings(), list[str]()
    config = findings.attempt(partial(read_config, directory), "config.json")
    accounts = packed = None
    if config is not None:
        accounts = findings.attempt(lambda: account(directory, read_stored_tensors(directory), config))
    known = findings.attempt(partial(read_hashes, directory), HASHES_FILE)
    if not os.path.lexists(directory / HASHES_FILE):
        notes.append(
            f"{directory} has no {HASHES_FILE}: its bytes are compared with nothing, "
            "only headers and numbers are checked"
        )
    if config is not None:
        # Without these, pages and packed matrices are hashed and not looked into.
        packed = findings.attempt(partial(PackedTensors, config), "config.json")
    names = sorted({*model_files(directory), *(known or {})})
    hashes, num_pages = _read_files(directory, names, packed, findings, on_progress)
    if known is not None:
        _compare_hashes(directory, known, hashes, accounts, findings, notes)
    if accounts is not None:
        findings.attempt(partial(_compare_tied_head, accounts))
        if accounts.num_compressed:
            notes += _dequantize_all(directory, accounts, findings, on_progress)
    if companions and config is not None:
        check_companions(directory, config, findings)
        files = ModelFiles(directory, config)
        notes += findings.attempt(files.missing_notes) or ()
        tokenizer = findings.attempt(lambda: files.tokenizer)
        if tokenizer is not None:
            notes += tokenizer.notes
            difference = findings.attempt(partial(_compare_template, files)) if template else None
            notes += [] if difference is None else [difference]
    return Verification(
        num_tensors=0 if accounts is None else len(accounts.sources) + len(accounts.packed),
        num_pages=num_pages,
        num_bytes=sum(file.num_bytes for file in hashes.values()),
        num_compared=0 if known is None else len(known.keys() & hashes.keys()),
        hashes=hashes,
        notes=tuple(notes),
        findings=tuple(findings.all),
    )


def _compare_template(files: ModelFiles) -> str | None:
    reads_images = files.config.reads_images
    return compare_template(files.directory, files.tokenizer, reads_images=reads_images)


def _read_files(
    directory: Path,
    names: list[str],
    packed: PackedTensors | None,
    findings: Findings,
    on_progress: OnProgress | None,
) -> tuple[dict[str, FileHash], int]:
    """Hashes of those files that are there and can be read, and the number of pages in them."""
    paths = [path for path in (directory / name for name in names) if path.exists()]
    total, done = sum(path.stat().st_size for path in paths), 0

    def note(name: str, num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if on_progress is not None:
            on_progress(name, done, total)

    note("", 0)
    hashes: dict[str, FileHash] = {}
    num_pages = 0
    for path in paths:
        read = findings.attempt(partial(_read_file, path, packed, findings, note), path.name)
        if read is not None:
            hashes[path.name] = read[0]
            num_pages += read[1]
    return hashes, num_pages


def _read_file(
    path: Path, packed: PackedTensors | None, findings: Findings, on_bytes: OnBytes
) -> tuple[FileHash, int]:
    """Hash of a file and number of its pages. Values of weights are checked if `packed` is there."""
    num_pages: int | None = 0
    try:
        with open_plain(path) as file:
            stream = FileStream(file, on_bytes)
            if path.name.endswith(".safetensors") and packed is not None:
                num_pages = findings.attempt(
                    lambda: check_values(
                        stream, list(read_safetensors_header(path).values()), packed, findings
                    ),
                    path.name,
                )
            return stream.finish(), num_pages or 0
    except OSError as error:
        raise ModelUnusable(
            f"{path} cannot be read",
            error.strerror or str(error),
            "check its permissions, the disk and its cable or network",
        ) from error


def _compare_hashes(
    directory: Path,
    known: Mapping[str, FileHash],
    found: Mapping[str, FileHash],
    accounts: Accounts | None,
    findings: Findings,
    notes: list[str],
) -> None:
    again = "download or copy this file again"
    for name, expected in known.items():
        path, now = directory / name, found.get(name)
        if now is None and not path.exists():
            why = f"{HASHES_FILE} lists it with {expected.num_bytes} bytes"
            findings.add(Finding(ModelUnusable(f"{path} is missing", why, again), name))
        elif now is not None and now != expected:
            what = f"{path} has {now.num_bytes} bytes with the SHA-256 {now.sha256}"
            why = f"{HASHES_FILE} says {expected.num_bytes} bytes with {expected.sha256}"
            findings.add(Finding(ModelUnusable(what, why, again), name))
    weight_files = set[str]()
    if accounts is not None:
        parts = (part for source in accounts.sources.values() for part in source.stored_parts)
        weight_files = {tensor.path.name for tensor in (*parts, *accounts.packed.values())}
    for name in sorted(found.keys() - known.keys()):
        if name in weight_files:
            what = f"{directory / name} holds weights and is not in {HASHES_FILE}"
            why = "the checkpoint was written without it, and it is read in place of what was written"
            findings.add(Finding(ModelUnusable(what, why, "move this file away"), name))
        else:
            notes.append(f"{name} is not in {HASHES_FILE}: it was added later, and is compared with nothing")


def _compare_tied_head(accounts: Accounts) -> None:
    """Compare a tied head with the embedding, if the files hold both: reading the embedding does it."""
    if accounts.tied_head is None:
        return
    with Checkpoint(accounts) as checkpoint:
        rows, width = checkpoint.shape(_EMBEDDING)
        most = max(PIECE_BYTES // (4 * width), 1)
        for first in range(0, rows, most):
            checkpoint.read_rows(_EMBEDDING, first, torch.empty(min(most, rows - first), width))


def _dequantize_all(
    directory: Path, accounts: Accounts, findings: Findings, on_progress: OnProgress | None
) -> list[str]:
    """Dequantize every matrix that another tool has quantized; a note where the library for it is missing."""
    try:
        check_dequantizer(directory, accounts.num_compressed)
    except DoesNotFit as error:
        return [f"not checked: {error.what}"]
    compressed = {name: one for name, one in accounts.sources.items() if isinstance(one, CompressedSource)}
    total, done = sum(one.num_bytes for one in compressed.values()), 0
    with Checkpoint(accounts) as checkpoint:
        for name, source in compressed.items():
            findings.attempt(partial(checkpoint.check, name), source.stored.path.name, source.stored.name)
            done += source.num_bytes
            if on_progress is not None:
                on_progress(source.stored.path.name, done, total)
    return []


def check_companions(directory: Path, config: ModelConfig, findings: Findings) -> None:
    """Check the files that a chat needs beside the weights: image processor, tokenizer, chat template.

    Each is read as `chat` reads it, and a question with an image is written as token ids.
    """
    files = ModelFiles(directory, config)
    processor = findings.attempt(lambda: files.image_processor)
    if processor is not None and processor.reads_images:
        findings.attempt(processor.check)
    findings.attempt(lambda: model_sampling(files.generation_config), "generation_config.json")
    findings.attempt(partial(_try_question, files), TOKENIZER_MODEL_NAME)


def _try_question(files: ModelFiles) -> None:
    directory, config, tokenizer = files.directory, files.config, files.tokenizer
    check_same_model(tokenizer, config.media_ids)
    question = user_message("What is the total?", (4,) if config.reads_images else ())
    segments = files.template().segments([question])
    highest = max(encode_segments(tokenizer, segments, config.media_ids).token_ids)
    if highest >= config.text.vocab_size:
        raise ModelUnusable(
            f"{directory / TOKENIZER_MODEL_NAME} writes a question with the id {highest}, "
            f"config.json has a vocab_size of {config.text.vocab_size}",
            "the tokenizer belongs to another model",
            "use config.json and tokenizer.model of the same repository",
        )
