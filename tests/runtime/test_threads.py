"""A model used from several threads computes what it computes in one, in memory that is just enough."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.engine import Engine
from ernie_local.errors import UsageError
from ernie_local.loading import LoadedModel
from ernie_local.loading.model import EngineSettings
from ernie_local.model.ernie import ErnieModel
from ernie_local.model_files import ModelFiles, find_model_files
from ernie_local.session import Chat
from tests.draws import rest_slow
from tests.runtime import paged_models
from tests.runtime.paged_models import build, ids, image_ids, plan_of, room

_Result = TypeVar("_Result")
KINDS = ("packed", "plain and resident", "packed and resident", "plain")


def loaded(kind: str, packed_nano: Path, extra_bytes: int = 0) -> LoadedModel:
    """nano; where experts are paged, with just enough memory for one conversation, and extra_bytes."""
    directory = packed_nano if kind.startswith("packed") else NANO_DIRECTORY
    resident = build(directory, None)
    network = resident
    if "resident" not in kind:
        network = build(directory, plan_of(directory).least_bytes + room(resident) + extra_bytes)
    settings = EngineSettings(paged_models.CONTEXT_SIZE, torch.float32)
    return LoadedModel(network, find_model_files(directory), settings, 0, 0.0)


@pytest.fixture(params=rest_slow(KINDS, 2))
def kind(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def in_threads(works: Sequence[Callable[[], _Result]]) -> list[_Result]:
    """The results of all, each in a thread of its own; they begin together. Raises what one raised."""
    results: dict[int, _Result] = {}
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def run(index: int) -> None:
        start.wait(60)
        try:
            results[index] = works[index]()
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return [results[index] for index in range(len(works))]


def test_whole_prompts_in_threads(kind: str, packed_nano: Path) -> None:
    model = loaded(kind, packed_nano)
    patches = paged_models.image(model.network, 4, 4)
    with_image = [*image_ids(model.network, patches), *ids(5, 9)]

    def calls() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        scored = [model.logits(ids(20 + seed, seed)) for seed in range(3)]
        return [*scored, model.logits(with_image, [patches])], model.router_choices(ids(9, 4))

    logits, choices = calls()
    for found_logits, found_choices in in_threads([calls] * 4):
        assert all(map(torch.equal, found_logits, logits))
        assert all(map(torch.equal, found_choices, choices))


def decoded(model: ErnieModel, seed: int) -> torch.Tensor:
    """Of a sequence that grows, is cut, and goes on: all logits."""
    engine = Engine(model, 128, chunk_tokens=16)
    rows = [engine.prefill(ids(20, seed))]
    before = engine.mark()
    rows += [engine.decode(token) for token in ids(6, seed + 100)]
    engine.rewind(before)
    rows += [engine.decode(token) for token in ids(6, seed + 200)]
    return torch.stack(rows)


def test_sequences_in_threads(kind: str, packed_nano: Path) -> None:
    beside = 3 * room(build(packed_nano, None))
    model = loaded(kind, packed_nano, beside).network
    expected = [decoded(model, seed) for seed in range(3)]
    found = in_threads([partial(decoded, model, seed) for seed in range(3)])
    assert all(map(torch.equal, found, expected))


def test_chats_in_threads(packed_nano: Path) -> None:
    model = loaded("packed", packed_nano, room(build(packed_nano, None)))
    model.files = ModelFiles(model.directory, model.config)  # which have read nothing yet
    questions = ["What is the total?", "Who wrote the invoice, and when?"]

    def ask(question: str) -> list[str]:
        chat = Chat(model)
        return ["".join(one.text for one in chat.ask(text, max_tokens=9)) for text in (question, "And then?")]

    found = in_threads([partial(ask, text) for text in questions])
    assert found == [ask(text) for text in questions]


def test_small_files_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    files = find_model_files(NANO_DIRECTORY)
    slowly = threading.Event()
    from ernie_local.text.tokenizer import ErnieTokenizer

    read = ErnieTokenizer.from_directory

    def read_slowly(directory: Path) -> ErnieTokenizer:
        slowly.wait(0.1)
        return read(directory)

    monkeypatch.setattr(ErnieTokenizer, "from_directory", read_slowly)
    first, *others = in_threads([lambda: files.tokenizer] * 4)
    assert all(one is first for one in others)


def test_a_hook_cannot_ask_the_model_that_computes(packed_nano: Path) -> None:
    model = loaded("packed", packed_nano)
    expected = model.logits(ids(6, 1))

    def ask(*_: object) -> None:
        model.logits(ids(3, 2))

    def hooked() -> int:
        engine = model.engine(context_size=64)
        with engine.reporting_routes(ask), pytest.raises(UsageError, match="inside each other"):
            engine.prefill(ids(5, 1))
        return engine.length

    assert hooked() == 0
    assert torch.equal(model.logits(ids(6, 1)), expected)


def test_a_sequence_of_two_threads_takes_one_token_after_the_other(packed_nano: Path) -> None:
    model = loaded("packed", packed_nano).network

    def decoded_by(num_threads: int) -> torch.Tensor:
        engine = Engine(model, 128)
        engine.prefill(ids(5, 1))
        in_threads([lambda: [engine.decode(30) for _ in range(20 // num_threads)]] * num_threads)
        assert engine.length == 25
        return engine.decode(31)

    assert torch.equal(decoded_by(4), decoded_by(1))
