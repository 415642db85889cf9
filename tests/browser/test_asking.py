"""Questions about images and PDFs in a real browser: what is sent, what is shown, and what is kept."""

from __future__ import annotations

import base64
import io
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local.session import ToolCall
from tests.browser.conftest import Script
from tests.browser.visit import OpenVisit, png
from tests.runtime.server.serving import INVOICE, data_url
from tests.video_files import write_video

pytestmark = pytest.mark.slow
QUESTION = "What is the total?"
MOST_TOKENS = 48
LINE = {
    "type": "object",
    "properties": {
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "item": {"enum": ["Stamp", "Butter"]},
    },
    "required": ["count", "item"],
}
SCHEMA = {
    "type": "object",
    "properties": {
        "vendor": {"enum": ["Kim Supply", "Jones"]},
        "lines": {"type": "array", "items": LINE, "minItems": 2, "maxItems": 2},
        "paid": {"type": "boolean"},
    },
    "required": ["vendor", "lines", "paid"],
}


def asked_by_api(url: str, parts: list[dict[str, Any]], **more: Any) -> str:
    """The answer that another client of the server gets."""
    more.setdefault("max_completion_tokens", MOST_TOKENS)
    body = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}], **more}
    data = json.dumps(body).encode()
    with urllib.request.urlopen(f"{url}/v1/chat/completions", data, timeout=30) as answer:
        content: str = json.load(answer)["choices"][0]["message"]["content"]
    return content


def pdf_of(num_pages: int) -> bytes:
    """A PDF with the shipped invoice on each page."""
    file = io.BytesIO()
    pages = [Image.open(INVOICE).convert("RGB")] * num_pages
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:], resolution=200)
    return file.getvalue()


def test_an_invoice_is_asked_about_by_drop_and_by_paste(served: str, visit: OpenVisit) -> None:
    expected = asked_by_api(served, [{"type": "image_url", "image_url": {"url": data_url(INVOICE)}}])
    here = visit(served).limited(MOST_TOKENS)
    for bring in (here.drop, here.paste):
        bring(png("invoice.png", INVOICE))
        attached = here.attached(1).inner_text()
        assert all(part in attached for part in ("invoice.png", "77 tokens", "308 \u00d7 196"))
        answer = here.ask(QUESTION)
        assert answer.locator(".body").inner_text().strip() == expected
        assert "77 of images" in answer.locator(".figures").inner_text()
        assert here.page.locator("#attached .file").count() == 0
        here.page.click("#new-chat")
    assert here.page.locator("#chat-list .open").all_inner_texts() == [QUESTION, QUESTION]


def test_a_pdf_is_shown_page_by_page(served: str, visit: OpenVisit) -> None:
    document = pdf_of(3)
    part = {"type": "file", "file": {"file_data": data_url_of(document)}}
    here = visit(served).limited(MOST_TOKENS)
    here.drop(("three pages.pdf", "application/pdf", document))
    attached = here.attached(1)
    assert attached.locator("img").count() == 3
    assert "three pages.pdf: 3 pages, 231 tokens" in attached.inner_text()
    attached.locator(".thumbnail").nth(1).click()
    shown = here.page.locator("#viewer-image[src^='blob:']")
    shown.wait_for()
    assert "three pages.pdf, page 2" in here.text("#viewer")
    here.page.keyboard.press("Escape")
    assert here.ask(QUESTION).locator(".body").inner_text().strip() == asked_by_api(served, [part])


def data_url_of(document: bytes) -> str:
    """A PDF as a data: address."""
    return f"data:application/pdf;base64,{base64.b64encode(document).decode()}"


def test_two_images_are_asked_about_together(served: str, visit: OpenVisit, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(tmp_path / "red.png")
    here = visit(served).limited(MOST_TOKENS)
    here.drop(png("invoice.png", INVOICE), png("red.png", tmp_path / "red.png"))
    assert here.attached(2).locator("b").all_inner_texts() == ["invoice.png", "red.png"]
    part = [
        {"type": "image_url", "image_url": {"url": data_url(path)}}
        for path in (INVOICE, tmp_path / "red.png")
    ]
    assert here.ask(QUESTION).locator(".body").inner_text().strip() == asked_by_api(served, part)
    assert here.page.locator("article.user img").count() == 2


def test_a_video_is_asked_about_beside_an_image(served: str, visit: OpenVisit, tmp_path: Path) -> None:
    clip = write_video(tmp_path / "clip.mp4")
    url = f"data:video/mp4;base64,{base64.b64encode(clip.read_bytes()).decode()}"
    here = visit(served).limited(MOST_TOKENS)
    here.drop(("clip.mp4", "video/mp4", clip.read_bytes()), png("invoice.png", INVOICE))
    attached = here.attached(2).inner_text()
    assert "clip.mp4" in attached
    assert "16 frames of 0:02" in attached
    here.page.locator("#attached .thumbnail").first.click()
    here.page.locator("#viewer-image[src^='blob:']").wait_for()
    assert "16 frames of 0:02, 64 \u00d7 48 pixels" in here.text("#viewer-caption")
    here.page.keyboard.press("Escape")
    parts = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "image_url", "image_url": {"url": data_url(INVOICE)}},
    ]
    answer = here.ask(QUESTION)
    # nano writes spaces that Markdown does not show.
    assert answer.locator(".body").inner_text().split() == asked_by_api(served, parts).split()
    assert "77 of images, 32 of videos" in answer.locator(".figures").inner_text()


def test_an_answer_is_stopped_and_its_question_changed_and_asked_again(
    script: Script, visit: OpenVisit
) -> None:
    url = script.serve({"long": "one two three four"}, is_slow=True)
    here = visit(url)
    here.page.fill("#question", "long")
    here.page.press("#question", "Enter")
    script.may_go.release(2)
    here.page.locator("article.assistant .body", has_text="one two").wait_for()
    here.page.click("#stop")
    stopped = here.ended(0)
    assert stopped.locator(".problem").inner_text() == "Stopped."
    assert stopped.locator(".body").inner_text().strip() == "one two"
    assert script.chats[0].is_stopped

    script.may_go.release(100)
    here.page.click("article.user >> text=Edit")
    assert here.page.input_value("#question") == "long"
    here.page.fill("#question", "short")
    here.page.press("#question", "Enter")
    here.page.locator("article.user", has_text="short").wait_for()
    assert here.ended(0).locator(".body").inner_text() == "short"
    assert here.page.locator("article").count() == 2

    here.page.click("text=Ask again")
    here.ended(0)
    assert [asked[-1].text for asked in script.chats[0].asked] == ["long", "short", "short"]
    assert [len(asked) for asked in script.chats[0].asked] == [1, 1, 1]


def test_chats_are_there_after_a_reload_and_are_exported(served: str, visit: OpenVisit) -> None:
    here = visit(served).limited(MOST_TOKENS)
    here.drop(png("invoice.png", INVOICE))
    here.attached(1)
    said = here.ask(QUESTION).locator(".body").inner_text()
    here.page.reload()
    assert here.ended(0).locator(".body").inner_text() == said
    with here.page.expect_download() as download:
        here.page.click("#chat-list [aria-label^=Export]")
    assert download.value.suggested_filename == "What-is-the-total.json"
    exported = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    asked, answered = exported["messages"]
    assert (asked["text"], answered["text"].strip()) == (QUESTION, said.strip())
    assert asked["images"][0]["url"] == data_url(INVOICE)

    # The next turn sends all of it again.
    assert here.ask("And the date?").locator(".figures").inner_text().count("known before") == 1

    here.page.click("#chat-list [aria-label^=Delete]")
    here.page.click("text=Delete it")
    here.page.locator(".empty").wait_for()
    here.page.reload()
    here.page.locator(".empty").wait_for()
    assert here.page.locator("#chat-list li").count() == 0


def test_an_answer_grows_while_another_chat_is_shown(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve({"long": "one two three"}, is_slow=True))
    here.page.fill("#question", "long")
    here.page.press("#question", "Enter")
    script.may_go.release(1)
    here.page.locator("article.assistant .body", has_text="one").wait_for()
    here.page.click("#new-chat")
    assert here.page.locator("article").count() == 0
    here.page.fill("#question", "not asked yet")
    script.may_go.release(2)
    here.page.locator("#chat-list li:not(.busy) .open").click()
    assert here.ended(0).locator(".body").inner_text() == "one two three"
    assert here.page.input_value("#question") == ""
    # A page that is closed in the middle keeps what it has.
    here.page.fill("#question", "again and again")
    here.page.press("#question", "Enter")
    here.page.locator("article.assistant").nth(1).wait_for()
    here.page.reload()
    assert here.ended(1).locator(".problem").inner_text() == "Stopped when the page was closed."


def test_an_answer_in_a_schema_is_a_table(served: str, visit: OpenVisit) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    image = {"type": "image_url", "image_url": {"url": data_url(INVOICE)}}
    expected = json.loads(asked_by_api(served, [image], response_format=form, max_completion_tokens=None))
    here = visit(served)
    here.page.click("#show-options")
    here.page.select_option("#form", "schema")
    here.page.fill("#max-tokens", "0")
    here.page.fill("#question", QUESTION)
    here.page.press("#question", "Enter")
    assert here.text("#problem") == "Most tokens, under Options, is a whole number from 1 on."
    here.page.fill("#max-tokens", "")
    here.page.fill("#schema", "{")
    here.page.fill("#question", QUESTION)
    here.page.press("#question", "Enter")
    assert "This is not JSON" in here.text("#schema-problem")
    assert here.page.locator("article").count() == 0
    here.page.fill("#schema", json.dumps(SCHEMA))
    here.drop(png("invoice.png", INVOICE))
    here.attached(1)
    table = here.ask(QUESTION).locator(".scroller > table")
    assert table.locator("> tbody > tr > th").all_inner_texts() == ["vendor", "lines", "paid"]
    assert table.locator("> tbody > tr > td").first.inner_text() == expected["vendor"]
    lines = table.locator("table")
    assert lines.locator("thead th").all_inner_texts() == ["count", "item"]
    rows = [row.locator("td").all_inner_texts() for row in lines.locator("tbody tr").all()]
    assert rows == [[str(line["count"]), line["item"]] for line in expected["lines"]]


def test_boxes_are_drawn_and_linked_with_the_text(script: Script, visit: OpenVisit, tmp_path: Path) -> None:
    """In the first image: a video before it is none."""
    answer = (
        'The total: [{"bbox_2d": [30, 640, 990, 700], "label": "total"}]\n\nThe vendor <|LOC_45|><|LOC_20|>'
    )
    here = visit(script.serve({"Where?": f"{answer}<|LOC_400|><|LOC_110|>"}))
    clip = write_video(tmp_path / "clip.mp4").read_bytes()
    here.drop(("clip.mp4", "video/mp4", clip), png("invoice.png", INVOICE))
    here.attached(2)
    shown = here.ask("Where?")
    shown.locator(".frame img[src^='blob:']").wait_for()
    assert (shown.locator(".frame img").get_attribute("alt") or "").startswith("invoice.png with")
    frame = shown.locator(".frame img").bounding_box()
    assert frame is not None
    assert shown.locator(".named").all_inner_texts() == ["1\ntotal", "2\nThe vendor"]
    for index, (left, top, right, bottom) in enumerate([(30, 640, 990, 700), (45, 20, 400, 110)]):
        drawn = shown.locator(f"rect.area[data-box='{index}']")
        at = drawn.bounding_box()
        assert at is not None
        edges = (at["x"], at["y"], at["x"] + at["width"], at["y"] + at["height"])
        places = [frame["x"] + frame["width"] * one / 1000 for one in (left, right)]
        places += [frame["y"] + frame["height"] * one / 1000 for one in (top, bottom)]
        assert edges == pytest.approx((places[0], places[2], places[1], places[3]), abs=4)
        place = shown.locator(".place").nth(index)
        for point in (place.hover, place.focus, shown.locator(".named").nth(index).focus):
            point()
            shown.locator(f"rect.area.marked[data-box='{index}']").wait_for()
            assert shown.locator("rect.area.marked").count() == 1
            here.page.mouse.move(0, 0)
            here.page.focus("#question")
    assert shown.locator(".place").all_inner_texts() == [
        "1\n[30, 640, 990, 700]",
        "2\n<|LOC_45|><|LOC_20|><|LOC_400|><|LOC_110|>",
    ]


def test_a_call_of_a_tool_is_shown_and_its_result_typed(script: Script, visit: OpenVisit) -> None:
    call = ToolCall("rate", {"from": "GBP", "to": "EUR"})
    tools = [{"type": "function", "function": {"name": "rate", "parameters": {"type": "object"}}}]
    here = visit(script.serve({"How much in euro?": "", "1.17": "It is 99.26."}, {"How much in euro?": call}))
    here.page.click("#show-options")
    here.page.fill("#tools", json.dumps(tools))
    called = here.ask("How much in euro?")
    assert [re.sub(r"\s+", " ", row) for row in called.locator(".call tr").all_inner_texts()] == [
        "from GBP",
        "to EUR",
    ]
    here.page.fill("text=Result of rate", "1.17")
    here.page.click("text=Send the result")
    assert here.ended(1).locator(".body").inner_text() == "It is 99.26."
    *_, asked, result = script.chats[0].asked[-1]
    assert (asked.tool_calls, result.role, result.text) == ((call,), "tool", "1.17")
    assert script.chats[0].writer.tools[0]["function"]["name"] == "rate"  # type: ignore[index]


def test_what_strangers_wrote_stays_text(script: Script, visit: OpenVisit) -> None:
    bad = '<script>document.title="owned"</script><img src=x onerror="document.title=1">'
    here = visit(
        script.serve({"a": f"{bad}\n\n[x](javascript:document.title=2) ![y](https://elsewhere.example/y)"})
    )
    here.drop(png(f"{bad}.png", INVOICE))
    assert bad in here.attached(1).locator("b").inner_text()
    answer = here.ask("a").locator(".body")
    assert bad in answer.inner_text()
    assert answer.locator("script, img, a[href^=javascript]").count() == 0
    here.page.click("#new-chat")
    here.ask(bad)
    assert bad in here.page.locator("#chat-list .open").first.inner_text()
    assert here.page.title() == "nano: ernie-local"
