"""What a reader asks and makes of the answers: of a chat that says what it is told to, and of nano."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

import ernie_local
from ernie_local.errors import InputUnreadable, Interrupted, NoAnswer, UsageError
from ernie_local.extraction.checks import parse_check
from ernie_local.extraction.extract import extract
from ernie_local.extraction.reader import DEFAULT_PROMPT, ChatReader, ReadingOptions
from ernie_local.media.open_image import OpenedImage, open_images
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import Chat, ChatMessage
from ernie_local.structured import AnswerForm

INVOICE = Path(__file__).parents[3] / "examples" / "invoice.png"
TOTALS = AnswerForm.of("total: number, lines[]: {price: number}")
SUM = "total == sum(lines.price)"


class ScriptedChat:
    """Gives one of `values` after the other, with the same confidence for each path; None is no answer."""

    def __init__(self, *values: Any, confidence: float = 0.75) -> None:
        self.values, self.confidence = list(values), confidence
        self.asked: list[tuple[str, int, AnswerForm]] = []
        self.last: Any = None
        self.is_stopped = False
        self.model = SimpleNamespace(
            image_processor=ImageProcessorConfig(),
            settings=SimpleNamespace(context_size=8192),
            files=SimpleNamespace(),
        )
        self.messages: list[ChatMessage] = []

    def send(self, messages: Sequence[ChatMessage], *, schema: AnswerForm, **_limits: Any) -> Iterator[str]:
        (message,) = messages
        self.messages.append(message)
        return self._answer(message.text, len(message.images), schema)

    def ask(self, text: str, *, schema: AnswerForm, **_limits: Any) -> Iterator[str]:
        return self._answer(text, 0, schema)

    def stop(self) -> None:
        self.is_stopped = True

    def _answer(self, text: str, num_images: int, form: AnswerForm) -> Iterator[str]:
        self.asked.append((text, num_images, form))
        yield "..."
        value = None if self.is_stopped else self.values.pop(0)
        self.last = SimpleNamespace(
            value=value,
            confidence={"" if form.kind == "text" else "total": self.confidence},
            usage=SimpleNamespace(prompt_tokens=100, completion_tokens=5),
            finish_reason="interrupted" if self.is_stopped else "stop",
        )
        if value is None and not self.is_stopped:
            raise NoAnswer("no answer", "it was cut off", "more")


def reader(chat: ScriptedChat, form: AnswerForm = TOTALS, **options: Any) -> ChatReader:
    return ChatReader(cast("Chat", chat), ReadingOptions(form, **options))


@pytest.fixture
def page() -> list[OpenedImage]:
    return open_images(Image.new("RGB", (560, 280), "white"))


def checks(*texts: str, form: AnswerForm = TOTALS) -> Any:
    return tuple(parse_check(text, form.schema or {}) for text in texts)


def test_all_fields_are_asked_together(page: list[OpenedImage]) -> None:
    chat = ScriptedChat({"total": 3, "lines": [{"price": 1}, {"price": 2}]})
    read = reader(chat, checks=checks(SUM))
    found = read.read(page)
    assert found.fields == {"total": 3, "lines": [{"price": 1}, {"price": 2}]}
    assert found.failed_checks == ()
    assert chat.asked == [(DEFAULT_PROMPT, 1, TOTALS)]
    assert (read.prompt_tokens, read.completion_tokens) == (100, 5)


def test_a_failed_check_is_named(page: list[OpenedImage]) -> None:
    chat = ScriptedChat({"total": 4, "lines": [{"price": 1}]})
    found = reader(chat, checks=checks(SUM, "total > 0"), prompt="Read it.").read(page)
    assert found.failed_checks == (SUM,)
    assert [text for text, *_ in chat.asked] == ["Read it."]


@pytest.mark.parametrize(("second", "is_taken"), [(3, True), (5, False)])
def test_a_failed_check_is_asked_about_once(page: list[OpenedImage], second: int, is_taken: bool) -> None:
    lines = [{"price": 1}, {"price": 2}]
    chat = ScriptedChat({"total": 4, "lines": lines}, {"total": second, "lines": lines})
    read = reader(chat, checks=checks(SUM), retry=True)
    found = read.read(page)
    assert found.fields["total"] == (3 if is_taken else 4)
    assert found.failed_checks == (() if is_taken else (SUM,))
    text, num_images, form = chat.asked[1]
    assert "total == sum(lines.price) (total is 4, lines.price is [1, 2])" in text
    assert (num_images, form) == (0, TOTALS)
    assert read.prompt_tokens == 200


def test_each_field_is_asked_with_the_images(page: list[OpenedImage]) -> None:
    form = AnswerForm.of('vendor "Who sent it?", buyer: {city}, total: number')
    chat = ScriptedChat("Acme", "Bonn", "12.5")
    read = reader(chat, form, ask="each", prompt="Look closely.")
    found = read.read(page)
    assert found.fields == {"vendor": "Acme", "buyer": {"city": "Bonn"}, "total": 12.5}
    assert found.confidence == {"vendor": 0.75, "buyer.city": 0.75, "total": 0.75}
    assert [(text, num) for text, num, _ in chat.asked] == [
        ("Look closely. Who sent it?", 1),
        ("Look closely. What is the buyer city?", 1),
        ("Look closely. What is the total?", 1),
    ]
    assert (read.prompt_tokens, read.completion_tokens) == (300, 15)


def test_only_the_fields_of_a_failed_check_are_asked_again(page: list[OpenedImage]) -> None:
    form = AnswerForm.of("vendor, net: number, total: number")
    chat = ScriptedChat("Acme", "3", "2", "3", "4")
    found = reader(chat, form, ask="each", retry=True, checks=checks("net < total", form=form)).read(page)
    assert found.fields == {"vendor": "Acme", "net": 3, "total": 4}
    assert [text for text, *_ in chat.asked[3:]] == [
        "This does not hold: net < total (net is 3, total is 2). What is the net?",
        "This does not hold: net < total (net is 3, total is 2). What is the total?",
    ]


def test_no_answer_is_told_and_counted(page: list[OpenedImage]) -> None:
    read = reader(ScriptedChat(None))
    with pytest.raises(NoAnswer):
        read.read(page)
    assert read.prompt_tokens == 100


def test_a_stop_interrupts(page: list[OpenedImage]) -> None:
    chat = ScriptedChat({"total": 1, "lines": []})
    read = reader(chat)
    read.stop()
    with pytest.raises(Interrupted):
        read.read(page)
    chat.is_stopped = False  # as a chat does when it is asked the next question
    with pytest.raises(Interrupted):
        read.read(page)


def test_boxes_are_taken_out_of_the_answer(page: list[OpenedImage]) -> None:
    form = AnswerForm.of("total: number")
    chat = ScriptedChat({"total": {"value": 12, "bbox_2d": [100, 200, 500, 900]}})
    found = reader(chat, form, boxes=True).read(page)
    assert found.fields == {"total": 12}
    assert found.boxes == {"total": (56, 56, 280, 252)}
    asked = chat.asked[0][2]
    assert "bbox_2d" in str(asked.schema)
    assert "bbox_2d" in asked.instruction
    with pytest.raises(UsageError, match="boxes with 2 images"):
        reader(ScriptedChat({"total": {"value": 12, "bbox_2d": None}}), form, boxes=True).read([*page, *page])


def test_what_is_wrong_with_boxes_is_noted(page: list[OpenedImage]) -> None:
    form = AnswerForm.of("total: number, date")
    boxes = {"total": [100, 200, 500, 2000], "date": [300, 300, 300, 400]}
    chat = ScriptedChat({name: {"value": 1, "bbox_2d": box} for name, box in boxes.items()})
    found = reader(chat, form, boxes=True).read(page)
    assert list(found.boxes) == ["total"]
    assert [note.partition(":")[0] for note in found.notes] == ["total", "date"]
    assert "is cut there" in found.notes[0]
    assert "has no area" in found.notes[1]
    with pytest.raises(UsageError, match="could not be told apart"):
        ReadingOptions(AnswerForm.of("a: {value, bbox_2d}"), boxes=True)


def test_several_pages_are_one_question(page: list[OpenedImage]) -> None:
    chat = ScriptedChat({"total": 1, "lines": []})
    reader(chat).read([*page, *page, *page])
    assert chat.asked[0][1] == 3


def test_each_option_is_part_of_the_identity() -> None:
    plain = ReadingOptions(TOTALS)
    others = [
        ReadingOptions(AnswerForm.of("total: number")),
        ReadingOptions(TOTALS, ask="each"),
        ReadingOptions(TOTALS, prompt="Read."),
        ReadingOptions(TOTALS, boxes=True),
        ReadingOptions(TOTALS, checks=checks("total > 0")),
        ReadingOptions(TOTALS, retry=True),
        ReadingOptions(TOTALS, thinking=True),
        ReadingOptions(TOTALS, thinking_budget=7),
        ReadingOptions(TOTALS, detail="low"),
        ReadingOptions(TOTALS, trim=True),
        ReadingOptions(TOTALS, max_tokens=9),
        ReadingOptions(TOTALS, fps=1),
        ReadingOptions(TOTALS, frames=1),
    ]
    assert all(other.identity() != plain.identity() for other in others)
    assert (
        ReadingOptions(AnswerForm.of("total: number, lines[]: {price: number}")).identity()
        == plain.identity()
    )


@pytest.fixture(scope="module")
def nano() -> ernie_local.LoadedModel:
    return ernie_local.load("nano")


def test_nano_reads_fields_as_it_answers_single_questions(nano: ernie_local.LoadedModel) -> None:
    questions = {"total": "What is the total?", "date": "What is the date?"}
    plain = {}
    for name, question in questions.items():
        chat = Chat(nano)
        for _ in chat.ask(question, images=INVOICE):
            pass
        assert chat.last is not None
        plain[name] = chat.last.text
    form = AnswerForm.of(", ".join(f'{name} "{question}"' for name, question in questions.items()))
    read = ChatReader(Chat(nano), ReadingOptions(form, ask="each"))
    found = read.read(open_images(INVOICE))
    assert dict(found.fields) == plain == {"total": "£84.84", "date": "24.06.2022"}
    assert list(found.confidence) == ["total", "date"]
    assert all(0.9 < share <= 1 for share in found.confidence.values())


def test_nano_answers_together_by_the_schema(nano: ernie_local.LoadedModel) -> None:
    form = AnswerForm.of("status: paid|open, year: integer, paid: boolean")
    found = ChatReader(Chat(nano), ReadingOptions(form)).read(open_images(INVOICE))
    assert found.fields["status"] in ("paid", "open")
    assert isinstance(found.fields["year"], int)
    assert isinstance(found.fields["paid"], bool)
    assert list(found.confidence) == ["status", "year", "paid"]


def test_the_images_of_a_document_are_computed_once(nano: ernie_local.LoadedModel) -> None:
    chat = Chat(nano)
    form = AnswerForm.of("total: number, date")
    ChatReader(chat, ReadingOptions(form, ask="each")).read(open_images(INVOICE))
    assert chat.last is not None
    usage = chat.last.usage
    assert usage.cached_tokens > usage.image_tokens > 0


@pytest.mark.parametrize("parallel", [1, 3])
def test_python_users_get_the_records_of_a_folder(tmp_path: Path, parallel: int) -> None:
    model = ernie_local.load("nano", parallel=parallel)
    for name in ("1.png", "2.png", "10.png"):
        (tmp_path / name).write_bytes(INVOICE.read_bytes())
    (tmp_path / "3.png").write_bytes(b"no image")
    options = ReadingOptions(AnswerForm.of('date "What is the date?"'), ask="each")
    records = list(extract(model, tmp_path, options, min_confidence=0.5))
    assert sorted((record.file, record.error is None) for record in records) == [
        ("1.png", True),
        ("10.png", True),
        ("2.png", True),
        ("3.png", False),
    ]
    assert all(record.fields == {"date": "24.06.2022"} for record in records if record.error is None)


def test_python_users_are_told_before_anything_is_read(nano: ernie_local.LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="0 images, PDFs or videos"):
        extract(nano, tmp_path, "date")
    with pytest.raises(UsageError, match="parallel=0"):
        extract(nano, INVOICE, "date", parallel=0)
    with pytest.raises(UsageError, match="parallel=2 is more than the 1 that"):
        extract(nano, INVOICE, "date", parallel=2)
    with pytest.raises(UsageError, match="stands twice"):
        extract(nano, INVOICE, "date, date")
