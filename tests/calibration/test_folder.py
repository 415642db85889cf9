"""A user's folder as samples: what belongs together, what is left out by name, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ernie_calibration.folder import MAX_TEXT_BYTES, folder_samples
from ernie_calibration.sample import Sample, SampleTurn
from ernie_local.errors import InputUnreadable

COLORS = ("red", "green", "blue")


def image(path: Path, kind: str | None = None) -> Path:
    Image.new("RGB", (60, 40), "red").save(path, kind)
    return path


def read(folder: Path) -> tuple[dict[str, Sample], list[str]]:
    notes: list[str] = []
    samples = list(folder_samples(folder, notes.append))
    return {sample.name: sample for sample in samples}, notes


def test_every_format_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    names = ("a.png", "b.JPG", "c.webp", "d.gif", "e.tif", "f.bmp", "g.pdf")
    for name in reversed(names):
        image(tmp_path / name)
    samples, notes = read(tmp_path)
    assert list(samples) == [f"folder/{name}" for name in names]
    assert all(len(sample.images) == 1 and sample.turns == () for sample in samples.values())
    assert notes == []


def test_texts_belong_to_the_image_of_their_name(tmp_path: Path) -> None:
    image(tmp_path / "bill.png")
    (tmp_path / "bill.txt").write_text("\ufeffCafé\nTotal 3.50\n", encoding="utf-8")
    image(tmp_path / "chart.png")
    turns = [{"question": "How high is A?", "answer": "7"}, {"question": "And B?", "answer": "9"}]
    (tmp_path / "chart.json").write_text(json.dumps({"turns": turns}))
    (tmp_path / "letter.txt").write_text("Dear Sir,\nall is well.")
    samples, _ = read(tmp_path)
    assert samples["folder/bill.png"].turns == (
        SampleTurn("Read the text.", "Café\nTotal 3.50", "transcript"),
    )
    assert [turn.answer for turn in samples["folder/chart.png"].turns] == ["7", "9"]
    letter = samples["folder/letter.txt"]
    assert (letter.images, letter.turns[0].answer) == ((), "Dear Sir,\nall is well.")
    assert len(samples) == 3


def test_pages_are_one_sample_with_their_text_and_one_each_without(tmp_path: Path) -> None:
    for name in ("with.pdf", "without.pdf", "without.tif"):
        pages = [Image.new("RGB", (60, 40), color) for color in COLORS]
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    (tmp_path / "with.txt").write_text("three pages")
    samples, _ = read(tmp_path)
    assert len(samples["folder/with.pdf"].images) == 3
    assert list(samples) == [
        "folder/with.pdf",
        *(f"folder/without.{suffix}:{number}" for suffix in ("pdf", "tif") for number in (1, 2, 3)),
    ]


def test_what_is_left_out_is_named_with_the_reason(tmp_path: Path) -> None:
    image(tmp_path / "scan.dat", "PNG")  # told by its content
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "more").mkdir()
    (tmp_path / "notes.docx").write_bytes(b"PK\x03\x04rest")
    frames = [Image.new("RGB", (60, 40), color) for color in COLORS]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    samples, notes = read(tmp_path)
    assert list(samples) == ["folder/moving.gif", "folder/scan.dat"]
    assert notes[:3] == [
        "left out: .hidden (a hidden file)",
        "left out: more (a folder; only files are read)",
        "left out: notes.docx (holds ZIP (or an office document) data, which is not read here)",
    ]
    assert "moving.gif" in notes[3]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds 0 images and 0 texts"),
        ({"a.png": b""}, "a.png: holds 0 bytes"),
        ({"a.png": b"no image at all"}, "a.png: is not an image"),
        ({"a.pdf": b"%PDF-1.4 cut off"}, "a.pdf: this PDF is cut off or damaged"),
        ({"a.txt": b" \n"}, "a.txt: holds 0 characters"),
        ({"a.txt": b"Z\xfcrich"}, "a.txt: byte 2 of 6 is 0xfc, which is not UTF-8"),
        ({"a.txt": b"x" * (MAX_TEXT_BYTES + 1)}, "1048577 bytes, over the limit of 1048576"),
        ({"a.txt": b"x", "a.json": b"{}"}, "2 files with one name, 1 is needed"),
        ({"a.json": b"{"}, "a.json is not valid JSON"),
        ({"a.json": b'{"turn": []}'}, "the key 'turn'"),
        ({"a.json": b'{"turns": []}'}, "turns is a list of 0 entries"),
        ({"a.json": b'{"turns": [{"question": "?"}]}'}, "turn 1 has 'question'"),
        ({"a.json": b'{"turns": [{"question": "?", "answer": 7}]}'}, "the answer of turn 1 is 7"),
        (
            {"a.json": b'{"turns": [{"question": "?", "answer": "!", "kind": "x"}]}'},
            "turn 1 has 'answer', 'kind', 'question'",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(InputUnreadable) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_a_text_that_could_belong_to_two_images_is_refused(tmp_path: Path) -> None:
    image(tmp_path / "a.png")
    image(tmp_path / "a.jpg")
    assert len(read(tmp_path)[0]) == 2
    (tmp_path / "a.txt").write_text("which?")
    with pytest.raises(InputUnreadable, match=r"a\.txt could belong to either"):
        read(tmp_path)


def test_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="cannot be read as a folder"):
        read(tmp_path / "missing")
