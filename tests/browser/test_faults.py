"""What goes wrong around the page: servers, keys, files, storage, several windows, and hasty hands."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local.server import service as service_module
from ernie_local.server.attachments import AttachmentLimits
from ernie_local.server.guard import GuardSettings
from tests.browser.conftest import Script, listening
from tests.browser.visit import OpenVisit, png
from tests.runtime.server.scripted import ScriptedChat
from tests.runtime.server.serving import INVOICE

pytestmark = pytest.mark.slow


def test_a_server_that_ends_in_the_middle_of_an_answer(nano: Any, script: Script, visit: OpenVisit) -> None:
    with listening(nano, ScriptedChat(nano[0], {"long": "one two three"}, may_go=script.may_go)) as (url, _):
        here = visit(url)
        here.allowed += ["ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "ERR_CONNECTION_RESET"]
        here.page.fill("#question", "long")
        here.page.press("#question", "Enter")
        script.may_go.release(1)
        here.page.locator("article.assistant .body", has_text="one").wait_for()
    ended = here.ended(0)
    assert ended.locator(".body").inner_text() == "one"
    assert (
        "ended" in ended.locator(".problem").inner_text() or "shut" in ended.locator(".problem").inner_text()
    )
    here.page.locator("#server-state", has_text="No connection").wait_for()
    assert "does not answer" in here.ask("again?").locator(".problem").inner_text()
    here.drop(png("invoice.png", INVOICE))
    here.page.locator("#problem", has_text="invoice.png: The server does not answer").wait_for()


def test_a_full_server_is_asked_again(
    script: Script, visit: OpenVisit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 1)
    url = script.serve(is_slow=True)
    here, *others = [visit(url) for _ in range(3)]
    here.allowed.append("503")
    for other, text in zip(others, ("first", "second"), strict=True):
        other.page.fill("#question", text)
        other.page.press("#question", "Enter")
        other.page.locator("article.assistant").wait_for()
    here.page.locator("#server-state", has_text="Working").wait_for()
    here.page.fill("#question", "third")
    here.page.press("#question", "Enter")
    here.page.locator(
        ".wait", has_text="questions waiting: 1, the most that may. Asking again every 1 s"
    ).wait_for()
    script.may_go.release(10)
    assert here.ended(0).locator(".body").inner_text() == "third"


def test_a_question_waits_until_the_model_is_loaded(nano: Any, visit: OpenVisit) -> None:
    with listening(nano) as (url, server):
        here = visit(url)
        here.allowed.append("503")
        here.page.locator("#server-state", has_text="Loading the model").wait_for()
        here.page.fill("#question", "Hello")
        here.page.press("#question", "Enter")
        here.page.locator(".wait", has_text="Loading model. Asking again").wait_for()
        here.drop(png("invoice.png", INVOICE))
        here.page.locator(".reading", has_text="Reading invoice.png").wait_for()
        server.service = service_module.Service([ScriptedChat(nano[0], {})])
        assert here.ended(0).locator(".body").inner_text() == "Hello"
        here.attached(1)


def test_a_key_is_asked_for_until_it_is_right(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve(guard=GuardSettings(api_key="right")))
    here.allowed.append("401")
    here.page.locator("#server-state", has_text="Needs a key").wait_for()
    here.page.fill("#question", "Hello")
    here.page.press("#question", "Enter")
    here.page.click("#key-cancel")
    assert "a key is needed" in here.ended(0).locator(".problem").inner_text()
    here.page.click("text=Ask again")
    for typed, is_wrong in (("wrong", False), ("right", True)):
        here.page.locator("#key-dialog[open]").wait_for()
        assert here.page.locator("#key-problem").is_visible() == is_wrong
        here.page.fill("#key", typed)
        here.page.keyboard.press("Enter")
        if not is_wrong:
            here.page.locator("#key-problem").wait_for()
    assert here.ended(0).locator(".body").inner_text() == "Hello"
    assert here.page.locator("#key-dialog[open]").count() == 0


def pages_of(count: int) -> bytes:
    """A PDF of small pages."""
    file = io.BytesIO()
    pages = [Image.new("RGB", (60, 80), "white")] * count
    pages[0].save(file, "PDF", save_all=True, append_images=pages[1:])
    return file.getvalue()


def test_files_that_cannot_be_read_are_told_with_their_numbers(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve(attachments=AttachmentLimits(max_bytes=200_000, max_images=2)))
    here.allowed.append("400")
    avif = io.BytesIO()
    Image.new("RGB", (64, 48), "blue").save(avif, "AVIF")
    here.page.locator("#server-state", has_text="Ready").wait_for()
    here.drop(
        ("large.png", "image/png", bytes(300_000)),
        ("photo.heic", "", b"\0\0\0\x18ftypheic" + bytes(40)),
        ("many.pdf", "application/pdf", pages_of(100)),
        ("notes.txt", "text/plain", b"no image"),
        ("new.avif", "image/avif", avif.getvalue()),
        png("invoice.png", INVOICE),
        png("third.png", INVOICE),
    )
    here.page.locator("#problem", has_text="third.png").wait_for()
    told = dict(line.split(": ", 1) for line in here.text("#problem").splitlines())
    assert "293 KiB" in told["large.png"]
    assert "195 KiB" in told["large.png"]
    assert "100 pages" in told["many.pdf"]
    assert "HEIC" in told["photo.heic"].upper()
    assert told["third.png"] == "more than 2 files"
    assert told.keys() == {"large.png", "photo.heic", "many.pdf", "notes.txt", "third.png"}
    assert here.attached(2).locator("b").all_inner_texts() == ["new.avif", "invoice.png"]
    # Whatever the browser calls them, the server sees what they are.
    here.ask("What are these?")
    last = script.chats[0].last
    assert last is not None
    assert [image.original_size for image in last.images] == [(64, 48), (1001, 700)]


def test_without_a_network_the_page_says_so(served: str, visit: OpenVisit) -> None:
    here = visit(served)
    here.allowed.append("ERR_INTERNET_DISCONNECTED")
    here.page.context.set_offline(True)
    assert here.ask("Hello").locator(".problem").inner_text() == "This device is offline."
    here.page.context.set_offline(False)
    here.page.click("text=Ask again")
    assert here.ended(0).locator(".figures").inner_text()


@pytest.mark.parametrize(
    "broken",
    [
        """for (const name of ["indexedDB", "localStorage", "sessionStorage"])
          Object.defineProperty(self, name, {get() { throw new DOMException("no", "SecurityError"); }});""",
        """IDBObjectStore.prototype.put = function () {
          throw new DOMException("full", "QuotaExceededError"); };""",
    ],
    ids=["blocked", "full"],
)
def test_a_browser_that_keeps_nothing(script: Script, visit: OpenVisit, broken: str) -> None:
    here = visit(script.serve(), before=broken)
    assert here.ask("first").locator(".body").inner_text() == "first"
    told = here.text("#kept") + here.page.locator("#problem").inner_text()
    assert "lost with this page" in told or "lost with the page" in told
    here.page.click("#new-chat")
    here.ask("second")
    assert here.page.locator("#chat-list .open").all_inner_texts() == ["second", "first"]
    here.page.click("#chat-list .open >> nth=1")
    assert here.ended(0).locator(".body").inner_text() == "first"


def test_two_windows_show_and_keep_the_same_chats(script: Script, visit: OpenVisit) -> None:
    url = script.serve()
    here = visit(url)
    here.ask("first")
    other = here.page.context.new_page()
    other.goto(url)
    other.click("#chat-list .open")
    here.ask("second")
    other.locator("article.assistant", has_text="second").wait_for()
    # Both go on from the same place at the same time: neither is lost.
    here.page.evaluate("() => { BroadcastChannel.prototype.postMessage = () => {}; }")
    here.ask("here")
    other.fill("#question", "there")
    other.press("#question", "Enter")
    other.locator("#problem", has_text="kept as a copy").wait_for()
    other.reload()
    texts = set()
    for index in range(2):
        other.click(f"#chat-list .open >> nth={index}")
        other.locator(f"#chat-list li >> nth={index} >> [aria-current]").wait_for()
        other.locator("article.assistant:not([aria-busy])").nth(2).wait_for()
        texts.add(other.locator("article.user .text").last.inner_text())
    assert texts == {"here", "there"}


def test_hasty_hands_ask_once(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve(is_slow=True))
    here.page.fill("#question", "once")
    here.page.dblclick("#send")
    here.page.locator("article.assistant").wait_for()
    here.page.press("#question", "Enter")
    script.may_go.release(10)
    here.ended(0)
    assert [asked[-1].text for asked in script.chats[0].asked] == ["once"]
    # A question that is sent while its image is read has the image.
    here.drop(png("invoice.png", INVOICE))
    here.page.fill("#question", "with an image")
    here.page.press("#question", "Enter")
    here.ended(1)
    assert len(script.chats[0].last.images) == 1  # type: ignore[union-attr]


def test_words_that_are_still_composed_are_not_sent(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve())
    session = here.page.context.new_cdp_session(here.page)
    session.send("Input.imeSetComposition", {"text": "にほん", "selectionStart": 3, "selectionEnd": 3})
    here.page.dispatch_event("#question", "keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
    here.page.dispatch_event("#question", "keydown", {"key": "Enter", "keyCode": 229, "bubbles": True})
    session.send("Input.insertText", {"text": "日本"})
    assert here.page.locator("article").count() == 0
    assert here.page.input_value("#question") == "日本"
    here.page.press("#question", "Enter")
    assert here.ended(0).locator(".body").inner_text() == "日本"


def test_text_is_pasted_as_text(script: Script, visit: OpenVisit) -> None:
    """Windows ends lines otherwise, and spreadsheets add an image of what they copy."""
    here = visit(script.serve(), permissions=["clipboard-read", "clipboard-write"])
    here.page.evaluate("() => navigator.clipboard.writeText('a\\r\\nb')")
    here.page.focus("#question")
    here.page.keyboard.press("Control+V")
    assert here.page.input_value("#question") == "a\nb"
    has_stayed = here.page.evaluate(
        """() => { const data = new DataTransfer();
        data.items.add("1\\t2", "text/plain");
        data.items.add(new File(["x"], "cells.png", {type: "image/png"}));
        return document.querySelector("#question").dispatchEvent(
          new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true})); }"""
    )
    assert has_stayed
    assert here.page.locator("#attached li").count() == 0
    here.ask("x")
    with here.page.expect_download() as download:
        here.page.click("#chat-list [aria-label^=Export]")
    assert json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["messages"][0]["text"] == "x"
