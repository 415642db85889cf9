"""Reads fields from documents with a loaded model: what `ernie-local extract` does, for Python."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from pathlib import Path

from ernie_local.extraction.documents import check_found, documents_of, find_files
from ernie_local.extraction.reader import ReadingOptions, chat_readers
from ernie_local.extraction.record import Record
from ernie_local.extraction.run import Extraction
from ernie_local.loading import LoadedModel
from ernie_local.structured import AnswerForm, FormSource


def extract(
    model: LoadedModel,
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    fields: FormSource | ReadingOptions,
    *,
    pattern: str | None = None,
    per_file: bool = False,
    parallel: int | None = None,
    min_confidence: float | None = None,
    password: str | None = None,
) -> Generator[Record, None, None]:
    """A record of each document at `paths`, when it is done: each page of PDFs, each image, each video.

    fields: what `AnswerForm.of` makes a form of, or ReadingOptions, which say how they are asked for, too.
    pattern: of folders, the files that match, such as "*.pdf". per_file: the pages of a file are one
    document. parallel: documents that are read at once; None is as many as the model was loaded for.
    min_confidence: values below it are under `review`. password: of encrypted PDFs.

    The call itself finds the documents and checks the fields: UsageError, InputUnreadable. A document that
    cannot be read has a record with an error. Closing the generator ends the run.
    """
    options = fields if isinstance(fields, ReadingOptions) else ReadingOptions(AnswerForm.of(fields))
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = find_files([Path(path) for path in given], pattern)
    check_found(found, pattern)
    return Extraction(
        documents_of(found.files, per_file=per_file, password=password),
        chat_readers(model, options, model.settings.parallel if parallel is None else parallel),
        min_confidence=min_confidence,
        password=password,
    ).records()
