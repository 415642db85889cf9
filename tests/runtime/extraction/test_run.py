"""Runs over many documents with readers that compute nothing: what is broken, stopped, or read at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.errors import (
    DoesNotFit,
    ErnieLocalError,
    InputUnreadable,
    Interrupted,
    NoAnswer,
    OutOfMemory,
)
from ernie_local.extraction.documents import Document, DocumentFile, documents_of, find_files
from ernie_local.extraction.record import Record
from ernie_local.extraction.run import DocumentMedia, Extraction, FoundFields
from ernie_local.media.open_image import OpenedImage, open_images
from ernie_local.session import ChatVideo


class WidthReader:
    """Finds the width of an image; raises `errors[width]` where there is one. Waits for `may_answer`."""

    def __init__(self, errors: dict[int, Exception] | None = None) -> None:
        self.prompt_tokens = self.completion_tokens = 0
        self.errors, self.threads = errors or {}, set[int]()
        self.may_answer, self.is_stopped = threading.Event(), False
        self.is_asked = threading.Event()
        self.may_answer.set()

    def open_video(self, path: Path) -> ChatVideo:
        raise AssertionError(path)

    def read(self, media: Sequence[DocumentMedia]) -> FoundFields:
        self.threads.add(threading.get_ident())
        self.is_asked.set()
        self.may_answer.wait(20)
        if self.is_stopped:
            time.sleep(0.05)
            raise Interrupted("stopped", "a stop was asked for", "ask again")
        assert isinstance(media[0], OpenedImage)
        width = media[0].image.width
        self.prompt_tokens += 10
        self.completion_tokens += 2
        if width in self.errors:
            raise self.errors[width]
        return FoundFields(
            {"width": width}, {"width": width / 100}, failed_checks=("width > 9",) * (width <= 9)
        )

    def stop(self) -> None:
        self.is_stopped = True
        self.may_answer.set()


def document(width: int) -> Document:
    opened = open_images(Image.new("RGB", (width, 8)))
    return Document(DocumentFile(Path(f"{width}.png"), f"{width}.png"), opened=tuple(opened))


def test_a_record_has_what_was_found() -> None:
    records = list(Extraction([document(9), document(80)], [WidthReader()], min_confidence=0.5).records())
    assert [record.fields for record in records] == [{"width": 9}, {"width": 80}]
    assert [record.review for record in records] == [("width",), ()]
    assert [record.failed_checks for record in records] == [("width > 9",), ()]
    assert {(record.prompt_tokens, record.completion_tokens) for record in records} == {(10, 2)}
    assert all(record.seconds >= 0 for record in records)


def test_a_broken_document_stops_no_other() -> None:
    no_answer = NoAnswer("no answer after 9 tokens", "length", "more")
    records = list(
        Extraction(
            [document(9), document(10), document(11), document(12)],
            [WidthReader({10: no_answer, 11: DoesNotFit("11 tokens", "too many", "fewer")})],
        ).records()
    )
    assert [None if each.error is None else each.error.kind for each in records] == [
        None,
        "NoAnswer",
        "DoesNotFit",
        None,
    ]
    assert records[1].fields is None
    assert records[1].prompt_tokens == 10
    assert records[1].error is not None
    assert records[1].error.what == "no answer after 9 tokens"


def test_a_thousand_files_with_fifty_broken_ones(tmp_path: Path) -> None:
    for number in range(1000):
        path = tmp_path / f"{number % 10}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        if number % 20 == 7:
            path.write_bytes(b"\x89PNG\r\n\x1a\n cut off" if number % 40 == 7 else b"")
        else:
            Image.new("RGB", (20, 10)).save(path)
    files = find_files([tmp_path]).files
    records = list(Extraction(documents_of(files), [WidthReader() for _ in range(3)]).records())
    broken = [record for record in records if record.error is not None]
    assert sorted(record.file for record in records) == sorted(file.name for file in files)
    assert len(records) == 1000
    assert {Path(record.file).stem for record in broken} == {str(number) for number in range(7, 1000, 20)}
    assert {record.error.kind for record in broken if record.error} == {"InputUnreadable"}
    assert all(record.file.rpartition("/")[2] in record.error.what for record in broken if record.error)


@pytest.mark.parametrize("error", [OutOfMemory("a", "b", "c"), ValueError("a defect")])
def test_what_meets_all_documents_ends_the_run(error: Exception) -> None:
    found: list[Record] = []
    with pytest.raises(type(error)):
        found.extend(Extraction(map(document, range(9, 99)), [WidthReader({12: error})]).records())
    assert [record.file for record in found] == ["9.png", "10.png", "11.png"]


def test_an_error_of_the_list_of_documents_ends_the_run() -> None:
    def documents() -> Iterator[Document]:
        yield document(9)
        raise InputUnreadable("the folder", "is gone", "look")

    with pytest.raises(InputUnreadable):
        list(Extraction(documents(), [WidthReader(), WidthReader()]).records())


def test_readers_work_at_the_same_time() -> None:
    readers = [WidthReader() for _ in range(4)]
    for reader in readers:
        reader.may_answer.clear()
    records = Extraction(map(document, range(9, 29)), readers).records()
    threading.Thread(target=lambda: _release(readers), daemon=True).start()
    assert sorted(record.fields["width"] for record in records if record.fields) == list(range(9, 29))
    assert len({thread for reader in readers for thread in reader.threads}) == 4


def _release(readers: Sequence[WidthReader]) -> None:
    for reader in readers:
        assert reader.is_asked.wait(20)
    for reader in readers:
        reader.may_answer.set()


def test_a_stop_ends_what_is_read_and_leaves_it_out() -> None:
    readers = [WidthReader(), WidthReader()]
    extraction = Extraction(map(document, range(9, 99)), readers)
    records = extraction.records()
    done = [next(records) for _ in range(6)]
    for reader in readers:
        reader.may_answer.clear()
    extraction.stop()
    rest = list(records)  # those that were done when the stop came
    files = [record.file for record in (*done, *rest)]
    assert len(files) == len(set(files))
    assert all(record.error is None for record in rest)
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]


def test_whoever_leaves_early_stops_the_run() -> None:
    reader = WidthReader()
    records = Extraction(map(document, range(9, 10_000)), [reader]).records()
    next(records)
    reader.may_answer.clear()
    reader.is_asked.clear()
    assert reader.is_asked.wait(20)
    records.close()
    assert reader.is_stopped
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]


def test_an_interruption_that_nobody_asked_for_is_an_error() -> None:
    error: ErnieLocalError = Interrupted("a", "b", "c")
    with pytest.raises(Interrupted):
        list(Extraction([document(9)], [WidthReader({9: error})]).records())
