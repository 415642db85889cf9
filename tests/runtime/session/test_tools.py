"""Chats that run tools: rounds of calls, what the model reads, what is kept, and every kind of failure."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jsonschema
import msgspec
import pytest
from PIL import Image

from ernie_local.errors import NoAnswer, UsageError
from ernie_local.session import Chat, ChatMessage, ChatTool, ToolError, ToolStep, image_search_tool
from ernie_local.session.image_tools import zoom_tool
from ernie_local.session.tools import Toolbox
from ernie_local.text.template import encode_segments
from ernie_local.text.template_file import TemplateInput, read_file_template
from tests.runtime.conftest import MEDIA
from tests.runtime.text.thinking_template import THINKING_JINJA

if TYPE_CHECKING:
    from tests.runtime.conftest import Talk, Talks


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"


def look(*calls: str, thought: str = "look closer") -> str:
    return f"{thought}\n</think>\n\n\n{''.join(calls)}"


def add(first: int, second: int = 1) -> int:
    """Add two numbers."""
    return first + second


def ask(one: Talk, *says: str, **options: Any) -> str:
    """The pieces of the answer, joined by kind."""
    one.engine.say(*says)
    pieces = list(one.chat.ask("What is it?", **options))
    answer = one.chat.last
    assert answer is not None
    for kind, whole in (("answer", answer.text), ("reasoning", answer.reasoning)):
        assert "".join(piece.text for piece in pieces if piece.kind == kind) == whole
    return answer.text


def results(one: Talk) -> list[str]:
    """What the model read, of all calls."""
    assert one.chat.last is not None
    return [step.result.text for step in one.chat.last.steps]


def test_calls_are_run_until_the_model_answers(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    seen: list[ToolStep] = []
    one.chat.on_step = seen.append
    says = (
        look(call("add", first=2), call("add", first=2, second=3)),
        look(call("add", first=3)),
        "so\n</think>\n\nten",
    )
    assert ask(one, *says) == "ten"
    assert results(one) == ["3", "5", "4"]
    assert (
        "<tool_output>\n3\n</tool_output>\nUser: \n<tool_output>\n5\n</tool_output>\n\nAssistant:"
        in one.cached_text()
    )
    answer = one.chat.last
    assert answer is not None
    assert answer.reasoning == "look closer\n\nlook closer\n\nso"
    assert ([step.round for step in answer.steps], answer.tool_calls) == ([1, 1, 2], ())
    assert [step.call for step in seen] == [step.call for step in answer.steps]
    assert len(one.engine.prefills) == 3
    computed = sum(len(ids) for ids, _ in one.engine.prefills)
    assert answer.usage.prompt_tokens - answer.usage.cached_tokens == computed
    tokenizer = one.chat.model.tokenizer
    written = [tokenizer.encode(text) for text in says]
    assert answer.usage.completion_tokens == sum(map(len, written))
    (turn,) = one.chat.history
    assert (turn.answer, turn.reasoning, len(turn.rounds)) == ("ten", "so", 2)
    one.chat.undo()
    assert [*one.chat.history] == []


def test_a_later_question_and_a_retry_begin_with_the_rounds(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    ask(one, look(call("add", first=2)), "so\n</think>\n\nthree")
    text = one.cached_text()
    ask(one, "</think>\n\nstill")
    assert one.cached_text().startswith(text)
    assert one.chat.last is not None
    assert one.chat.last.steps == ()
    one.engine.say(look(call("add", first=5)), "</think>\n\nsix")
    list(one.chat.retry())
    assert results(one) == ["6"]
    assert [turn.answer for turn in one.chat.history] == ["three", "six"]


def test_the_prompt_is_what_the_published_template_writes(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk(variant="thinking", system="Be brief.", zoom=True, tools=[add])
    zoom = call("image_zoom_in_tool", bbox_2d=[0, 0, 500, 500], label="sígn")
    ask(one, look(zoom), look(call("add", first=2), thought="sum\nup"), "so\n</think>\n\nred", images=[image])
    (turn,) = one.chat.history
    (tmp_path / "chat_template.jinja").write_text(THINKING_JINJA)
    names = {"cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = one.chat.model.tokenizer
    template = read_file_template(tmp_path, tokenizer)
    assert template is not None
    messages = [message.for_template() for message in turn.messages()[:-1]]
    (segments,) = template.all_segments(
        [TemplateInput(messages, "Be brief.", one.chat.toolbox.descriptions, True)]
    )
    expected = encode_segments(tokenizer, segments, MEDIA).token_ids
    said = tokenizer.encode("so\n</think>\n\nred")
    assert one.engine.ids == [*expected, *said]
    assert "<tool_output>\n Picture 2:<|IMAGE_START|>" in one.cached_text()


def test_the_published_schemas() -> None:
    function: Any = zoom_tool().described()["function"]
    assert function["name"] == "image_zoom_in_tool"
    box = function["parameters"]["properties"]["bbox_2d"]
    assert (box["items"], box["minItems"], box["maxItems"]) == ({"type": "number"}, 4, 4)
    assert "normalized to the range 0\u20131000 based on the original image dimensions" in box["description"]
    assert function["parameters"]["required"] == ["bbox_2d"]
    search: Any = image_search_tool(str).described()["function"]
    assert (search["name"], search["description"]) == ("image_search", "search for similar images")
    assert search["parameters"]["required"] == ["img_idx"]


def fail() -> None:
    """Fail."""
    raise ValueError("no such town")


def speak() -> object:
    """Give something without a JSON form."""
    return object()


def shout() -> str:
    """Give too much."""
    return "a" * 300_000


def half() -> str:
    """Give half of a surrogate pair."""
    return "a\ud800b"


@pytest.mark.parametrize(
    ("called", "read"),
    [
        (call("fail"), "error: ValueError: no such town"),
        (call("subtract"), "error: there is no tool subtract, only add, fail, speak, shout, half"),
        (call("add", first="2"), r"error: Expected `int`, got `str` - at `$.first`"),
        (call("add", third=1, first=1), "error: Object contains unknown field `third`"),
        (call("speak"), "error: the result is neither text nor an image, and has no JSON form"),
        (call("shout"), "error: the result has 300000 characters, at most 200000"),
        (call("half"), "a?b"),
    ],
)
def test_the_model_reads_what_went_wrong(talk: Talks, called: str, read: str) -> None:
    one = talk(variant="thinking", tools=[add, fail, speak, shout, half])
    assert ask(one, look(called), "</think>\n\nsorry") == "sorry"
    (text,) = results(one)
    assert text.startswith(read)
    assert f"<tool_output>\n{read}" in one.cached_text()
    assert one.chat.last is not None
    assert one.chat.last.steps[0].is_error == read.startswith("error")


def test_after_the_last_round_a_model_has_to_answer(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add], max_rounds=2)
    says = [look(call("add", first=number)) for number in (1, 2, 3)]
    assert ask(one, *says, "</think>\n\nfine") == "fine"
    assert results(one) == [
        "2",
        "3",
        "error: no more than 2 rounds of calls are possible: answer now, without a call",
    ]
    one.engine.say(*says, look(call("add", first=4)))
    with pytest.raises(NoAnswer, match=r"after 3 calls of tools in 3 rounds\nmax_rounds=2"):
        list(one.chat.ask("And?"))
    assert len(one.chat.history) == 1


def test_calls_of_described_tools_are_left_to_the_caller(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[{"name": "zoom"}, add])
    assert ask(one, look(call("add", first=1), call("zoom", n=1))) == ""
    assert one.chat.last is not None
    assert [each.name for each in one.chat.last.tool_calls] == ["add", "zoom"]
    assert one.chat.last.steps == ()


def test_calls_behind_a_limit_are_not_run(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    says = look(call("add", first=1))
    num_tokens = len(one.chat.model.tokenizer.encode(says))
    one.engine.say(says)
    list(one.chat.ask("q", max_tokens=num_tokens, thinking_budget=num_tokens))
    assert one.chat.last is not None
    assert (one.chat.last.finish_reason, one.chat.last.steps) == ("length", ())


def test_max_tokens_are_those_of_all_rounds(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    first = look(call("add", first=1))
    num_tokens = len(one.chat.model.tokenizer.encode(first))
    one.engine.say(first, "</think>\n\na b c d e f g h i j")
    list(one.chat.ask("q", max_tokens=num_tokens + 6))
    assert one.chat.last is not None
    assert one.chat.last.finish_reason == "length"
    assert one.chat.last.usage.completion_tokens == num_tokens + 6


def picture(side: int) -> Image.Image:
    """Draw."""
    return Image.new("RGB", (side, side), "blue")


def test_tools_give_images_texts_and_several_of_them(talk: Talks, image: Path) -> None:
    def both() -> list[object]:
        """Give a file between texts."""
        return ["see", image, {"n": 1}]

    one = talk(variant="thinking", tools=[picture, both])
    says = look(call("picture", side=56), call("both"))
    assert ask(one, says, "</think>\n\nyes", images=[image]) == "yes"
    assert one.chat.last is not None
    first, second = one.chat.last.steps
    assert (first.first_image, second.first_image) == (2, 3)
    assert [[shown.num_tokens for shown in step.result.images] for step in (first, second)] == [[4], [8]]
    assert "<tool_output>\nsee Picture 3:" in one.cached_text()
    assert '<|IMAGE_END|>{"n":1}\n</tool_output>' in one.cached_text()
    assert [len(images) for _, images in one.engine.prefills] == [1, 2]


def test_a_result_that_does_not_fit_is_refused_and_the_model_answers(talk: Talks) -> None:
    def long() -> str:
        """Give a long text."""
        return "x y z " * 400

    one = talk(context_size=1000, variant="thinking", tools=[long])
    assert ask(one, look(call("long")), "</think>\n\nshort") == "short"
    (text,) = results(one)
    assert text.startswith("error: what the calls gave takes the chat to ")
    assert "it may have 936" in text


def test_a_stop_ends_the_rounds(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])

    def stop() -> str:
        """Stop."""
        one.chat.stop()
        return "never read"

    one = talk(variant="thinking", tools=[stop])
    assert ask(one, look(call("stop"))) == ""
    assert one.chat.last is not None
    assert one.chat.last.finish_reason == "interrupted"
    (turn,) = one.chat.history
    assert (turn.reasoning, turn.tool_calls) == ("look closer", ())


def test_ctrl_c_in_a_tool_keeps_what_was_said(talk: Talks) -> None:
    def wait() -> None:
        """Wait."""
        raise KeyboardInterrupt

    one = talk(variant="thinking", tools=[add, wait])
    one.engine.say(look(call("add", first=1)), look(call("wait")))
    with pytest.raises(KeyboardInterrupt):
        list(one.chat.ask("q"))
    (turn,) = one.chat.history
    assert (turn.finish_reason, len(turn.rounds), turn.tool_calls) == ("interrupted", 1, ())
    assert ask(one, "</think>\n\nback") == "back"


def test_text_before_a_call_is_part_of_the_answer(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    says = ("t\n</think>\n\nI add." + call("add", first=1), "u\n</think>\n\nTwo.")
    assert ask(one, *says) == "I add.\n\nTwo."
    (turn,) = one.chat.history
    assert (turn.rounds[0].text, turn.answer) == ("I add.", "Two.")


def test_rounds_without_words_are_not_parted_where_scores_are_told(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    one.chat.top_scores = 1
    adds = call("add", first=1)
    says = (look(adds), "t\n</think>\n\nI add." + adds, look(adds), "u\n</think>\n\nTwo.")
    assert ask(one, *says) == "I add.\n\nTwo."


def test_a_call_that_was_stopped_and_had_no_words_leaves_no_turn(talk: Talks) -> None:
    def stop() -> None:
        """Stop."""
        one.chat.stop()

    one = talk(variant="thinking", tools=[stop])
    one.engine.say(call("stop"))
    list(one.chat.ask("q", thinking=False))
    assert one.chat.last is not None
    assert (one.chat.last.finish_reason, one.chat.last.tool_calls) == ("interrupted", ())
    assert [*one.chat.history] == []
    begun = ChatMessage("assistant", "Well,")
    one.engine.say(call("stop"))
    list(one.chat.send([ChatMessage("user", "q"), begun]))
    assert [(turn.answer, turn.tool_calls) for turn in one.chat.history] == [("Well,", ())]


def test_an_answer_that_was_begun_goes_on_through_rounds(talk: Talks) -> None:
    one = talk(variant="thinking", tools=[add])
    one.engine.say(" I add." + call("add", first=1), "u\n</think>\n\nTwo.")
    pieces = list(one.chat.send([ChatMessage("user", "q"), ChatMessage("assistant", "Well,")]))
    text = "".join(piece.text for piece in pieces if piece.kind == "answer")
    assert text == " I add.\n\nTwo."
    (turn,) = one.chat.history
    assert (turn.rounds[0].text, turn.answer) == ("Well, I add.", "Two.")
    one.engine.say("v\n</think>\n\nThree.")
    list(one.chat.retry())
    (turn,) = one.chat.history
    assert (turn.rounds, turn.answer) == ((), "Three.")


def test_a_saved_chat_has_the_rounds_and_goes_on_with_its_tools(
    talk: Talks, image: Path, tmp_path: Path
) -> None:
    one = talk(variant="thinking", zoom=True, tools=[add])
    zoom = call("image_zoom_in_tool", bbox_2d=[100, 0, 600, 900])
    ask(one, look(zoom, call("add", first=1)), "</think>\n\nred", images=[image])
    one.chat.save(tmp_path / "chat.json")
    load = functools.partial(Chat.load, tmp_path / "chat.json", one.chat.model, variant="thinking")
    again = load(tools=[add])
    assert again.toolbox.descriptions == one.chat.toolbox.descriptions
    assert set(again.toolbox.names) == {"add", "image_zoom_in_tool"}
    assert again._said() == one.chat._said()
    (before,), (after,) = one.chat.history, again.history
    assert (after.rounds, after.answer) == (before.rounds, "red")
    assert load().toolbox.names == ("image_zoom_in_tool",)


class Place(msgspec.Struct):
    """A place."""

    x: int
    y: float = 0.5


def find(
    name: Annotated[str, msgspec.Meta(description="whose")],
    near: Place | None = None,
    *,
    unit: Literal["m", "km"] = "m",
) -> str:
    """Find something.

    In meters.
    """
    return f"{name} {near} {unit}"


def test_schemas_come_from_hints_and_docstrings() -> None:
    tool = ChatTool.of(find)
    assert (tool.name, tool.description) == ("find", "Find something.\n\nIn meters.")
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    assert tool.parameters["properties"]["name"] == {"type": "string", "description": "whose"}
    fits = jsonschema.Draft202012Validator(tool.parameters).is_valid
    for arguments in (
        {"name": "a"},
        {"name": "a", "near": {"x": 1}, "unit": "km"},
        {},
        {"name": 1},
        {"name": "a", "unit": "mile"},
        {"name": "a", "near": {"x": "1"}},
        {"name": "a", "far": 1},
    ):
        try:
            tool.run(arguments, None)  # type: ignore[arg-type]
        except ToolError:
            assert not fits(arguments)
        else:
            assert fits(arguments)
    assert tool.run({"name": "a", "near": {"x": 1}}, None) == f"a {Place(1)} m"  # type: ignore[arg-type]


async def later(city: str) -> str:
    """Async."""
    return city


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([lambda city: city], "city has no type hint"),
        ([later], "no tool can be made of later"),
        ([print], "no tool can be made of print"),
        ([functools.partial(add, 1)], "a tool is a plain function with a name"),
        ([add, add], "2 tools are called add"),
        ([add, {"type": "function", "function": {"name": "add"}}], "2 tools are called add"),
        ([replace(zoom_tool(), name="zoom_in"), zoom_tool(), zoom_tool()], "2 tools are called image_zoom"),
    ],
)
def test_what_is_no_tool_is_refused(tools: Sequence[Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Toolbox(tools)


def test_bad_names_and_numbers_of_rounds_are_refused(talk: Talks) -> None:
    with pytest.raises(UsageError, match="a tool cannot be called 'two words'"):
        replace(zoom_tool(), name="two words")
    with pytest.raises(UsageError, match="max_rounds=0"):
        talk(variant="thinking", zoom=True, max_rounds=0)
    with pytest.raises(UsageError, match="tools for a chat template without tools"):
        talk(zoom=True)


def test_image_search_counts_from_zero(talk: Talks, image: Path) -> None:
    def search(found: Any) -> str:
        return f"{found.name} {found.in_full().image.size}"

    one = talk(variant="thinking", tools=[image_search_tool(search)])
    says = look(
        *(call("image_search", img_idx=index) for index in (0, 1.0, 2, -1, "0", True)), call("image_search")
    )
    ask(one, says, "</think>\n\nyes", images=[Image.new("RGB", (90, 60)), image])
    assert results(one) == [
        "image (90, 60)",
        f"{image} (100, 60)",
        *(
            f"error: img_idx is {bad}: the chat has 2 images, counted from 0"
            for bad in ("2", "-1", "'0'", "true")
        ),
        "error: img_idx is missing: the number of the image, counted from 0",
    ]
