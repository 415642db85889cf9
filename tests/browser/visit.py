"""What the tests of the page do in a browser, and what must not happen meanwhile."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, JSHandle, Locator, Page

_MAKE_TRANSFER = """files => {
  const transfer = new DataTransfer();
  for (const [name, kind, text] of files) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, {type: kind}));
  }
  return transfer;
}"""
_PASTE = """transfer => document.activeElement.dispatchEvent(
  new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true}))"""
_PATIENCE = 30_000  # milliseconds
File = tuple[str, str, bytes]  # name, media type, bytes


@dataclass
class Visit:
    """A page that is open. Faults are gathered: errors of scripts, of the console, requests to other hosts.

    allowed: parts of messages that a test brings about.
    """

    page: Page
    url: str
    faults: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(_PATIENCE)
        self.page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        self.page.on("console", self._hear)
        self.page.on("request", lambda request: self._see(request.url))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text} {message.location.get('url', '')}")

    def _see(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.netloc != urlsplit(self.url).netloc:
            self.faults.append(f"request to {url[:200]}")

    def open(self) -> Visit:
        """Load the page."""
        self.page.goto(self.url)
        return self

    def limited(self, max_tokens: int) -> Visit:
        """The same with short answers: nano does not always find an end."""
        self.page.click("#show-options")
        self.page.fill("#max-tokens", str(max_tokens))
        self.page.click("#show-options")
        return self

    def check(self) -> None:
        """Nothing has happened that must not."""
        assert [one for one in self.faults if not any(part in one for part in self.allowed)] == []

    def drop(self, *files: File) -> None:
        """Drag files onto the page."""
        transfer = self._transfer(files)
        for name in ("dragover", "drop"):
            self.page.dispatch_event("#messages", name, {"dataTransfer": transfer})

    def paste(self, *files: File) -> None:
        """Paste files into the question."""
        self.page.focus("#question")
        self._transfer(files).evaluate(_PASTE)

    def _transfer(self, files: Sequence[File]) -> JSHandle:
        packed = [[name, kind, base64.b64encode(data).decode()] for name, kind, data in files]
        return self.page.evaluate_handle(_MAKE_TRANSFER, packed)

    def attached(self, count: int) -> Locator:
        """The files of the question, when they have been looked at."""
        self.page.locator("#attached .file").nth(count - 1).wait_for()
        assert self.page.locator("#attached .file").count() == count
        return self.page.locator("#attached")

    def ask(self, text: str) -> Locator:
        """Type a question and send it; the answer when it has ended."""
        before = self.page.locator("article.assistant").count()
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        return self.ended(before)

    def ended(self, index: int) -> Locator:
        """The answer of this number, from 0, when it has ended."""
        answer = self.page.locator("article.assistant").nth(index)
        answer.wait_for()
        self.page.locator("article.assistant:not([aria-busy])").nth(index).wait_for()
        return answer

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).inner_text()


OpenVisit = Callable[..., Visit]


def png(name: str, path: Path) -> File:
    """A file as it is dropped."""
    return name, "image/png", path.read_bytes()


def context_of(browser: Browser, **options: object) -> BrowserContext:
    """A browser without a past, in English."""
    return browser.new_context(locale="en-GB", accept_downloads=True, **options)  # type: ignore[arg-type]
