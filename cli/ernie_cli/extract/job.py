"""Loads the model and reads all documents with it; Ctrl-C and SIGTERM end it after what is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from signal import SIGINT, SIGTERM

from ernie_cli.chat.conversation import load_for_chat
from ernie_cli.console import Console
from ernie_cli.extract import request
from ernie_cli.extract.options import ExtractOptions
from ernie_cli.extract.output import RecordOutput
from ernie_cli.extract.progress import DocumentProgress
from ernie_cli.extract.result import ExtractResult
from ernie_cli.failures import as_option
from ernie_cli.signals import stop_requests
from ernie_cli.status import counted
from ernie_local.errors import ErnieLocalError, Interrupted, Stopped
from ernie_local.extraction.boxes import draw_record
from ernie_local.extraction.documents import Document, FoundFiles, documents_of
from ernie_local.extraction.reader import ReadingOptions, chat_readers
from ernie_local.extraction.record import Record
from ernie_local.extraction.run import DocumentMedia, DocumentReader, Extraction
from ernie_local.extraction.videos import draw_moments
from ernie_local.extraction.watch import watched_files
from ernie_local.model_files import ModelFiles
from ernie_local.session import ChatVideo


@dataclass(slots=True)
class ReadingJob:
    """One run. first_error: what was wrong with the first document without fields, "" for none."""

    options: ExtractOptions
    reading: ReadingOptions
    files: ModelFiles
    found: FoundFiles
    output: RecordOutput
    console: Console
    result: ExtractResult
    first_error: str = ""
    _stop_asked: str = field(default="", init=False)
    _extraction: Extraction | None = field(default=None, init=False)

    def run(self) -> None:
        """Read what is not done. Raises Interrupted or Stopped where a signal has ended it."""
        options = self.options
        progress = DocumentProgress(self.console, len(self.found.files), len(self.output.done), options.limit)
        documents = self._documents(progress)
        if not options.watch:
            first = next(documents, None)
            if first is None:
                return  # without loading the model
            documents = chain([first], documents)
        readers = load_readers(options, self.reading, self.files, self.console)
        self._extraction = extraction = Extraction(
            documents,
            readers,
            min_confidence=options.min_confidence,
            on_read=self._draw,
            password=options.password,
            spelling=as_option,
        )
        with (
            stop_requests(partial(self._stop, extraction, "Ctrl-C"), SIGINT),
            stop_requests(partial(self._stop, extraction, "SIGTERM"), SIGTERM),
            progress,
            closing(extraction.records()) as records,
        ):
            self._take(records, progress)
        self._check_stopped()

    def _documents(self, progress: DocumentProgress) -> Iterator[Document]:
        options = self.options
        files = self.found.files
        wanted = documents_of(
            watched_files(
                partial(request.find_documents, options, self.reading.form.schema or {}), self._is_over
            )
            if options.watch
            else files,
            self.output.done,
            per_file=options.per_file,
            password=options.password,
            on_file=progress.open_file,
        )
        return islice(wanted, options.limit)

    def _draw(self, record: Record, media: Sequence[DocumentMedia]) -> None:
        if self.options.draw is None or not media:
            return
        first = media[0]
        if isinstance(first, ChatVideo):
            draw_moments(record, first, self.options.draw)
        else:
            draw_record(record, first, self.options.draw)

    def _take(self, records: Iterator[Record], progress: DocumentProgress) -> None:
        started = time.monotonic()
        for record in records:
            self.output.write(record)
            self.result.add(record, time.monotonic() - started)
            progress.count()
            if record.error is not None:
                self.first_error = self.first_error or record.error.what
                self.console.warn(record.error.what)

    def _is_over(self) -> bool:
        """Whether no more documents are wanted: after a signal, and after an error that ended the run."""
        return self._extraction is not None and self._extraction.is_stopped

    def _stop(self, extraction: Extraction, name: str) -> None:
        self._stop_asked = name
        extraction.stop()

    def _check_stopped(self) -> None:
        if not self._stop_asked:
            return
        error: type[ErnieLocalError] = Interrupted if self._stop_asked == "Ctrl-C" else Stopped
        raise error(
            f"stopped by {self._stop_asked} after {counted(self.result.documents, 'document')}",
            f"their records are {'on stdout' if self.options.out is None else f'in {self.options.out}'}",
            "with --out, the same command goes on from there",
        )


def load_readers(
    options: ExtractOptions, reading: ReadingOptions, files: ModelFiles, console: Console
) -> list[DocumentReader]:
    """Load the model; each reader has a chat of its own."""
    model = load_for_chat(options, files, console)
    return [*chat_readers(model, reading, model.settings.parallel, options.variant)]
