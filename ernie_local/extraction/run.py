"""Reads documents one after the other, or several at once, and yields a record of each.

A document that cannot be read, or gets no answer, has a record with the error; the others go on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ernie_local.errors import (
    DoesNotFit,
    InputUnreadable,
    Interrupted,
    NoAnswer,
    ParameterSpelling,
)
from ernie_local.extraction.documents import Document
from ernie_local.extraction.record import Record, RecordError
from ernie_local.media.image_view import CropBox
from ernie_local.media.open_image import OpenedImage

if TYPE_CHECKING:
    from ernie_local.session import ChatVideo

DocumentMedia: TypeAlias = "OpenedImage | ChatVideo"
OnRead = Callable[[Record, Sequence[DocumentMedia]], None]
# What one document may end with; anything else would meet all of them.
DOCUMENT_ERRORS = (InputUnreadable, NoAnswer, DoesNotFit)


@dataclass(frozen=True, slots=True)
class FoundFields:
    """What a model found in a document. The fields are those of a Record."""

    fields: Mapping[str, Any]
    confidence: Mapping[str, float] = field(default_factory=dict)
    boxes: Mapping[str, CropBox] = field(default_factory=dict)
    failed_checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class DocumentReader(Protocol):
    """Who is asked about documents, by one thread at a time.

    prompt_tokens, completion_tokens: of the document that was read last, also where it ended with an error.
    """

    prompt_tokens: int
    completion_tokens: int

    def open_video(self, path: Path) -> ChatVideo:
        """A video as this reader sees it; raises one of DOCUMENT_ERRORS, Interrupted after `stop`."""
        ...

    def read(self, media: Sequence[DocumentMedia]) -> FoundFields:
        """What is in a document of these images, or of one video; raises one of DOCUMENT_ERRORS, Interrupted
        after `stop`."""
        ...

    def stop(self) -> None:
        """End the answer that is being written; also from another thread or a signal handler."""
        ...


class Extraction:
    """A run over documents. `records` yields them in the order in which they are done."""

    def __init__(
        self,
        documents: Iterable[Document],
        readers: Sequence[DocumentReader],
        *,
        min_confidence: float | None = None,
        on_read: OnRead | None = None,
        password: str | None = None,
        spelling: ParameterSpelling | None = None,
    ) -> None:
        """readers: each works in a thread of its own. min_confidence: values below it are to be reviewed.
        on_read: gets each record with the images or the video it is of, in the thread of its reader.
        password: of encrypted PDFs. spelling: how arguments are called in the errors of records.
        """
        self._documents, self._readers = iter(documents), readers
        self._min_confidence, self._password, self._spelling = min_confidence, password, spelling
        self._on_read = on_read
        self._taking = threading.Lock()
        self._results: SimpleQueue[Record | BaseException | None] = SimpleQueue()
        # A plain flag, as a signal handler may set it at any moment.
        self.is_stopped = False

    def records(self) -> Generator[Record, None, None]:
        """Each record once its document is done. After `stop` it ends, without documents that are half read.

        Raises what ends the whole run, such as OutOfMemory. Closing the iterator stops the run.
        """
        threads = [
            threading.Thread(target=self._work, args=(reader,), daemon=True) for reader in self._readers
        ]
        for thread in threads:
            thread.start()
        try:
            num_working = len(threads)
            while num_working:
                result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    num_working -= 1
                else:
                    yield result
        finally:
            self.stop()
            for thread in threads:
                thread.join()

    def stop(self) -> None:
        """Ask for no more documents, and end the running answers; also from a signal handler."""
        self.is_stopped = True
        for reader in self._readers:
            reader.stop()

    def _work(self, reader: DocumentReader) -> None:
        end: BaseException | None = None
        try:
            while (document := self._take()) is not None:
                self._results.put(self._read(document, reader))
        except Interrupted as error:
            end = None if self.is_stopped else error
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits for it
            end = error
        self._results.put(end)

    def _take(self) -> Document | None:
        with self._taking:
            return None if self.is_stopped else next(self._documents, None)

    def _read(self, document: Document, reader: DocumentReader) -> Record:
        started = time.perf_counter()
        finding, failure = None, None
        media: tuple[DocumentMedia, ...] = ()
        reader.prompt_tokens = reader.completion_tokens = 0
        try:
            if document.is_video:
                media = (reader.open_video(document.file.path),)
            else:
                media = document.open(self._password)
            finding = reader.read(media)
        except DOCUMENT_ERRORS as error:
            failure = RecordError.of(error, self._spelling)
        found = finding or FoundFields({})
        confidence = {path: round(share, 4) for path, share in found.confidence.items()}
        record = Record(
            file=document.file.name,
            page=document.page,
            notes=found.notes,
            seconds=round(time.perf_counter() - started, 3),
            prompt_tokens=reader.prompt_tokens,
            completion_tokens=reader.completion_tokens,
            fields=None if finding is None else finding.fields,
            confidence=confidence,
            boxes=found.boxes,
            review=to_review(confidence, self._min_confidence),
            failed_checks=found.failed_checks,
            error=failure,
        )
        if self._on_read is not None:
            self._on_read(record, media)
        return record


def to_review(confidence: Mapping[str, float], least: float | None) -> tuple[str, ...]:
    """The paths of values whose confidence is below `least`."""
    return () if least is None else tuple(path for path, share in confidence.items() if share < least)
