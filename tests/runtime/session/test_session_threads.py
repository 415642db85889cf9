"""A chat belongs to one thread at a time: others are refused, and nothing of it is lost."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from ernie_local.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.runtime.conftest import Talks


def elsewhere(work: Callable[[], object]) -> BaseException | None:
    """Do it in another thread; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  given back
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return raised[0] if raised else None


def test_who_comes_while_a_piece_is_computed_is_refused(talk: Talks) -> None:
    one = talk()
    one.ask("first", "yes")
    uses: list[Callable[[], object]] = [
        lambda: one.chat.ask("second"),
        lambda: one.chat.send([]),
        one.chat.undo,
        lambda: one.chat.history,
        lambda: one.chat.last,
    ]
    refused: list[BaseException | None] = []

    def try_all(token_id: int) -> None:
        if not refused:
            refused.extend(elsewhere(use) for use in uses)

    one.engine.before_decode = try_all
    assert one.ask("third", "a b c").text == "a b c"
    assert len(refused) == len(uses)
    assert all(isinstance(error, UsageError) for error in refused)
    assert [turn.text for turn in one.chat.history] == ["first", "third"]


def test_who_reads_the_same_pieces_while_one_is_computed_is_refused(talk: Talks) -> None:
    one = talk()
    one.engine.say("a b c")
    pieces = one.chat.ask("first")
    uses: list[Callable[[], object]] = [
        lambda: next(pieces),
        lambda: list(pieces),
        pieces.close,
        lambda: pieces.throw(KeyboardInterrupt()),
    ]
    refused: list[BaseException | None] = []

    def try_all(token_id: int) -> None:
        if not refused:
            refused.extend(elsewhere(use) for use in uses)
            # In the same thread too, as from a signal handler.
            with pytest.raises(UsageError, match="is still being computed"):
                next(pieces)

    one.engine.before_decode = try_all
    assert "".join(piece.text for piece in pieces) == "a b c"
    assert len(refused) == len(uses)
    assert all(isinstance(error, UsageError) for error in refused)
    assert [turn.answer for turn in one.chat.history] == ["a b c"]


def test_two_threads_may_read_in_turns(talk: Talks) -> None:
    one = talk()
    one.engine.say("a b c")
    pieces = one.chat.ask("first")
    texts = [next(pieces).text]
    assert elsewhere(lambda: texts.extend(piece.text for piece in pieces)) is None
    assert "".join(texts) == "a b c"


@pytest.mark.parametrize("has_begun", [True, False])
def test_who_reads_on_after_another_thread_has_asked_is_told(talk: Talks, has_begun: bool) -> None:
    one = talk()
    one.engine.say("a b c")
    pieces = one.chat.ask("first")
    if has_begun:
        next(pieces)
    assert elsewhere(lambda: one.ask("second", "yes")) is None
    with pytest.raises(UsageError, match="another thread"):
        list(pieces)
    assert [turn.text for turn in one.chat.history] == (["first", "second"] if has_begun else ["second"])


def test_an_answer_that_was_read_may_be_followed_from_another_thread(talk: Talks) -> None:
    one = talk()
    one.ask("first", "yes")
    assert elsewhere(lambda: one.ask("second", "no")) is None
    assert one.ask("third", "so").text == "so"
    assert len(one.chat.history) == 3
