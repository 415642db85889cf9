"""A server with nano on a free port of this machine, in a thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ernie_local import session
from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.server.app import Server
from ernie_local.server.listening import Listening
from ernie_local.server.service import Service
from ernie_local.session import Chat
from tests.runtime.server.serving import Served


@pytest.fixture(scope="session")
def nano_model() -> LoadedModel:
    """The model in the package."""
    return session.open_model(find_model_files("nano"), LoadOptions(context_size=4096))


def serving(*chats: Chat) -> Iterator[Served]:
    """A server with these slots."""
    server = Server(model_name="nano")
    server.service = Service(chats, max_waiting=4)
    with Listening(server, "127.0.0.1", 0) as listening:
        yield Served(server, listening.port)


@pytest.fixture(scope="session")
def served(nano_model: LoadedModel) -> Iterator[Served]:
    """nano with two slots."""
    yield from serving(Chat(nano_model), Chat(nano_model))


@pytest.fixture
def served_with_tools(nano_model: LoadedModel) -> Iterator[Served]:
    """nano with the template of models that call tools."""
    yield from serving(Chat(nano_model, variant="thinking"))
