"""A browser, a server with nano, and one that answers from a script."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ernie_local import session
from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.server.app import Server
from ernie_local.server.listening import Listening
from ernie_local.server.memory import ServedMemory
from ernie_local.server.service import Service
from ernie_local.session import Chat, ToolCall
from tests.browser.visit import OpenVisit, Visit, context_of
from tests.runtime.server.scripted import ScriptedChat

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, or a skipped test that names what is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: install the package chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def nano() -> tuple[LoadedModel, ServedMemory]:
    """The model in the package, and its memory."""
    options = LoadOptions(context_size=4096, parallel=2)
    memory = ServedMemory(options)
    model = session.open_model(find_model_files("nano"), options)
    memory.plan(model)
    return model, memory


@contextmanager
def listening(
    nano: tuple[LoadedModel, ServedMemory], *chats: Chat, **more: Any
) -> Iterator[tuple[str, Server]]:
    """The address of a server with these slots, which is loading while it has none."""
    server = Server(model_name="nano", memory=nano[1], **more)
    server.service = Service(chats, max_waiting=1) if chats else None
    with Listening(server, "127.0.0.1", 0) as listens:
        yield listens.url, server


@pytest.fixture(scope="session")
def served(nano: tuple[LoadedModel, ServedMemory]) -> Iterator[str]:
    """The address of nano with two slots."""
    with listening(nano, Chat(nano[0]), Chat(nano[0])) as (url, _):
        yield url


@pytest.fixture
def visit(browser: Browser) -> Iterator[OpenVisit]:
    """Opens the page of a server, and checks in the end that nothing has happened that must not.

    before: a script that runs before those of the page.
    """
    with ExitStack() as stack:
        visits: list[Visit] = []

        def open_visit(url: str, before: str = "", **options: Any) -> Visit:
            context = stack.enter_context(context_of(browser, **options))
            context.add_init_script(before)
            visits.append(Visit(context.new_page(), f"{url}/"))
            return visits[-1].open()

        yield open_visit
        for one in visits:
            one.check()


class Script:
    """Starts servers that answer from a script; words go one by one while `may_go` is not None."""

    def __init__(self, nano: tuple[LoadedModel, ServedMemory], stack: ExitStack) -> None:
        self._nano, self._stack = nano, stack
        self.may_go = threading.Semaphore(0)
        self.chats: list[ScriptedChat] = []

    def serve(
        self,
        answers: Mapping[str, str] | None = None,
        calls: Mapping[str, ToolCall] | None = None,
        *,
        is_slow: bool = False,
        **more: Any,
    ) -> str:
        """The address of a server with one slot."""
        gate = self.may_go if is_slow else None
        self.chats.append(ScriptedChat(self._nano[0], answers or {}, calls, gate))
        return self._stack.enter_context(listening(self._nano, self.chats[-1], **more))[0]


@pytest.fixture
def script(nano: tuple[LoadedModel, ServedMemory]) -> Iterator[Script]:
    """Servers that answer from a script."""
    with ExitStack() as stack:
        yield Script(nano, stack)
