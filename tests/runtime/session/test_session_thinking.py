"""Thinking in a chat: the switch, the budget, and the share of the tokens that is kept for the answer."""

from __future__ import annotations

import pytest

from ernie_local.errors import (
    NoAnswer,
)
from ernie_local.session.writer import ChatWriter
from tests.runtime.conftest import Talks

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
OFF = "<think>\n\n</think>\n\n"


def test_a_model_may_decide_itself_whether_it_thinks(talk: Talks) -> None:
    one = talk(variant="pt,thinks=free")
    thought = one.ask("q", "<think>\nwhy\n</think>\nbecause")
    assert (thought.reasoning, thought.text) == ("why", "because")
    assert "User: q\nAssistant: <think>" in one.cached_text()
    plain = one.ask("q", "so")
    assert (plain.reasoning, plain.text) == ("", "so")
    # Who says that it shall not think still closes the thought.
    assert one.ask("q", "no", thinking=False).text == "no"
    assert one.cached_text().endswith("<think>\n\n</think>\n\nno")


def test_thinking_comes_as_reasoning(talk: Talks) -> None:
    one = talk(variant="thinking", system="")
    one.engine.say("let me see\n</think>\n\n\nforty two")
    pieces = list(one.chat.ask("How many?"))
    joined = {kind: "".join(p.text for p in pieces if p.kind == kind) for kind in ("reasoning", "answer")}
    assert joined == {"reasoning": "let me see", "answer": "forty two"}
    answer = one.chat.last
    assert answer is not None
    assert (answer.reasoning, answer.text) == ("let me see", "forty two")
    assert 0 < answer.usage.reasoning_tokens < answer.usage.completion_tokens
    one.ask("And now?", "hm\n</think>\n\nforty")
    assert one.cached_text() == (
        f"{BEGIN}User: How many?\nAssistant: \n<think>\nlet me see\n</think>\n\nforty two{END}"
        "User: And now?\nAssistant: \n<think>\nhm\n</think>\n\nforty"
    )
    # The thought was not computed twice.
    assert "let" not in one.chat.model.tokenizer.decode(one.engine.prefills[1][0])


def test_the_thinking_switch(talk: Talks) -> None:
    one = talk()
    one.ask("a", "hm</think>\n\nyes", thinking=True)
    assert one.cached_text().endswith("\nAssistant: <think>hm</think>\n\nyes")
    two = talk(variant="thinking")
    assert two.ask("a", "yes", thinking=False).reasoning == ""
    assert two.cached_text().endswith(f"\nAssistant: \n{OFF}yes")


def test_tags_that_the_model_writes_are_in_no_piece_and_in_no_history(talk: Talks) -> None:
    one = talk()
    tokenizer = one.chat.model.tokenizer
    spelled = tokenizer.encode("forty</think> two</response>", allow_special=False)
    one.engine._script = iter([*spelled, *tokenizer.encode("</think>!"), 2])
    pieces = [piece.text for piece in one.chat.ask("q")]
    assert "".join(pieces) == "forty two!"
    assert one.chat.last is not None
    assert one.chat.last.text == one.chat.history[-1].answer == "forty two!"


def test_thinking_off_means_off(talk: Talks) -> None:
    """The script wants <think>; the second choice of the logits is "x"."""
    answer = talk().ask("a", "<think>y", max_tokens=2)
    assert (answer.text, answer.reasoning) == ("xy", "")


def test_a_spent_budget_closes_the_thought_and_the_answer_comes(talk: Talks) -> None:
    one = talk()
    tokenizer = one.chat.model.tokenizer
    endless = "a b c d e f g h"
    one.engine.say(endless)
    stream = one.chat.ask("q", thinking=True, thinking_budget=5)
    pieces = []
    for piece in stream:
        pieces.append(piece)
        if "".join(p.text for p in pieces) == tokenizer.decode(tokenizer.encode(endless)[:5]):
            one.engine.say("z<think>done")  # the logits for "z" came too late
    assert pieces[-1].kind == "answer"
    answer = one.chat.last
    assert answer is not None
    assert answer.reasoning == tokenizer.decode(tokenizer.encode(endless)[:5])
    assert answer.text == "xdone"
    assert answer.usage.reasoning_tokens == 5
    assert one.cached_text().endswith(f"<think>{answer.reasoning}\n</think>\n\nxdone")


def test_a_turn_that_ends_inside_the_thought_is_answered_all_the_same(talk: Talks) -> None:
    one = talk(variant="thinking", system="")
    tokenizer = one.chat.model.tokenizer
    says = [*tokenizer.encode("hm"), 2, *tokenizer.encode("yes"), 2]
    one.engine._script = iter(says)
    list(one.chat.ask("q"))
    assert one.chat.last is not None
    assert (one.chat.last.reasoning, one.chat.last.text) == ("hm", "yes")
    assert one.chat.last.finish_reason == "stop"
    assert one.cached_text().endswith("<think>\nhm\n</think>\n\nyes")


def test_a_budget_of_0_closes_the_thought_at_once(talk: Talks) -> None:
    one = talk(variant="thinking")
    answer = one.ask("q", "yes", thinking_budget=0)
    assert answer.reasoning == ""
    assert answer.text.startswith("es")  # the first token was still due to the thought
    assert answer.usage.reasoning_tokens == 0


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 8, 40, 400])
@pytest.mark.parametrize("budget", [None, 10_000])
def test_a_thought_never_eats_the_whole_answer(talk: Talks, max_tokens: int, budget: int | None) -> None:
    one = talk()
    answer = one.ask("q", "a b", end="", thinking=True, thinking_budget=budget, max_tokens=max_tokens)
    assert answer.finish_reason == "length"
    num_answer_tokens = answer.usage.completion_tokens - answer.usage.reasoning_tokens
    assert answer.usage.completion_tokens == max_tokens
    assert num_answer_tokens >= max(1, max_tokens // 4)
    assert answer.text


@pytest.mark.parametrize("room", range(1, 12))
def test_a_thought_and_its_close_stay_within_the_context(talk: Talks, room: int) -> None:
    prompt_length = talk().ask("q", "a b", thinking=True, thinking_budget=0).usage.prompt_tokens
    one = talk(context_size=prompt_length + room)
    try:
        answer = one.ask("q", "a b c", end="", thinking=True)
    except NoAnswer:
        assert room <= len(ChatWriter(one.chat.model.files).close_ids)
    else:
        assert answer.text
    assert len(one.engine.ids) <= prompt_length + room
