"""Checks what `extract` is asked before weights are read; turns its options into what the library takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ernie_cli.extract.exports import output_paths
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.options import check_is_number
from ernie_cli.videos import given_sampling
from ernie_local.adapters.source import AdapterSource
from ernie_local.checkpoint.files import HASHES_FILE, INDEX_FILE
from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.extraction.checks import parse_check
from ernie_local.extraction.documents import VIDEO, FoundFiles, document_kind, find_files
from ernie_local.extraction.questions import object_schema
from ernie_local.extraction.reader import DEFAULT_MAX_TOKENS, ReadingOptions
from ernie_local.extraction.record_file import find_done
from ernie_local.model_files import ModelFiles
from ernie_local.reuse.identity import digest_of

_FIELDS = "--fields 'vendor, date: date, total: number'"


def check_extract_options(options: ExtractOptions) -> None:
    """Raise UsageError for options that contradict each other or mean nothing."""
    options.check_memory()
    options.check_lengths(options.context_tokens())
    options.load_options().num_parallel(torch.device("cpu"))  # a GPU is asked by `load`
    if options.min_confidence is not None:
        check_is_number("--min-confidence", options.min_confidence)
    for is_so, what, why in (
        (
            options.retry and not options.check,
            "--retry without --check",
            "a model is asked again where a check fails",
        ),
        (
            options.resume == "never" and options.out is None,
            "--resume never without --out",
            "records that go to stdout are not continued",
        ),
        (
            options.wants_boxes and options.per_file,
            "--boxes with --per-file",
            "a box does not say on which of several pages it lies",
        ),
        (
            options.watch and options.dry_run,
            "--watch with --dry-run",
            "what is not there yet cannot be counted",
        ),
    ):
        if is_so:
            raise UsageError(what, why, "remove one of them, or add what is missing")


def find_documents(options: ExtractOptions, schema: Mapping[str, Any]) -> FoundFiles:
    """What lies at the paths now; what this run writes is no document. Errors as of `find_files`."""
    return find_files(options.paths, options.glob, output_paths(options, schema))


def idle_frames(options: ExtractOptions, found: FoundFiles) -> str:
    """What is said of --fps or --frames where no document is a video; "" where one is, or may come."""
    given = given_sampling(options.fps, options.frames)
    if not given or options.watch or any(_is_video(file.path) for file in found.files):
        return ""
    return f"{given} without a video among the documents: it says which frames of videos are seen"


def _is_video(path: Path) -> bool:
    try:
        return document_kind(path) == VIDEO
    except InputUnreadable:  # its record says why
        return False


def reading_options(options: ExtractOptions) -> ReadingOptions:
    """What is asked about each document. UsageError for a schema and checks that cannot be used."""
    form = options.form
    if form is None:
        raise UsageError(
            "no fields were named: neither --schema nor --fields",
            "extract reads what a schema asks for",
            _FIELDS,
        )
    schema = object_schema(form)
    max_tokens = options.max_tokens_count()
    return ReadingOptions(
        form=form,
        ask=options.ask,
        prompt=options.prompt,
        boxes=options.wants_boxes,
        checks=tuple(parse_check(text, schema) for text in options.check),
        retry=options.retry,
        thinking=options.thinking(),
        thinking_budget=options.think_budget_count(),
        max_tokens=DEFAULT_MAX_TOKENS if max_tokens is None else max_tokens,
        detail=options.detail,
        trim=options.trim,
        fps=options.fps,
        frames=options.frames,
    )


def run_identity(
    options: ExtractOptions, reading: ReadingOptions, files: ModelFiles, found: FoundFiles
) -> Mapping[str, str]:
    """What the records of a run depend on, by name."""
    adapters = [AdapterSource.parse(one).stamp() for one in options.lora]
    return {
        **reading.identity(),
        "model": str(files.directory.resolve()),
        "files of the model": _digest_of_model(files.directory),
        "folder": str(found.folder),
        "per-file": str(options.per_file),
        "min-confidence": str(options.min_confidence),
        "bare-question": str(options.bare_question),
        "image size": f"{options.max_pixels}, {options.image_tokens}",
        "template": str(options.variant),
        "dtype": options.dtype,
        "kv-dtype": options.kv_dtype,
        "ctx-size": str(options.context_tokens()),
        "small-below": str(options.small_below),
        # Not there without: what was read before adapters were known goes on.
        **({"lora": digest_of(*adapters)} if adapters else {}),
    }


def find_done_before(options: ExtractOptions, identity: Mapping[str, str]) -> set[tuple[str, int | None]]:
    """Keys of the documents that a run with these options would not read again."""
    if options.out is None or options.resume == "never":
        return set()
    return find_done(options.out, identity)


def _digest_of_model(directory: Path) -> str:
    """Of the files that change with the weights: another model may come to lie at the same path."""
    names = ("config.json", INDEX_FILE, HASHES_FILE)
    paths = [path for name in names if (path := directory / name).exists()]
    return digest_of(*(part for path in paths for part in (path.name, path.read_bytes())))
