"""What is found below folders, in which order, and what of it is still to be asked about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.extraction.documents import Document, check_found, documents_of, find_files
from ernie_local.files import open_plain
from ernie_local.media.draw_boxes import DrawnBox, draw_boxes, save_drawing

WHITE = Image.new("RGB", (40, 30), "white")


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        WHITE.save(path, "PNG")


def write_pdf(path: Path, num_pages: int) -> None:
    WHITE.save(path, "PDF", save_all=True, append_images=[WHITE] * (num_pages - 1))


def names(folder: Path, pattern: str | None = None) -> list[str]:
    return [file.name for file in find_files([folder], pattern).files]


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_numbers(tmp_path: Path) -> None:
    write_images(tmp_path, "page10.png", "page2.png", "b/1.png", "b/c/x.jpg", ".hidden.png", ".git/y.png")
    (tmp_path / "notes.txt").write_text("no image")
    found = find_files([tmp_path])
    assert [file.name for file in found.files] == ["b/1.png", "b/c/x.jpg", "page2.png", "page10.png"]
    assert found.others == ("notes.txt",)
    assert found.folder == tmp_path


def test_a_pattern_chooses_by_name_or_by_path(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.scan", "2024/a.png", "2025/a.png", "2024/b.scan")
    assert names(tmp_path, "*.scan") == ["2024/b.scan", "b.scan"]
    assert names(tmp_path, "2024/*") == ["2024/a.png", "2024/b.scan"]
    with pytest.raises(InputUnreadable, match=r'0 files that glob="\*\.tif" matches'):
        check_found(find_files([tmp_path], "*.tif"), "*.tif")


def test_names_count_from_the_deepest_common_folder(tmp_path: Path) -> None:
    write_images(tmp_path, "x/a/1.png", "x/b/1.png", "x/c.png")
    found = find_files([tmp_path / "x/a", tmp_path / "x/b", tmp_path / "x/c.png", tmp_path / "x/a/1.png"])
    assert [file.name for file in found.files] == ["a/1.png", "b/1.png", "c.png"]
    assert names(tmp_path / "x/c.png") == ["c.png"]


def test_drawings_outputs_and_links_to_folders_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "out.png", "b/c.PNG")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for name in ("b/drawn.png", "drawn.png"):
        save_drawing(draw_boxes(WHITE, [DrawnBox((1, 1, 9, 9), 1, "total")]), tmp_path / name)
    found = find_files([tmp_path], None, [tmp_path / "b" / ".." / "out.png"])
    assert [file.name for file in found.files] == ["a.png", "b/c.PNG", "round.png"]
    assert sorted(found.others) == ["b/drawn.png", "drawn.png", "out.png"]
    assert names(tmp_path, "*.png") == ["a.png", "out.png", "round.png"]
    assert names(tmp_path / "drawn.png") == ["drawn.png"]  # who names it means it


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 paths"):
        find_files([])
    with pytest.raises(InputUnreadable, match="no such file or folder"):
        find_files([tmp_path / "nothing"])
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(InputUnreadable, match="0 images, PDFs or videos") as raised:
        check_found(find_files([tmp_path]))
    assert raised.value.why == "1 other files are there: notes.txt"


def test_a_folder_below_that_cannot_be_read_is_one_document_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, "a.png", "closed/b.png", "d/c.png")
    scan = os.scandir

    def scan_or_refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_or_refuse)
    documents = list(documents_of(find_files([tmp_path]).files))
    assert keys(documents) == [("a.png", None), ("closed", None), ("d/c.png", None)]
    with pytest.raises(InputUnreadable, match="closed: cannot be read"):
        documents[1].open()
    assert find_files([tmp_path]) == find_files([tmp_path])  # as a watched folder is looked at
    with pytest.raises(InputUnreadable, match="closed: cannot be read"):
        find_files([tmp_path / "closed"])


def test_too_many_pages_for_one_question_are_told_how_to_go_on(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", 33)
    write_pdf(tmp_path / "b.pdf", 32)
    files = find_files([tmp_path]).files
    long, short = documents_of(files, per_file=True)
    with pytest.raises(InputUnreadable, match="33 pages, at most 32 are asked about together") as raised:
        long.open()
    assert "without per_file each page is a document" in raised.value.hint.replace("=True", "")
    assert short.error is None
    assert len(list(documents_of(files))) == 65


def keys(documents: list[Document]) -> list[tuple[str, int | None]]:
    return [document.key for document in documents]


def test_pages_are_documents_of_their_own_or_one(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    write_pdf(tmp_path / "b.pdf", 3)
    write_pdf(tmp_path / "c.pdf", 1)
    WHITE.save(tmp_path / "d.tif", save_all=True, append_images=[WHITE])
    WHITE.save(tmp_path / "e.tif")
    (tmp_path / "f.png").write_bytes(b"no image")
    files = find_files([tmp_path]).files
    counts: dict[str, int] = {}
    documents = list(documents_of(files, on_file=lambda file, count: counts.update({file.name: count})))
    expected = [("a.png", None), *(("b.pdf", page) for page in (1, 2, 3)), ("c.pdf", 1)]
    expected += [("d.tif", 1), ("d.tif", 2), ("e.tif", None), ("f.png", None)]
    assert keys(documents) == expected
    assert counts == {"a.png": 1, "b.pdf": 3, "c.pdf": 1, "d.tif": 2, "e.tif": 1, "f.png": 1}
    assert [len(document.open()) for document in documents[:-1]] == [1] * 8
    with pytest.raises(InputUnreadable, match=r"f\.png"):
        documents[-1].open()
    assert documents[2].open()[0].name.endswith("b.pdf:2")

    whole = list(documents_of(files, per_file=True))
    assert keys(whole) == [(file.name, None) for file in files]
    assert [len(document.open()) for document in whole[:-1]] == [1, 3, 1, 2, 1]


def test_what_is_done_is_not_given_again(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    write_pdf(tmp_path / "c.pdf", 3)
    files = find_files([tmp_path]).files
    done = {("a.png", None), ("c.pdf", 1), ("c.pdf", 3)}
    assert keys(list(documents_of(files, done))) == [("b.png", None), ("c.pdf", 2)]
    assert keys(list(documents_of(files, {("c.pdf", None)}))) == [("a.png", None), ("b.png", None)]


def test_a_page_of_a_file_is_not_that_of_one_called_so(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", 2)
    write_images(tmp_path, "a.pdf:2")
    documents = list(documents_of(find_files([tmp_path], "*").files))
    assert [(each.key, each.open()[0].image.size == WHITE.size) for each in documents] == [
        (("a.pdf", 1), False),
        (("a.pdf", 2), False),
        (("a.pdf:2", None), True),
    ]


def test_a_folder_that_goes_while_it_is_looked_through_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scan = os.scandir

    def scan_or_miss(path: Any) -> Any:
        if str(path).endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_or_miss)
    assert [file.name for file in find_files([tmp_path]).files] == ["a.png"]


def test_a_file_that_goes_once_it_is_open_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")

    def open_and_remove(path: Path) -> Any:
        file = open_plain(path)
        path.unlink()
        return file

    monkeypatch.setattr("ernie_local.media.given_file.open_plain", open_and_remove)
    found = find_files([tmp_path])
    assert [document.key for document in documents_of(found.files)] == [("a.png", None)]
