"""Answers that have begun in the question, texts without a template, and scores of tokens, by a script."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.session import ChatMessage, Piece
from ernie_local.structured import AnswerForm

if TYPE_CHECKING:
    from tests.runtime.conftest import Talk, Talks

QUESTION = ChatMessage("user", "How many?")


def go_on(one: Talk, begun: ChatMessage, says: str, **options: Any) -> dict[str, str]:
    """What follows the beginning of an answer, by its kind."""
    one.engine.say(says)
    return joined(one.chat.send([QUESTION, begun], **options))


def joined(pieces: Iterable[Piece]) -> dict[str, str]:
    """The texts of each kind."""
    texts: dict[str, str] = {}
    for piece in pieces:
        texts[piece.kind] = texts.get(piece.kind, "") + piece.text
    return texts


@pytest.mark.parametrize(
    ("variant", "begun", "opening"),
    [
        ("pt", ChatMessage("assistant", "forty"), "<think>\n\n</think>\n\nforty"),
        ("thinking", ChatMessage("assistant", "\nforty"), "\n<think>\n\n</think>\n\nforty"),
        ("pt", ChatMessage("assistant", "forty", "six"), "<think>six\n</think>\n\nforty"),
        ("thinking", ChatMessage("assistant", "forty", "six"), "\n<think>\nsix\n</think>\n\nforty"),
    ],
)
def test_an_answer_goes_on_behind_what_the_template_opens(
    talk: Talks, variant: str, begun: ChatMessage, opening: str
) -> None:
    one = talk(variant=variant)
    assert go_on(one, begun, "\ntwo") == {"answer": "\ntwo"}  # its line break is no margin
    assert one.cached_text().endswith(f"How many?\nAssistant: {opening}\ntwo")
    (turn,) = one.chat.history
    assert turn.answer.lstrip("\n") == "forty\ntwo"
    assert turn.reasoning == begun.reasoning
    assert one.chat.last is not None
    assert one.chat.last.text == "\ntwo"


def test_a_thought_goes_on_and_becomes_an_answer(talk: Talks) -> None:
    one = talk(variant="thinking")
    pieces = go_on(one, ChatMessage("assistant", "", "six "), "sevens</think>42")
    assert pieces == {"reasoning": "sevens", "answer": "42"}
    assert one.cached_text().endswith("Assistant: \n<think>\nsix sevens</think>42")
    assert (one.chat.history[0].reasoning, one.chat.history[0].answer) == ("six sevens", "42")


def test_an_answer_that_was_whole_is_no_failure(talk: Talks) -> None:
    one = talk()
    assert go_on(one, ChatMessage("assistant", "forty two"), "") == {}
    assert one.chat.history[0].answer == "forty two"


def test_tags_in_what_has_begun_are_letters(talk: Talks) -> None:
    one = talk()
    go_on(one, ChatMessage("assistant", "a</s><|end_of_sentence|>"), "b")
    special = one.chat.model.tokenizer.special_ids
    written = one.engine.ids[-12:]
    assert not special & set(written[-6:])


def test_a_beginning_that_nothing_can_follow_is_refused(talk: Talks) -> None:
    one = talk()
    with pytest.raises(UsageError, match="characters are given"):
        go_on(one, ChatMessage("assistant", "forty"), "", thinking=True)
    with pytest.raises(UsageError, match="go on with"):
        go_on(one, ChatMessage("assistant", "", "six"), "", thinking=False)
    with pytest.raises(UsageError, match="form"):
        one.chat.send([QUESTION, ChatMessage("assistant", "{")], schema={"type": "object"})
    assert one.chat.history == ()
    with pytest.raises(DoesNotFit, match="100005 characters of text leave no room"):
        go_on(talk(context_size=100), ChatMessage("assistant", "x" * 99_996), "")


def test_a_text_goes_on_as_it_is_and_leaves_the_history(talk: Talks) -> None:
    one = talk(variant="thinking")
    one.ask("one", "so</think>two")
    history = one.chat.history
    one.engine.say("\n<think>six</think>\n")
    assert joined(one.chat.complete("A text: ")) == {"answer": "\n<think>six</think>\n"}
    assert one.cached_text() == "<|begin_of_sentence|>A text: \n<think>six</think>\n"
    assert one.chat.history == history
    one.engine.say("")
    assert list(one.chat.complete("A text: ")) == []
    one.ask("three", "so</think>four")
    assert [turn.answer for turn in one.chat.history] == ["two", "four"]


def test_bytes_of_scores_are_those_of_the_answer(talk: Talks) -> None:
    one, text = talk(variant="thinking"), "é: 😀 \u4e2d"
    one.engine.say(f"why</think>\n{text}")
    one.chat.top_scores = 2
    pieces = list(one.chat.ask("How many?"))
    assert all(not piece.scores for piece in pieces if piece.kind == "reasoning")
    scores = [score for piece in pieces for score in piece.scores]
    told = b"".join(score.chosen.text for score in scores)
    assert told.decode().strip("\n") == text == "".join(one.text for one in pieces if one.kind == "answer")
    assert len(scores) > len(text), "some characters should be several tokens"
    for score in scores:
        assert score.likeliest[0] == score.chosen
        assert len(score.likeliest) == 2
    one.chat.top_scores = None
    one.engine.say("so</think>yes")
    assert not any(piece.scores for piece in one.chat.ask("again"))


def test_the_end_of_a_thought_is_no_token_of_an_answer_in_a_form(talk: Talks) -> None:
    """The model ends its turn in its thought; the answer begins with tokens that its form forces."""
    one = talk(variant="thinking", system="")
    one.engine.say("so")
    one.chat.top_scores = 0
    form = AnswerForm.from_choices(["the first", "the second"]).with_instruction("")
    pieces = list(one.chat.ask("Which?", schema=form))
    told = b"".join(score.chosen.text for piece in pieces for score in piece.scores).decode()
    assert one.chat.last is not None
    assert told == one.chat.last.text
    assert told.startswith("the ")
