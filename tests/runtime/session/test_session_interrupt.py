"""Answers that end early: stop, Ctrl-C, a reader who goes away, an engine that fails."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ernie_local.session import messages
from ernie_local.session.image import open_each

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks


BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
OFF = "<think>\n\n</think>\n\n"


def test_stop_keeps_what_came(talk: Talks) -> None:
    one = talk()
    one.engine.say("a b c d e f")
    stream = one.chat.ask("q")
    said = next(stream).text
    one.chat.stop()
    said += "".join(piece.text for piece in stream)
    answer = one.chat.last
    assert answer is not None
    assert (answer.finish_reason, answer.text) == ("interrupted", said)
    assert len(said) < len("a b c d e f")
    assert [(turn.answer, turn.finish_reason) for turn in one.chat.history] == [(said, "interrupted")]
    one.ask("go on", "b")
    assert one.cached_text() == f"{BEGIN}User: q\nAssistant: {said}{END}User: go on\nAssistant: {OFF}b"


def test_stop_from_another_thread(talk: Talks) -> None:
    one = talk(context_size=100_000)
    one.engine.say("a b", end="")
    reached = threading.Event()
    one.engine.before_decode = lambda token_id: reached.set() if one.engine.length > 200 else None

    def stop_when_reached() -> None:
        assert reached.wait(60)
        one.chat.stop()

    thread = threading.Thread(target=stop_when_reached)
    thread.start()
    list(one.chat.ask("q", max_tokens=9000))
    thread.join()
    assert one.chat.last is not None
    assert one.chat.last.finish_reason == "interrupted"
    assert 100 < one.chat.last.usage.completion_tokens < 9000


def test_stop_while_the_prompt_is_read_leaves_no_turn(talk: Talks, image: Path) -> None:
    one = talk()
    one.ask("first", "yes")
    one.engine.say("never")
    stream = one.chat.ask("q", images=[image])
    one.chat.stop()
    assert list(stream) == []
    assert one.chat.last is not None
    assert (one.chat.last.finish_reason, one.chat.last.text) == ("interrupted", "")
    assert len(one.chat.history) == 1
    assert one.ask("q", "now", images=[image]).text == "now"


def test_stop_while_images_are_opened_is_not_forgotten(
    talk: Talks, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = talk()

    def stop_and_open(*arguments: Any) -> Any:
        one.chat.stop()
        return open_each(*arguments)

    one.engine.say("never")
    with monkeypatch.context() as patched:
        patched.setattr(messages, "open_each", stop_and_open)
        assert list(one.chat.ask("q", images=[image])) == []
    assert one.chat.last is not None
    assert one.chat.last.finish_reason == "interrupted"
    one.ask("q", "now", images=[image])
    one.chat.stop()
    one.engine.say("again")
    assert "".join(piece.text for piece in one.chat.retry()) == "again"
    one.chat.stop()
    one.engine.say("more")
    assert "".join(piece.text for piece in one.chat.complete("go")) == "more"


@pytest.mark.parametrize(
    ("variant", "opening"),
    [("pt", "\nAssistant: "), ("thinking", "\nAssistant: \n<think>\n\n</think>\n\n")],
)
@pytest.mark.parametrize("when", ["before_decode", "after_decode"])
def test_ctrl_c_inside_the_engine(talk: Talks, when: str, variant: str, opening: str) -> None:
    """After the token is in the cache and before anyone knows of it, too."""
    one = talk(variant=variant, system="")

    def interrupt(token_id: int) -> None:
        if one.engine.length > len(one.engine.prefills[0][0]) + 2:
            raise KeyboardInterrupt

    setattr(one.engine, when, interrupt)
    one.engine.say("a b c d e f g")
    with pytest.raises(KeyboardInterrupt):
        list(one.chat.ask("q", thinking=False))
    assert one.chat.last is not None
    assert one.chat.last.finish_reason == "interrupted"
    (turn,) = one.chat.history
    assert turn.answer
    assert turn.answer == "a b c d e f g"[: len(turn.answer)]
    setattr(one.engine, when, lambda token_id: None)
    one.ask("go on", "h", thinking=False)
    now = "\nAssistant: \n" if variant == "thinking" else "\nAssistant: "
    assert one.cached_text() == f"{BEGIN}User: q{opening}{turn.answer}{END}User: go on{now}{OFF}h"


def test_text_held_back_when_ctrl_c_comes_is_kept(talk: Talks) -> None:
    """Half a tag waits for its other half, which never comes."""
    one = talk(variant="thinking")

    def interrupt(token_id: int) -> None:
        if one.engine.ids[-2:] == one.chat.model.tokenizer.encode("</", allow_special=False)[-2:]:
            raise KeyboardInterrupt

    one.engine.after_decode = interrupt
    one.engine._script = iter(one.chat.model.tokenizer.encode("a b</c", allow_special=False))
    with pytest.raises(KeyboardInterrupt):
        list(one.chat.ask("q"))
    assert one.chat.history[0].reasoning == "a b</"


def test_ctrl_c_in_the_readers_own_code(talk: Talks) -> None:
    one = talk()
    one.engine.say("a b c d e f g")

    def read() -> None:
        for _ in one.chat.ask("q"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read()
    assert one.chat.history[0].finish_reason == "interrupted"
    assert one.chat.last is not None
    assert one.chat.last.text == one.chat.history[0].answer != ""


def test_an_interrupted_thought_stays_too(talk: Talks) -> None:
    one = talk(variant="thinking", system="")
    one.engine.say("a b c d </think>e")
    next(one.chat.ask("q"))
    (turn,) = one.chat.history
    assert (turn.answer, turn.finish_reason) == ("", "interrupted")
    assert turn.reasoning
    one.ask("go on", "f</think>g")
    assert f"<think>\n{turn.reasoning}\n</think>\n\n{END}User: go on" in one.cached_text()


def test_the_next_question_ends_an_answer_that_nobody_reads(talk: Talks) -> None:
    one = talk()
    one.engine.say("a b c d")
    stream = one.chat.ask("one")
    next(stream)
    one.ask("two", "second")
    assert [turn.finish_reason for turn in one.chat.history] == ["interrupted", "stop"]
    assert list(stream) == []


def test_an_answer_not_begun_is_still_to_be_read(talk: Talks) -> None:
    one = talk()
    one.engine.say("yes")
    stream = one.chat.ask("one")
    assert [turn.text for turn in one.chat.history] == []
    assert one.chat.last is None
    assert "".join(piece.text for piece in stream) == "yes"
    unread = one.chat.ask("two")
    one.ask("three", "no")
    assert [turn.text for turn in one.chat.history] == ["one", "three"]
    assert list(unread) == []


def test_a_failing_engine_leaves_the_chat_as_it_was(talk: Talks) -> None:
    one = talk()
    one.ask("first", "yes")

    def fail(token_id: int) -> None:
        raise RuntimeError("no more memory")

    one.engine.before_decode = fail
    one.engine.say("a b c")
    with pytest.raises(RuntimeError, match="no more memory"):
        list(one.chat.ask("second"))
    one.engine.before_decode = lambda token_id: None
    assert [turn.text for turn in one.chat.history] == ["first"]
    one.ask("third", "no")
    assert one.cached_text() == f"{BEGIN}User: first\nAssistant: yes{END}User: third\nAssistant: {OFF}no"
