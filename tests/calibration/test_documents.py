"""Pages of documents: equal seeds draw the same, all is on the page, answers are printed and add up."""

from __future__ import annotations

import re
from itertools import combinations, product
from pathlib import Path

import matplotlib
import numpy
import pytest
from matplotlib import font_manager

from ernie_calibration.documents import CODES, KINDS, draw_document, missing_languages, sheet
from ernie_calibration.documents.language import (
    TYPEFACES,
    Typeface,
    has_characters,
    load_language,
    system_typefaces,
    typefaces_for,
)
from ernie_calibration.drawn_image import (
    SHARE_BEFORE,
    Box,
    Canvas,
    Color,
    DrawnImage,
    Question,
    Run,
    load_font,
)
from ernie_calibration.names import is_held_out
from ernie_calibration.scoring import METRIC_OF_KIND

PRINTED = [code for code in CODES if typefaces_for(load_language(code))]
CASES = list(product(PRINTED, (False, True)))


def pages(kind: str) -> list[tuple[str, DrawnImage]]:
    """One for each language and world."""
    return [(code, draw_document(kind, 7, code=code, held_out=world)) for code, world in CASES]


def digits(text: str) -> int:
    """Cents of an amount in any language's form."""
    sign = -1 if "-" in text else 1
    return sign * int(re.sub(r"\D", "", text))


def only(drawn: DrawnImage, kind: str) -> list[Question]:
    return [question for question in drawn.questions if question.kind == kind]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_draw_equal_pages_and_others_do_not(kind: str) -> None:
    first, again = (draw_document(kind, 3) for _ in range(2))
    assert numpy.array_equal(numpy.asarray(first.image), numpy.asarray(again.image))
    assert (first.questions, first.transcript) == (again.questions, again.transcript)
    others = [draw_document(kind, 4), draw_document(kind, 3, held_out=True)]
    assert len({drawn.image.tobytes() for drawn in (first, *others)}) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_pages_have_the_size_of_pages_and_long_transcripts(kind: str) -> None:
    images = [draw_document(kind, seed) for seed in range(12)]
    assert all(690 <= max(drawn.image.size) <= 1610 for drawn in images)
    assert sum(len(drawn.transcript) for drawn in images) / 12 > 200
    assert len({drawn.image.size for drawn in images}) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_is_printed_and_every_kind_has_a_measure(kind: str) -> None:
    for code, drawn in pages(kind):
        assert len(drawn.questions) >= 5
        for question in drawn.questions:
            assert question.kind in METRIC_OF_KIND
            if question.kind != "document count":
                assert question.answer in drawn.transcript, (code, question)
                assert all(glyph is not None for glyph in question.printed.glyphs[:1]) or code == "zh"


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_lies_outside_the_page_or_on_other_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[Box] = []  # of all text

    class Watched(Canvas):
        def text(
            self, x: float, y: float, text: str, font: str, size: float, ink: Color, align: str = "left"
        ) -> Run:
            if text:
                left, top, right, bottom = load_font(font, round(size)).getbbox(text, anchor="lm")
                start = x - SHARE_BEFORE[align] * (right - left)
                boxes.append((start + left, y + top, start + right, y + bottom))
            return super().text(x, y, text, font, size, ink, align)

    monkeypatch.setattr(sheet, "Canvas", Watched)
    for seed, (code, world) in enumerate(CASES):
        boxes.clear()
        drawn = draw_document(kind, seed, code=code, held_out=world)
        assert len(boxes) > 10
        for left, top, right, bottom in boxes:
            assert min(left, top) >= 0, (kind, seed, code)
            assert right <= drawn.image.width, (kind, seed, code)
            assert bottom <= drawn.image.height, (kind, seed, code)
        for one, other in combinations(boxes, 2):
            wide = min(one[2], other[2]) - max(one[0], other[0])
            high = min(one[3], other[3]) - max(one[1], other[1])
            assert wide <= 1 or high <= 1, (kind, seed, code, one, other)


def table_of(drawn: DrawnImage) -> list[list[str]]:
    """The cells of its table, header first."""
    return [line.split(" | ") for line in drawn.transcript.split("\n") if " | " in line]


@pytest.mark.parametrize(("code", "held_out"), CASES)
def test_an_invoice_adds_up(code: str, held_out: bool) -> None:
    drawn = draw_document("invoice page", 11, code=code, held_out=held_out)
    language = load_language(code)
    rows = table_of(drawn)[1:]
    assert only(drawn, "document count")[0].answer == str(len(rows))
    for _, quantity, price, amount in rows:
        assert digits(quantity) * digits(price) == digits(amount)
        assert language.amount(digits(amount)) == amount
    net = sum(digits(row[3]) for row in rows)
    lines = drawn.transcript.split("\n")
    (total,) = only(drawn, "document total")
    last = max(index for index, line in enumerate(lines) if line.endswith(total.answer))
    assert lines[last - 2].endswith(f" {language.amount(net)}")
    rate = re.findall(r"(\d+) ?%", lines[last - 1])[0]
    tax = (net * int(rate) + 50) // 100
    assert lines[last - 1].endswith(f"% {language.amount(tax)}")
    assert digits(total.answer) == net + tax


@pytest.mark.parametrize("seed", range(8))
def test_a_statement_goes_from_the_opening_to_the_closing_balance(seed: int) -> None:
    drawn = draw_document("account statement", seed, code="en", held_out=seed == 7)
    opening, closing = only(drawn, "document total")
    header, *rows = table_of(drawn)
    assert only(drawn, "document count")[0].answer == str(len(rows))
    balance = digits(opening.answer)
    for row in rows:
        cells = dict(zip(header[2:], row[2:], strict=True))
        for title, cell in cells.items():
            if title == "Balance":
                assert digits(cell) == balance
            elif cell:
                balance += -digits(cell) if title in ("Paid out", "Debit") else digits(cell)
    assert digits(closing.answer) == balance


def test_change_is_what_was_paid_less_the_total() -> None:
    for seed in range(10):
        drawn = draw_document("receipt strip", seed, code="en")
        (total,) = only(drawn, "document total")
        lines = drawn.transcript.split("\n")
        place = next(index for index, line in enumerate(lines) if line.endswith(total.answer))
        paid, change = (
            digits(re.findall(r"[\d,]+\.\d\d", line)[-1]) for line in lines[place + 1 : place + 3]
        )
        assert paid - change == digits(total.answer)


def test_cells_are_those_of_their_row_and_sums_those_of_their_columns() -> None:
    num_sums = 0
    for seed in range(8):
        drawn = draw_document("report table", seed, code="es")
        header, *rows = table_of(drawn)
        for question in only(drawn, "document cell"):
            cells = {
                row[column]
                for row in rows
                for column, title in enumerate(header)
                if f"{row[0]}" in question.text and f"{title}" in question.text
            }
            assert question.answer in cells, question
        if rows[-1][0] == "Total":
            num_sums += 1
            for column in range(1, len(header)):
                assert sum(digits(row[column]) for row in rows[:-1]) == digits(rows[-1][column])
    assert num_sums > 1


def test_held_out_pages_share_no_name_with_others() -> None:
    for kind in ("invoice page", "letter page"):
        for seed in range(6):
            for held_out in (False, True):
                drawn = draw_document(kind, seed, code="de", held_out=held_out)
                recipient = drawn.questions[2]
                assert recipient.kind == "document name"
                assert all(is_held_out(word) == held_out for word in recipient.answer.split(" ")), recipient


def test_what_no_font_prints_is_left_out_by_name() -> None:
    assert has_characters(TYPEFACES[0].regular, "Größe Цена Σύνολο złoty")
    assert not has_characters(TYPEFACES[0].regular, "发票")
    lines = missing_languages()
    assert lines == [] or lines[0].startswith("left out: documents in Chinese (no font here has all of its ")
    assert (lines == []) == ("zh" in PRINTED)
    if lines:
        assert draw_document("invoice page", 1, code="zh").transcript.isascii()


def test_a_font_of_the_system_is_taken_where_none_of_ours_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    latin_only, greek = (
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)
        for name in ("cmb10.ttf", "DejaVuSans.ttf")
    )
    found = [greek, str(tmp_path / "broken.ttf"), latin_only]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: found)
    assert system_typefaces(frozenset("Ωψ")) == (Typeface(greek, greek),)
    assert system_typefaces(frozenset("发票")) == ()


def test_all_languages_have_the_same_labels_and_questions() -> None:
    english = load_language("en")
    for code in CODES:
        language = load_language(code)
        assert set(language.labels) == set(english.labels)
        assert set(language.questions) == set(english.questions)
        assert len(language.months) == 12
