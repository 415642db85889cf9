"""Whole conversations as messages: roles, order of text and images, what is computed, what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ernie_local import Chat, ChatMessage
from ernie_local.errors import NoAnswer, UsageError
from ernie_local.text.reasoning import ToolCall
from tests.runtime.conftest import Talk, Talks

BEGIN, END = "<|begin_of_sentence|>", "<|end_of_sentence|>"
OFF = "<think>\n\n</think>\n\n"
EIGHT = "<|IMAGE_START|>" + "<|IMAGE_PLACEHOLDER|>" * 8 + "<|IMAGE_END|>"


def send(one: Talk, messages: list[ChatMessage], says: str, end: str = "</s>") -> str:
    one.engine.say(says, end=end)
    return "".join(piece.text for piece in one.chat.send(messages))


def test_a_conversation_is_answered_and_becomes_the_history(talk: Talks) -> None:
    one = talk()
    messages = [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "one"),
        ChatMessage("assistant", "first", reasoning="why"),
        ChatMessage("user", "two"),
    ]
    assert send(one, messages, "second") == "second"
    assert one.cached_text().startswith(
        f"{BEGIN}Be brief.\nUser: one\nAssistant: <think>\nwhy\n</think>\nfirst{END}"
        f"User: two\nAssistant: {OFF}"
    )
    assert [(turn.text, turn.answer) for turn in one.chat.history] == [("one", "first"), ("two", "second")]
    assert one.chat.system == "Be brief."
    assert one.ask("three", "third").text == "third"
    assert len(one.chat.history) == 3


def test_text_and_images_keep_their_order(talk: Talks, image: Path) -> None:
    one = talk()
    send(one, [ChatMessage("user", ["Compare ", image, " with ", image.read_bytes(), "."])], "same")
    assert f"User: Compare Picture 1:{EIGHT} with Picture 2:{EIGHT}.\nAssistant: " in one.cached_text()
    assert one.chat.last is not None
    assert one.chat.last.usage.image_tokens == 16
    assert [shown.name for shown in one.chat.history[0].images] == [str(image), "image"]


def test_a_question_may_have_images_inside(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk(variant="thinking", system="")
    one.ask(["Is ", image, " as large as"], "</think>same", images=[image])
    asked = f"User:  Picture 1:{EIGHT}Is  Picture 2:{EIGHT} as large as\nAssistant: "
    assert asked in one.cached_text()
    one.chat.save(tmp_path / "chat.json")
    loaded = Talk(Chat.load(tmp_path / "chat.json", one.chat.model, variant="thinking"))
    loaded.ask("again", "</think>yes")
    assert asked in loaded.cached_text()
    # Of the first turn all but its end was there: with the order kept, no image is computed twice.
    assert one.ask("again", "</think>yes").usage.cached_tokens > 16
    with pytest.raises(UsageError, match="a question of 1 characters"):
        one.chat.ask(["", " "])


def test_what_was_computed_before_is_not_computed_again(talk: Talks, image: Path) -> None:
    one = talk()
    data = image.read_bytes()
    first = ChatMessage("user", [data, "what is it?"])
    send(one, [first], "a page")
    assert one.chat.last is not None
    before = one.chat.last.usage.prompt_tokens
    # A server has no object to keep: the same bytes again are the same image.
    again = [ChatMessage("user", [data, "what is it?"]), ChatMessage("assistant", "a page")]
    send(one, [*again, ChatMessage("user", "sure?")], "yes")
    assert one.chat.last.usage.cached_tokens >= before - 8
    other = Image.new("RGB", (100, 60), "black")
    send(one, [ChatMessage("user", [other, "what is it?"])], "black")
    assert one.chat.last.usage.cached_tokens < 10  # the opening, and none of the image


def test_asking_is_sending_the_history_and_one_message(talk: Talks, image: Path) -> None:
    asked, sent = talk(), talk()
    asked.ask("one", "first", images=image)
    asked.ask("two", "second")
    messages = [
        ChatMessage("user", [image, "one"]),
        ChatMessage("assistant", "first"),
        ChatMessage("user", "two"),
    ]
    send(sent, messages, "second")
    assert asked.cached_text() == sent.cached_text()
    assert [turn.messages()[1:] for turn in asked.chat.history] == [
        turn.messages()[1:] for turn in sent.chat.history
    ]


def test_an_answer_that_never_came_leaves_the_history(talk: Talks) -> None:
    one = talk()
    one.ask("one", "first")
    with pytest.raises(NoAnswer):
        send(one, [ChatMessage("user", "other")], "")
    assert [turn.text for turn in one.chat.history] == ["one"]


def test_results_of_tools_are_messages(talk: Talks, image: Path) -> None:
    one = talk(variant="thinking", tools=[{"name": "zoom"}])
    messages = [
        ChatMessage("user", "Read the sign."),
        ChatMessage("assistant", "", tool_calls=(ToolCall("zoom", {"n": 1}),)),
        ChatMessage("tool", [image]),
    ]
    send(one, messages, "a sign</think>STOP")
    assert f"<tool_output>\n Picture 1:{EIGHT}\n</tool_output>" in one.cached_text()


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([], "0 characters in 0 messages"),
        ([("user", "one"), ("assistant", "")], "0 messages"),
        ([("user", "  ")], "2 characters in 1 messages"),
        ([("system", "Be brief.")], "0 messages"),
        ([("nobody", "one")], "the role 'nobody'"),
    ],
)
def test_conversations_without_a_question_are_refused(
    talk: Talks, messages: list[tuple[str, str]], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        talk().chat.send([ChatMessage(role, text) for role, text in messages])  # type: ignore[arg-type]


def test_only_users_and_tools_show_images(image: Path) -> None:
    with pytest.raises(UsageError, match="assistant with 1 images and 0 videos"):
        ChatMessage("assistant", [image])


def test_messages_of_any_order_are_saved_and_read_again(talk: Talks, image: Path, tmp_path: Path) -> None:
    one = talk()
    messages = [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", ["see ", image, " here"]),
        ChatMessage("assistant", "yes"),
        ChatMessage("user", "so?"),
    ]
    send(one, messages, "so")
    one.chat.save(tmp_path / "chat.json")
    two = Chat.load(tmp_path / "chat.json", one.chat.model)
    assert two.system == "Be brief."
    for before, after in zip(one.chat.history, two.history, strict=True):
        assert [message.for_template() for message in before.messages()] == [
            message.for_template() for message in after.messages()
        ]
