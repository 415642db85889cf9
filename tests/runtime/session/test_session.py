"""Chats over a model that says what it is told: prompts, history, cache, limits. No weights are needed."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from PIL import Image

from ernie_local.config import MediaTokens
from ernie_local.errors import (
    DoesNotFit,
    InputUnreadable,
    ModelUnusable,
    NoAnswer,
    UsageError,
)
from ernie_local.sampling import SamplingOptions
from ernie_local.session import Chat, ChatMessage, Piece, ToolCall
from ernie_local.text.tokenizer import ErnieTokenizer
from tests.runtime.conftest import ScriptedModel, Talk

if TYPE_CHECKING:
    from tests.runtime.conftest import Talks


BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
OFF = "<think>\n\n</think>\n\n"


def placeholders(count: int) -> str:
    return "<|IMAGE_START|>" + "<|IMAGE_PLACEHOLDER|>" * count + "<|IMAGE_END|>"


def test_an_answer_and_what_is_known_of_it(talk: Talks, image: Path) -> None:
    one = talk()
    one.engine.say("forty two")
    pieces = list(one.chat.ask("How many?", images=[image]))
    assert {piece.kind for piece in pieces} == {"answer"}
    assert "".join(piece.text for piece in pieces) == "forty two"
    prompt = f"{BEGIN}User: Picture 1:{placeholders(8)}How many?\nAssistant: {OFF}"
    assert one.cached_text() == f"{prompt}forty two"
    answer = one.chat.last
    assert answer is not None
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("forty two", "", "stop")
    num_tokens = len(one.chat.model.tokenizer.encode("forty two"))
    assert answer.usage.prompt_tokens == len(one.engine.ids) - num_tokens
    assert (answer.usage.image_tokens, answer.usage.cached_tokens) == (8, 0)
    assert (answer.usage.completion_tokens, answer.usage.reasoning_tokens) == (num_tokens, 0)
    (report,) = answer.images
    assert (report.name, report.tokens) == (str(image), 8)
    assert (report.original_size, report.resized_size) == ((100, 60), (112, 56))
    timings = answer.timings
    assert min(timings.image, timings.prefill, timings.decode) > 0
    assert timings.image + timings.prefill + timings.decode <= timings.total
    assert answer.peak_memory_bytes is not None
    assert 10 << 20 < answer.peak_memory_bytes < 1 << 40
    (turn,) = one.chat.history
    assert (turn.text, turn.answer, turn.finish_reason) == ("How many?", "forty two", "stop")


@pytest.mark.parametrize("end", ["</s>", END])
def test_both_end_tokens_end_an_answer(talk: Talks, end: str) -> None:
    answer = talk().ask("Hi", "yes", end=end)
    assert (answer.text, answer.finish_reason) == ("yes", "stop")


def test_a_later_turn_computes_only_what_is_new(talk: Talks, image: Path) -> None:
    one = talk(system="Be brief.")
    one.ask("one", "first", images=[image, image])
    prompt_ids = list(one.engine.prefills[0][0])
    answer = one.ask("two", "second", images=[image])
    new_ids, new_images = one.engine.prefills[1]
    assert one.cached_text() == (
        f"{BEGIN}Be brief.\nUser: Picture 1:{placeholders(8)}Picture 2:{placeholders(8)}one"
        f"\nAssistant: first{END}User: Picture 3:{placeholders(8)}two\nAssistant: {OFF}second"
    )
    # From the opening of the first answer on: its empty thought is no part of the history.
    tokenizer = one.chat.model.tokenizer
    kept = len(one.engine.ids) - len(tokenizer.encode("second")) - len(new_ids)
    assert len(new_images) == 1
    assert answer.usage.cached_tokens == kept
    assert prompt_ids[:kept] == one.engine.ids[:kept]
    assert tokenizer.decode(prompt_ids[:kept]).endswith("one\nAssistant: ")


def test_images_do_not_stay_in_memory(talk: Talks, image: Path) -> None:
    one = talk()
    one.ask("one", "first", images=[image])
    (shown,) = one.chat.history[0].images
    assert shown._patches is None
    assert shown._image is None
    assert shown.patches().num_tokens == 8


def test_max_tokens_ends_an_answer(talk: Talks) -> None:
    one = talk()
    answer = one.ask("q", "a b c d e f", max_tokens=3)
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 3)
    assert one.chat.history[0].finish_reason == "length"
    assert (
        one.engine.length == answer.usage.prompt_tokens + 2
    )  # what would come after the third is not computed


def test_the_end_of_the_context_ends_an_answer(talk: Talks) -> None:
    prompt_length = talk().ask("q", "a").usage.prompt_tokens
    one = talk(context_size=prompt_length + 4)
    answer = one.ask("q", "a b c d e f g h")
    assert (answer.finish_reason, answer.usage.completion_tokens) == ("length", 4)
    with pytest.raises(DoesNotFit):
        one.chat.ask("and then?")


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_computed(talk: Talks, image: Path) -> None:
    prompt_length = talk().ask("q", "a", images=[image]).usage.prompt_tokens
    one = talk(context_size=prompt_length)
    expected = rf"prompt of {prompt_length} tokens .* context of {prompt_length} tokens\n8 are for 1 "
    with pytest.raises(DoesNotFit, match=expected):
        one.chat.ask("q", images=[image])
    assert not one.engine.prefills
    assert talk(context_size=prompt_length + 1).ask("q", "a", images=[image]).text == "a"


def test_no_answer_is_an_error_and_no_turn(talk: Talks) -> None:
    one = talk()
    one.ask("first", "yes")
    one.engine.say("")
    with pytest.raises(NoAnswer, match=r"after 0 tokens, 0 of them reasoning\nthe model ended"):
        list(one.chat.ask("second"))
    one.engine.say("\n\n", end="")
    with pytest.raises(NoAnswer, match=r"after 3 tokens(.|\n)*max_tokens"):
        list(one.chat.ask("third", max_tokens=3))
    assert one.chat.last is not None
    assert (one.chat.last.text, one.chat.last.finish_reason) == ("", "length")
    assert [turn.text for turn in one.chat.history] == ["first"]
    one.ask("fourth", "no")
    assert one.cached_text() == f"{BEGIN}User: first\nAssistant: yes{END}User: fourth\nAssistant: {OFF}no"


def test_undo_forgets_and_rewinds(talk: Talks, image: Path) -> None:
    one = talk()
    with pytest.raises(UsageError, match="nothing to undo"):
        one.chat.undo()
    one.ask("one", "first", images=[image])
    one.ask("two", "second", images=[image])
    assert one.chat.undo().text == "two"
    assert [turn.text for turn in one.chat.history] == ["one"]
    text = one.cached_text()
    assert text.endswith("one\nAssistant: first")  # the end token comes with the next question
    one.ask("three", "third")
    assert one.cached_text() == f"{text}{END}User: three\nAssistant: {OFF}third"
    one.chat.undo()
    one.chat.undo()
    assert one.engine.length == 0


def test_retry_asks_the_whole_question_again(talk: Talks, image: Path) -> None:
    """System text, order of texts and images, and several messages; not their text alone."""
    one = talk()
    question = [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", ("Here:", image, "What is it?")),
        ChatMessage("user", "Quick!"),
    ]
    one.engine.say("first")
    list(one.chat.send(question))
    before = one.cached_text()
    one.engine.say("second")
    list(one.chat.retry(max_tokens=50))
    assert one.cached_text() == f"{before.removesuffix('first')}second"
    (turn,) = one.chat.history
    assert [message.role for message in turn.question] == ["system", "user", "user"]
    assert (turn.answer, one.chat.system) == ("second", "Be brief.")
    # The image is in the cache.
    assert [len(images) for _, images in one.engine.prefills] == [1, 0]


def test_retry_without_an_answer_keeps_the_turn(talk: Talks) -> None:
    one = talk()
    with pytest.raises(UsageError, match="nothing to ask again"):
        one.chat.retry()
    one.ask("one", "first")
    one.ask("two", "second")
    one.engine.say("")
    with pytest.raises(NoAnswer):
        list(one.chat.retry())
    assert [turn.answer for turn in one.chat.history] == ["first", "second"]
    with pytest.raises(UsageError, match="max_tokens"):
        one.chat.retry(max_tokens=0)
    one.engine.say("third")
    list(one.chat.retry())
    assert [(turn.text, turn.answer) for turn in one.chat.history] == [("one", "first"), ("two", "third")]


def test_the_system_text_stays_when_its_turn_is_forgotten(talk: Talks) -> None:
    one = talk(system="Be long.")
    one.engine.say("a")
    list(one.chat.send([ChatMessage("system", "Be brief."), ChatMessage("user", "q")]))
    one.chat.undo()
    assert one.chat.system == "Be brief."
    one.ask("r", "b")
    assert one.cached_text() == f"{BEGIN}Be brief.\nUser: r\nAssistant: {OFF}b"


def test_another_image_of_the_same_size_is_computed(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk()
    one.ask("q", "white", images=[image])
    one.chat.undo()
    Image.new("RGB", (100, 60), "black").save(tmp_path / "black.png")
    one.ask("q", "black", images=[tmp_path / "black.png"])
    (seen,) = one.engine.prefills[1][1]
    assert seen.pixel_values.max() < 0


def test_the_image_of_a_forgotten_question_is_not_taken_for_another(
    talk: Talks, image: Path, tmp_path: Path
) -> None:
    """A question without an answer is no turn, but still in the cache, and its placeholders look the same."""
    one = talk()
    one.engine.say("")
    with pytest.raises(NoAnswer):
        list(one.chat.ask("q", images=[image]))
    Image.new("RGB", (100, 60), "black").save(tmp_path / "black.png")
    one.ask("q", "black", images=[tmp_path / "black.png"])
    (seen,) = one.engine.prefills[1][1]
    assert seen.pixel_values.max() < 0


def test_the_cache_is_used_again_only_up_to_a_changed_image(talk: Talks, image: Path) -> None:
    one = talk()
    stream = one.chat.ask("q", images=[image, image])
    one.engine.say("a")
    list(stream)
    one.chat.undo()
    assert one.engine.length == 0
    one.ask("q", "b", images=[image, image])
    assert [len(images) for _, images in one.engine.prefills] == [2, 2]


def test_images_are_read_before_the_engine_computes(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk()
    (tmp_path / "text.png").write_text("no image")
    for bad in (tmp_path / "missing.png", tmp_path / "text.png"):
        with pytest.raises(InputUnreadable):
            one.chat.ask("q", images=[image, bad])
    assert not one.engine.prefills
    assert one.chat.history == ()


def test_one_image_alone_may_stand_for_a_list(talk: Talks, image: Path) -> None:
    opened = Image.open(image)
    for source in (
        image,
        str(image),
        image.read_bytes(),
        opened,
        torch.zeros(60, 100, 3, dtype=torch.uint8),
    ):
        answer = talk().ask("q", "a", images=source)
        assert [report.original_size for report in answer.images] == [(100, 60)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": " \n"}, "2 characters"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": -3}, "max_tokens=-3"),
        ({"thinking_budget": -1}, "thinking_budget=-1"),
        ({"role": "assistant"}, "0 messages from user or tool"),
    ],
)
def test_what_cannot_be_asked(talk: Talks, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        talk().chat.ask(**{"text": "q", **options})


def test_tool_calls_are_kept_as_structure(talk: Talks) -> None:
    call = '<tool_call>\n{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}\n</tool_call>\n'
    one = talk(variant="thinking", system="", tools=[{"name": "zoom"}])
    answer = one.ask("q", f"look\n</think>\n\n\n{call}")
    assert answer.tool_calls == (ToolCall("zoom", {"bbox_2d": [1, 2, 3, 4]}),)
    assert answer.text == ""
    one.ask("too small", "so\n</think>\n\nyes", role="tool")
    assert one.cached_text() == (
        f'{BEGIN}\n<tool_list>\n[{{"name": "zoom"}}]\n</tool_list>\nUser: q'
        f"\nAssistant: \n<think>\nlook\n</think>\n\n{call}{END}"
        "User: \n<tool_output>\ntoo small\n</tool_output>\n\nAssistant: \n<think>\nso\n</think>\n\nyes"
    )
    # Without tools the same words are an answer like any other, and its tags go.
    plain = talk(variant="thinking").ask("q", f"look</think>{call}")
    assert (plain.text, plain.tool_calls) == ('{"name": "zoom", "arguments": {"bbox_2d": [1, 2, 3, 4]}}', ())


def test_special_tokens_are_no_text(talk: Talks) -> None:
    answer = talk().ask("q", "a<|IMAGE_START|>b<|LOC_7|>c")
    assert answer.text == "ab<|LOC_7|>c"


def test_tokens_that_the_settings_name_and_ids_of_no_piece_are_no_text(
    tokenizer_directory: Path, tmp_path: Path
) -> None:
    """As skip_special_tokens does in transformers: in pieces, in the answer and in the history."""
    shutil.copytree(tokenizer_directory, tmp_path, dirs_exist_ok=True)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[SYS]": 700, "[TEXT]": 710}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"mask_token": "[SYS]"}))
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    one = Talk(Chat(cast("Any", ScriptedModel(tokenizer, tmp_path))))
    one.engine.say("a[SYS]b[TEXT]")
    one.engine._script = chain([705], one.engine._script)
    pieces = list(one.chat.ask("q"))
    assert "".join(piece.text for piece in pieces) == "ab[TEXT]"
    assert one.chat.last is not None
    assert one.chat.last.text == one.chat.history[0].answer == "ab[TEXT]"
    assert one.engine.ids[-6:].count(700) == one.engine.ids[-6:].count(705) == 1


def test_what_the_model_says_of_tags_is_text_in_the_history(talk: Talks) -> None:
    one = talk()
    tokenizer = one.chat.model.tokenizer
    one.engine._script = iter([*tokenizer.encode("<|IMAGE_START|>", allow_special=False), 2])
    list(one.chat.ask("q"))
    one.ask("more", "b")
    assert tokenizer.id_of("<|IMAGE_START|>") not in one.engine.ids
    assert "Assistant: <|IMAGE_START|><|end_of_sentence|>User: more" in one.cached_text()


def test_the_same_seed_gives_the_same_answer(talk: Talks) -> None:
    def answers(seed: int | None) -> tuple[str, int]:
        one = talk(sampling=SamplingOptions(temperature=5.0, top_k=2, seed=seed))
        answer = one.ask("q", "a b c d", end="", max_tokens=20)
        return answer.text, answer.seed

    assert answers(1) == answers(1)
    assert answers(1)[1] == 1
    assert answers(1) != answers(2)
    text, seed = answers(None)
    assert answers(seed) == (text, seed)


def test_a_repetition_penalty_counts_the_prompt(talk: Talks) -> None:
    """The script wants "yes" again and again; a penalty of 3 puts "x" before what was said."""
    one = talk(sampling=SamplingOptions(repetition_penalty=3.0))
    tokenizer = one.chat.model.tokenizer
    (token_id,) = set(tokenizer.encode("y"))
    one.engine._script = iter([token_id] * 50)
    list(one.chat.ask("q", max_tokens=2))
    assert one.chat.last is not None
    assert one.chat.last.text == "yx"
    one.chat.undo()
    one.engine._script = iter([token_id] * 50)
    list(one.chat.ask("y", max_tokens=1))
    assert one.chat.last.text == "x"


def test_a_tokenizer_of_another_model_is_refused(talk: Talks) -> None:
    model = cast("Any", talk().chat.model)
    model.config.media_ids = MediaTokens(15, 16, 17, 18, 19, 20)
    with pytest.raises(ModelUnusable, match=r"as 6, config\.json as 16"):
        Chat(cast("Any", model))


def test_an_unknown_template_is_refused(talk: Talks) -> None:
    with pytest.raises(UsageError, match="'chatml'"):
        talk(variant="chatml")


def test_pieces_are_what_the_package_exports(talk: Talks) -> None:
    one = talk()
    one.engine.say("a")
    assert list(one.chat.ask("q")) == [Piece("answer", "a")]


def test_tools_need_the_thinking_template(talk: Talks) -> None:
    with pytest.raises(UsageError, match="tools for a chat template without tools"):
        talk(tools=[{"name": "zoom"}])
