"""Fixtures of the command-line tests: a chat without weights, and the command run with a given stdin."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from ernie_cli import opening
from ernie_cli.main import run
from ernie_local import model_files, session
from ernie_local.errors import ErnieLocalError, NoAnswer
from ernie_local.media.processor import ImageProcessorConfig
from ernie_local.session import Answer, Piece, Timings, Usage


@dataclass
class FakeChat:
    """Says `pieces`, whatever is asked, and remembers what was asked."""

    pieces: Sequence[Piece] = (Piece("answer", "forty"), Piece("answer", "-two"))
    finish_reason: str = "stop"
    error: BaseException | None = None
    between: Callable[[], None] | None = None  # called after the first piece
    system: str | None = None
    questions: list[dict[str, Any]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    last: Answer | None = None
    model: Any = field(default_factory=lambda: SimpleNamespace(load_seconds=0.25))
    history: list[Any] = field(default_factory=list)
    _stopped: bool = False

    def ask(self, text: str, images: Sequence[Any] = (), **settings: Any) -> Iterator[Piece]:
        self._stopped = False
        self.questions.append({"text": text, "images": [image.name for image in images], **settings})
        if self.error is not None:
            raise self.error
        said: list[Piece] = []
        for index, piece in enumerate(self.pieces):
            if self._stopped:
                break
            said.append(piece)
            yield piece
            if index == 0 and self.between is not None:
                self.between()
        self.last = Answer(
            text="".join(piece.text for piece in said if piece.kind == "answer"),
            reasoning="".join(piece.text for piece in said if piece.kind == "reasoning"),
            tool_calls=(),
            finish_reason=cast("Any", "interrupted" if self._stopped else self.finish_reason),
            usage=Usage(20, 9, 0, len(said), sum(piece.kind == "reasoning" for piece in said)),
            timings=Timings(image=0.1, prefill=0.2, decode=0.4, total=0.7),
            images=(),
            seed=0,
            peak_memory_bytes=3 << 30,
        )
        if not self.last.text and not self._stopped:
            raise NoAnswer("no answer", "thoughts", "--think-budget 5")
        if said:
            self.history.append(SimpleNamespace(text=text))

    def stop(self) -> None:
        self._stopped = True

    def undo(self) -> Any:
        self.calls.append("undo")
        return self.history.pop()

    def save(self, path: Path) -> None:
        self.calls.append(f"save {path}")
        Path(path).write_text("{}")


@dataclass(frozen=True)
class Result:
    """How a run of the command ended."""

    exit_code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        """The one object on stdout."""
        value = json.loads(self.stdout)
        assert isinstance(value, dict)
        return value


Runner = Callable[..., Result]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Runner:
    """`command("chat", "-p", "hi", stdin=b"...")`; without stdin there is none, as under a service."""

    def invoke(*arguments: str, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capfd.readouterr()
        exit_code = run(arguments)
        return Result(exit_code, *capfd.readouterr())

    return invoke


@pytest.fixture
def fake_chat(monkeypatch: pytest.MonkeyPatch) -> FakeChat:
    """A chat that stands where the model's would: nothing is read or loaded."""
    chat = FakeChat()
    config = SimpleNamespace(text=SimpleNamespace(max_position_embeddings=131072))
    files = model_files.ModelFiles(Path("model"), cast("Any", config))
    files.image_processor = ImageProcessorConfig()
    files.generation_config = {}
    monkeypatch.setattr(model_files, "find_model_files", lambda name: files)
    monkeypatch.setattr(session, "check_question", lambda *arguments, **options: None)
    monkeypatch.setattr(opening, "open_chat", lambda *arguments: chat)
    return chat


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test that would read weights."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(opening, "load_model", refuse)


@pytest.fixture
def invoice(tmp_path: Path) -> Path:
    """A blank page of 2480 x 3508 pixels."""
    path = tmp_path / "invoice.png"
    Image.new("L", (2480, 3508), 255).save(path)
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
