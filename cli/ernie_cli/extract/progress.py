"""Shows how many documents are done, how fast they go, and how long the rest will take."""

from __future__ import annotations

import time

from ernie_cli.console import Console
from ernie_cli.progress import UnitProgress
from ernie_local.extraction.documents import DocumentFile


class DocumentProgress(UnitProgress):
    """A bar on a terminal, a line every minute elsewhere.

    A PDF tells its pages when it is opened. Until all are, the number of documents is estimated: files that
    were not opened yet count as many as the others have on average.
    """

    def __init__(self, console: Console, num_files: int, num_before: int, limit: int | None) -> None:
        """num_before: documents that an earlier run has read. limit: most documents of this run."""
        super().__init__(console)
        self._num_files, self._num_before, self._limit = num_files, num_before, limit
        self._num_opened = self._num_known = self._num_read = 0
        self._started = time.monotonic()
        self.show("", num_before, num_files)

    def open_file(self, _file: DocumentFile, num_documents: int) -> None:
        """A file has so many documents. Called by the threads of readers."""
        self._num_opened += 1
        self._num_known += num_documents

    @property
    def num_documents(self) -> int:
        """Of all files, as far as is known."""
        if not self._num_opened:
            return self._num_files
        known = self._num_known + (self._num_files - self._num_opened) * self._num_known / self._num_opened
        most = known if self._limit is None else min(known, self._num_before + self._limit)
        return round(most)

    def count(self) -> None:
        """One more document is done."""
        self._num_read += 1
        seconds = time.monotonic() - self._started
        rate = f", {self._num_read / seconds * 3600:.0f} an hour" if seconds > 0 else ""
        done, of_all = self._num_before + self._num_read, self.num_documents
        about = "" if self._num_opened >= self._num_files else "about "
        self.show(f"{done} of {about}{of_all} documents{rate}", done, max(done, of_all))
