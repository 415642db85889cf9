"""Finds the documents below folders, in the order that people expect, and opens them one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ernie_local.errors import InputUnreadable, UsageError, parameter
from ernie_local.file_names import by_number, is_image_name, is_video_name
from ernie_local.media.animation import MOVING_KINDS, moves
from ernie_local.media.draw_boxes import is_drawing
from ernie_local.media.formats import SNIFFED_BYTES, image_format, is_video, sniff_format
from ernie_local.media.given_file import open_given, reporting_unreadable
from ernie_local.media.open_image import OpenedImage, open_images
from ernie_local.media.pages import MAX_PAGES, PageRequest, split_page_request
from ernie_local.media.video_sampling import split_cut

VIDEO = "video"
_KINDS_WITH_PAGES = ("PDF", "TIFF")
_SHOWN_NAMES = 5


@dataclass(frozen=True, slots=True)
class DocumentFile:
    """A file that was found. name: its path from the folder that was given, with "/".

    error: of a folder that cannot be read, which stands here for what is in it.
    """

    path: Path
    name: str
    error: InputUnreadable | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What lies below the given paths. folder: from which names count. others: names of what is left out."""

    folder: Path
    files: tuple[DocumentFile, ...]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """What one record is of. page: from 1; None for an image, a video, and a file asked about as a whole.

    num_pages: of its file. opened: its images where they are open already. error: why it cannot be opened.
    is_video: it has frames, which are opened by who reads them.
    """

    file: DocumentFile
    page: int | None = None
    num_pages: int = 1
    opened: tuple[OpenedImage, ...] = field(default=(), repr=False)
    error: InputUnreadable | None = None
    is_video: bool = False

    @property
    def key(self) -> tuple[str, int | None]:
        """As `Record.key` of its record."""
        return self.file.name, self.page

    def open(self, password: str | None = None) -> tuple[OpenedImage, ...]:
        """Its image, or that of each of its pages; InputUnreadable where they cannot be read. Of no video."""
        assert not self.is_video, "a reader opens videos as its model sees them"
        if self.error is not None:
            raise self.error
        if self.opened:
            return self.opened
        request = None if self.page is None else PageRequest(self.page, self.page)
        return tuple(open_images(self.file.path, pages=request, password=password))


def find_files(
    paths: Sequence[Path], pattern: str | None = None, leave_out: Sequence[Path] = ()
) -> FoundFiles:
    """The documents at `paths`: files themselves; images, PDFs and videos in folders and the folders below.

    pattern: such as "*.pdf" or "2024/*"; then these files of the folders, whatever their kind. leave_out:
    files of the folders that are no documents, such as outputs. Also left out are drawings of boxes, and
    hidden files and folders; links to folders are not followed. Names count from the one folder that was
    given, else from the deepest folder above all paths. A folder below that cannot be read is a file with
    an error. InputUnreadable for a path that is not there or cannot be read; UsageError for none.
    """
    if not paths:
        raise UsageError(
            "no document was named (0 paths)", "a file or a folder is needed", "ernie-local extract DIR"
        )
    roots = [Path(os.path.abspath(path.expanduser())) for path in paths]  # noqa: PTH100  links stay
    for root, path in zip(roots, paths, strict=True):
        if not os.path.exists(root):  # noqa: PTH110  also where a folder above is closed
            raise _not_there(path, root)
    folder = Path(os.path.commonpath([root if root.is_dir() else root.parent for root in roots]))
    skipped = {os.path.realpath(each) for each in leave_out}
    found: dict[Path, DocumentFile] = {}
    others: list[str] = []
    for root in roots:
        for path, error in _files_below(root) if root.is_dir() else [(root, None)]:
            name = path.relative_to(folder).as_posix()
            if path == root or error is not None or _is_wanted(path, root, pattern, skipped):
                found[path] = DocumentFile(path, name, error)
            elif pattern is None:
                others.append(name)
    files = sorted(found.values(), key=lambda file: by_number(file.name))
    return FoundFiles(folder, tuple(files), tuple(others))


def _not_there(path: Path, root: Path) -> InputUnreadable:
    document, request = split_page_request(str(path))
    if request is not None and Path(document).expanduser().is_file():
        return InputUnreadable(
            f"{path}: pages cannot be chosen here",
            f"{document} is read page by page, each is a document of its own",
            f"{document}, and {parameter('limit', request.last)} to end early",
        )
    video, start, end = split_cut(str(path))
    if (start, end) != (None, None) and Path(video).expanduser().is_file():
        return InputUnreadable(
            f"{path}: a part of a video cannot be chosen here",
            f"{video} is one document from start to end",
            f"{video}, and {parameter('frames', 16)} to see fewer frames of it",
        )
    return InputUnreadable(
        f"{path}: no such file or folder", f"nothing is at {root}", "check the spelling of the path"
    )


def check_found(found: FoundFiles, pattern: str | None = None) -> None:
    """InputUnreadable where there is no document at all."""
    if found.files:
        return
    kinds = (
        "images, PDFs or videos" if pattern is None else f"files that {parameter('glob', pattern)} matches"
    )
    raise InputUnreadable(
        f"{found.folder}: 0 {kinds}",
        f"{len(found.others)} other files are there: {', '.join(found.others[:_SHOWN_NAMES])}"
        if found.others
        else "it and the folders in it hold no such file",
        f"name another folder, or choose files by {parameter('glob', '*.png')}",
    )


def documents_of(
    files: Iterable[DocumentFile],
    done: Container[tuple[str, int | None]] = (),
    *,
    per_file: bool = False,
    password: str | None = None,
    on_file: Callable[[DocumentFile, int], None] | None = None,
) -> Iterator[Document]:
    """The documents of files that are not in `done`: each page of a PDF and of a TIFF of several, each image,
    each video, to which a moving GIF or WebP belongs.

    per_file: all pages of a file are one document. done: keys of records. A file that cannot be read is a
    document with an error. on_file: gets each file with its number of documents when that is known.
    """
    for file in files:
        if (file.name, None) in done or file.error is not None:
            documents = [Document(file, error=file.error)]
        else:
            documents = list(_documents_in(file, per_file, password))
        if on_file is not None:
            on_file(file, len(documents))
        yield from (document for document in documents if document.key not in done)


def _documents_in(file: DocumentFile, per_file: bool, password: str | None) -> Iterator[Document]:
    try:
        kind = document_kind(file.path)
        if kind not in _KINDS_WITH_PAGES:
            yield Document(file, is_video=kind == VIDEO)
            return
        first = open_images(file.path, pages=PageRequest(1, 1), password=password)
    except InputUnreadable as error:
        yield Document(file, error=error)
        return
    num_pages = first[0].num_pages
    if num_pages == 1 and (per_file or kind == "TIFF"):
        yield Document(file, opened=tuple(first))
    elif per_file:
        yield Document(file, num_pages=num_pages, error=_page_fault(file, num_pages))
    else:
        yield Document(file, 1, num_pages, tuple(first))
        for page in range(2, num_pages + 1):
            yield Document(file, page, num_pages)


def _page_fault(file: DocumentFile, num_pages: int) -> InputUnreadable | None:
    """What is wrong with asking about all pages of a file together; None for nothing."""
    if num_pages <= MAX_PAGES:
        return None
    return InputUnreadable(
        f"{file.path}: {num_pages} pages, at most {MAX_PAGES} are asked about together",
        "each page takes some thousand tokens of the model's context",
        f"without {parameter('per_file')} each page is a document of its own; or split the file",
    )


def document_kind(path: Path) -> str:
    """The format of an image, or VIDEO; InputUnreadable where a file is neither.

    By its content. Only where that tells nothing, its name may say that it is a video.
    """
    name = str(path)
    with reporting_unreadable(name, "an image"), open_given(name, "an image") as file:
        head = file.read(SNIFFED_BYTES) or b""
        kind, num_bytes = image_format(head), os.fstat(file.fileno()).st_size
        if is_video(head) or (kind is None and is_video_name(name)):
            return VIDEO
        if kind in MOVING_KINDS:
            file.seek(0)
            if moves(file, kind, name):
                return VIDEO
    return sniff_format(head, name, num_bytes)


def _files_below(root: Path) -> Iterator[tuple[Path, InputUnreadable | None]]:
    """The files in a folder and below, and folders that cannot be read, with why. Raises it for `root`."""
    closed: list[tuple[Path, InputUnreadable]] = []

    def note(error: OSError) -> None:
        path = Path(error.filename)
        if isinstance(error, FileNotFoundError) and path != root:
            return  # it was removed a moment ago
        unreadable = InputUnreadable(
            f"{path}: cannot be read",
            f"the system says: {error.strerror}",
            "check the rights to read the folder",
        )
        if path == root:
            raise unreadable from error
        closed.append((path, unreadable))

    for folder, folders, names in os.walk(root, onerror=note):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(folder, name), None
    yield from closed


def _is_wanted(path: Path, root: Path, pattern: str | None, skipped: Container[str]) -> bool:
    if pattern is None:
        fits = is_image_name(path.name) or is_video_name(path.name)
    else:
        fits = fnmatchcase(path.name, pattern) or fnmatchcase(path.relative_to(root).as_posix(), pattern)
    return fits and os.path.realpath(path) not in skipped and not is_drawing(path)
