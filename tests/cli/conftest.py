"""Fixtures of the command-line tests: a chat without weights, and the command run with a given stdin."""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from ernie_cli.chat import conversation
from ernie_cli.main import run
from ernie_local import model_files, session
from ernie_local.errors import ErnieLocalError
from ernie_local.media.processor_config import ImageProcessorConfig
from tests.cli.running import Command, FakeChat, Result


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, interruptible: None
) -> Command:
    """Runs the command in this process; without stdin there is none, as under a service."""

    def invoke(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfd.readouterr()
        exit_code = run(arguments)
        return Result(exit_code, *capfd.readouterr())

    return invoke


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C reaches this process, also if it was started in the background, where SIGINT is ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.fixture
def fake_chat(monkeypatch: pytest.MonkeyPatch) -> FakeChat:
    """A chat that stands where the model's would: nothing is read or loaded."""
    chat = FakeChat()
    config = SimpleNamespace(text=SimpleNamespace(max_position_embeddings=131072))
    files = model_files.ModelFiles(Path("model"), cast("Any", config))
    files.image_processor = ImageProcessorConfig()
    files.generation_config = {}
    monkeypatch.setattr(model_files, "find_model_files", lambda name, **_: files)
    monkeypatch.setattr(session, "check_first_question", lambda *arguments, **options: None)
    monkeypatch.setattr(conversation, "open_chat", lambda *arguments: chat)
    return chat


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that would read weights."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(conversation, "load_for_chat", refuse)


@pytest.fixture
def invoice(tmp_path: Path) -> Path:
    """A page of 2480 x 3508 pixels with a bar on it."""
    path = tmp_path / "invoice.png"
    page = Image.new("L", (2480, 3508), 255)
    page.paste(0, (200, 200, 900, 260))
    page.save(path)
    return path


@pytest.fixture
def error_kinds() -> list[type[ErnieLocalError]]:
    """Every class of error that a user may see."""
    return [ErnieLocalError, *ErnieLocalError.__subclasses__()]


@pytest.fixture(scope="session")
def small_model(make_oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model directory, tokenizer included; its weights are random, so that it talks nonsense."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("small_model")
    media = ("IMAGE_PLACEHOLDER", "IMAGE_START", "IMAGE_END", "VIDEO_PLACEHOLDER", "VIDEO_START", "VIDEO_END")
    tags = [f"<|{name}|>" for name in ("begin_of_sentence", "end_of_sentence", *media)]  # ids 3 to 10
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["User: Assistant: Picture 1: What is the total of the invoice?"] * 9),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        user_defined_symbols=[*tags, "<think>", "</think>"],
        minloglevel=2,
    )
    make_oracle(1, {"vocab_size": 320}).save(directory)
    (directory / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 784, "max_pixels": 28 * 28 * 40})
    )
    return directory
