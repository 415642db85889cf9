"""The check of a model's files: config, headers and sizes, as loading looks at them. No weight is read."""

from __future__ import annotations

from pathlib import Path

from ernie_local.doctor.finding import Finding
from ernie_local.errors import ModelUnusable
from ernie_local.sizes import format_bytes

NAME = "checkpoint"
_HUB_PREFIX = "hf:"


def check(model: str | None) -> tuple[Finding | None, list[Path]]:
    """What is found, None where no model was named; and its weight files, none where they are not whole."""
    if model is None:
        return None, []
    facts: dict[str, object] = {"complete": False, "bytes": None, "tensors": None, "files": None}
    if model.startswith(_HUB_PREFIX):
        return Finding(
            NAME,
            "slow",
            f"{model} is not looked for: that could download it",
            "name the directory that it lies in",
            facts,
        ), []
    try:
        files, num_tensors, num_bytes = _account(model)
    except ModelUnusable as error:
        return Finding(NAME, "fails", f"{error.what}: {error.why}", error.hint, facts), []
    facts = {"complete": True, "bytes": num_bytes, "tensors": num_tensors, "files": len(files)}
    text = (
        f"{num_tensors} tensors, {format_bytes(num_bytes)} in {len(files)} files: all are there "
        "(headers and sizes; `ernie-local verify` reads every byte)"
    )
    return Finding(NAME, "ok", text, None, facts), files


def _account(model: str) -> tuple[list[Path], int, int]:
    """Weight files, tensors and bytes. ModelUnusable for what is missing, too short or of the wrong shape."""
    from ernie_local.checkpoint.hub import resolve_model
    from ernie_local.checkpoint.reader import open_checkpoint
    from ernie_local.config import read_config
    from ernie_local.text.tokenizer import ErnieTokenizer

    directory = resolve_model(model)
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        stored = [source.stored for source in checkpoint.accounts.sources.values()]
        stored += checkpoint.packed.values()
        num_bytes = checkpoint.total_bytes
    ErnieTokenizer.from_directory(directory)
    return sorted({one.path for one in stored}), len(stored), num_bytes
