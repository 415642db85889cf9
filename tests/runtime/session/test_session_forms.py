"""Answers in a form: what the model is told, thoughts before them, limits, and what they mean."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import torch

from ernie_local.errors import NoAnswer, UsageError
from ernie_local.sampling import SamplingOptions
from ernie_local.session import ChatMessage
from ernie_local.structured import AnswerForm
from tests.runtime.conftest import Talk, Talks

FIELDS = "vendor, total: number, lines[]: {item, count: integer}"
WRITTEN = '{"vendor": "A & B", "total": 12.5, "lines": [{"item": "pen", "count": 3}]}'
BARE = AnswerForm.from_fields(FIELDS).with_instruction("")


class RandomLogits:
    """Puts random logits in place of an engine's, fond of what ends texts, lists and thoughts."""

    def __init__(self, one: Talk, seed: int) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self._tokenizer = one.chat.model.tokenizer
        self._append, one.engine._append = one.engine._append, self.append  # type: ignore[method-assign]
        one.engine.say("x", end="")
        self.num_decoded = 0

    def append(self, ids: list[int]) -> torch.Tensor:
        logits = self._append(ids)
        logits[: self._tokenizer.vocab_size] = (
            torch.randn(self._tokenizer.vocab_size, generator=self._random) * 3
        )
        for text in ('"', "}", "]", "</think>"):
            logits[self._tokenizer.encode(text)] += 4
        return logits


def test_the_answer_is_a_value_with_a_confidence_for_each_part(talk: Talks) -> None:
    one = talk()
    answer = say_in_form(one, "q", WRITTEN, FIELDS)
    assert (answer.text, answer.finish_reason) == (WRITTEN, "stop")
    assert answer.value == json.loads(WRITTEN)
    assert list(answer.confidence) == ["vendor", "total", "lines[0].item", "lines[0].count"]
    assert all(0.9 < share <= 1 for share in answer.confidence.values())  # the script is sure of itself
    assert one.chat.history[-1].answer == WRITTEN


def say_in_form(one: Talk, question: str, says: str, form: Any, **options: Any) -> Any:
    """As `Talk.ask`; the script says each token of `says` when the engine comes to its place."""
    tokenizer, engine = one.chat.model.tokenizer, one.engine
    wanted = tokenizer.encode_part(says)
    before = engine._append
    state = {"start": -1}

    def append(ids: list[int]) -> torch.Tensor:
        engine._script = iter([0])
        logits = before(ids)
        if state["start"] < 0:
            state["start"] = len(engine.ids)
        place = len(engine.ids) - state["start"]
        logits[0] = 0
        logits[wanted[place] if place < len(wanted) else 2] = 30.0
        return logits

    engine._append = append  # type: ignore[method-assign]
    try:
        list(one.chat.ask(question, schema=form, **options))
    finally:
        engine._append = before  # type: ignore[method-assign]
    return one.chat.last


def test_the_model_is_told_of_the_form_behind_this_question_only(talk: Talks) -> None:
    one = talk()
    say_in_form(one, "q", WRITTEN, FIELDS)
    assert "User: q\nAnswer in JSON of this form: {" in one.cached_text()
    assert one.chat.history[0].text == "q"
    one.ask("and?", "so")
    assert "this form" not in one.cached_text()
    say_in_form(one, "q", WRITTEN, BARE)
    assert "this form" not in one.cached_text()


def test_what_the_form_forces_takes_no_steps_of_the_model(talk: Talks) -> None:
    one = talk()
    decoded: list[int] = []
    one.engine.before_decode = decoded.append
    answer = say_in_form(one, "q", WRITTEN, BARE)
    assert answer.text == WRITTEN
    num_steps = len(decoded) + len(one.engine.prefills) - 1
    assert num_steps < answer.usage.completion_tokens / 2
    # All but the last token are in the cache, with the ids that were counted.
    assert one.cached_text().endswith(WRITTEN[:-1]) or one.cached_text().endswith(WRITTEN)


@pytest.mark.parametrize("variant", ["pt", "thinking"])
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_random_thoughts_and_answers(talk: Talks, variant: str, thinking: bool, seed: int) -> None:
    sampling = SamplingOptions(temperature=seed % 3, top_k=20, repetition_penalty=1.2, seed=seed)
    one = talk(variant=variant, sampling=sampling, context_size=1500)
    RandomLogits(one, seed)
    form = AnswerForm.of("s: a|b|c, n: integer, b: boolean, l[]: {d: date}, t?")
    try:
        list(one.chat.ask("q", schema=form, thinking=thinking, thinking_budget=20))
    except NoAnswer:
        assert one.chat.last is not None
        assert (one.chat.last.finish_reason, one.chat.last.value) == ("length", None)
        assert one.chat.history == ()
        return
    answer = one.chat.last
    assert answer is not None
    assert answer.value["s"] in ("a", "b", "c")
    assert list(answer.value) == ["s", "n", "b", "l", "t"]
    assert bool(answer.usage.reasoning_tokens) == thinking
    assert answer.usage.reasoning_tokens <= 20


def test_a_thought_is_free_and_what_parts_it_from_the_answer_is_written(talk: Talks) -> None:
    one = talk(variant="thinking", system="")
    tokenizer = one.chat.model.tokenizer
    thought = 'no JSON: {"x", <response>'
    # After the thought's end it would say "x", but what parts it from the answer comes first.
    one.engine._script = iter(
        tokenizer.encode(f"{thought}\n</think>x") + tokenizer.encode("n") + tokenizer.encode("o")
    )
    list(one.chat.ask("q", schema=AnswerForm.from_choices(["yes", "no"]).with_instruction("")))
    answer = one.chat.last
    assert answer is not None
    assert (answer.reasoning, answer.value) == (thought, "no")
    # Behind the last token nothing is computed.
    assert one.cached_text().endswith(f"<think>\n{thought}\n</think>\n\nn")


def test_a_spelled_out_end_of_a_thought_puts_nothing_before_the_form(talk: Talks) -> None:
    one = talk(variant="thinking", system="")
    tokenizer = one.chat.model.tokenizer
    spelled = tokenizer.encode("hm</think> so: ", allow_special=False)
    one.engine._script = iter([*spelled, *[tokenizer.encode("n")[0]] * 4, 2, 2, 2])
    list(one.chat.ask("q", schema=AnswerForm.from_choices(["n", "nn"])))
    answer = one.chat.last
    assert answer is not None
    assert (answer.reasoning, answer.text) in (("hm", "n"), ("hm", "nn"))


@pytest.mark.parametrize(
    "text", ["<think>a</think>", "</response>", "<tool_call>{}</tool_call>", "\n\nx\n", "日本😀", "é"]
)
def test_no_letter_of_the_answer_is_lost(talk: Talks, text: str) -> None:
    one = talk()
    for form, value, written in (
        (AnswerForm.from_choices([text, "other"]), text, text),
        (AnswerForm.of({"enum": [text, None]}), text, json.dumps(text, ensure_ascii=False)),
    ):
        one.engine.say("", end="</s>")
        answer = say_in_form(one, "q", written, form)
        assert (answer.text, answer.value) == (written, value)
        one.chat.undo()


def test_an_answer_that_is_cut_off_is_none(talk: Talks) -> None:
    one = talk()
    one.ask("before", "so")
    with pytest.raises(NoAnswer) as error:
        say_in_form(one, "q", WRITTEN, FIELDS, max_tokens=40)
    assert "no whole answer after 40 tokens" in error.value.what
    assert '"A & B"' in error.value.why
    assert one.chat.last is not None
    assert (one.chat.last.value, one.chat.last.confidence, one.chat.last.finish_reason) == (
        None,
        {},
        "length",
    )
    assert WRITTEN.startswith(one.chat.last.text)
    assert [turn.text for turn in one.chat.history] == ["before"]


def test_an_answer_that_just_fits_is_whole(talk: Talks) -> None:
    num_tokens = say_in_form(talk(), "q", WRITTEN, FIELDS).usage.completion_tokens
    answer = say_in_form(talk(), "q", WRITTEN, FIELDS, max_tokens=num_tokens)
    assert (answer.text, answer.finish_reason) == (WRITTEN, "stop")
    with pytest.raises(NoAnswer):
        say_in_form(talk(), "q", WRITTEN, FIELDS, max_tokens=num_tokens - 1)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (AnswerForm.from_regex("a+"), "aaaaaaaa"),
        (AnswerForm.of({"type": "number"}), "45987.5"),
        (AnswerForm.from_regex("a*"), "aaaaaaaa"),
    ],
)
def test_what_is_cut_off_is_no_answer_even_where_it_matches_the_form(
    talk: Talks, form: AnswerForm, says: str
) -> None:
    one = talk()
    with pytest.raises(NoAnswer, match="no whole answer after 3 tokens"):
        say_in_form(one, "q", says, form, max_tokens=3)
    answer = one.chat.last
    assert answer is not None
    assert (answer.value, answer.confidence, answer.finish_reason) == (None, {}, "length")
    assert says.startswith(answer.text)
    assert one.chat.history == ()


@pytest.mark.parametrize("room", [1, 2, 5, 9, 30, 80])
def test_what_is_forced_stays_within_the_context(talk: Talks, room: int) -> None:
    prompt_length = say_in_form(talk(), "q", WRITTEN, BARE).usage.prompt_tokens
    one = talk(context_size=prompt_length + room)
    with contextlib.suppress(NoAnswer):
        say_in_form(one, "q", WRITTEN, BARE)
    assert one.chat.last is not None
    assert WRITTEN.startswith(one.chat.last.text)
    assert len(one.engine.ids) <= prompt_length + room


def test_an_interrupted_answer_is_kept_without_a_value(talk: Talks) -> None:
    one = talk()
    one.engine.after_decode = lambda _token_id: one.chat.stop()
    answer = say_in_form(one, "q", WRITTEN, FIELDS)
    assert (answer.finish_reason, answer.value) == ("interrupted", None)
    assert one.chat.history[-1].finish_reason == "interrupted"


def test_send_and_retry_take_a_form_and_no_tool_is_called(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[{"name": "look"}])
    form = AnswerForm.from_choices(["<tool_call>", "no"]).with_instruction("")
    for is_retry in (False, True):
        one.engine._script = iter(one.chat.model.tokenizer.encode_part("<")[:1] * 20)
        if is_retry:
            list(one.chat.retry(schema=form, thinking=False))
        else:
            list(one.chat.send([ChatMessage("user", "q")], schema=form, thinking=False))
        assert one.chat.last is not None
        assert (one.chat.last.value, one.chat.last.tool_calls) == ("<tool_call>", ())


def test_a_form_that_cannot_be_used_is_told_before_anything_is_computed(talk: Talks) -> None:
    one = talk()
    with pytest.raises(UsageError, match="not supported"):
        one.chat.ask("q", schema={"if": {}})
    assert one.engine.prefills == []
