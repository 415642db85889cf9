"""The client library of OpenAI against the server: what it reads is what a chat of the library says."""

from __future__ import annotations

import json
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import ResponseOutputText

from ernie_local.loading import LoadedModel
from ernie_local.session import Chat, ImagePart
from tests.runtime.server.serving import INVOICE, Served, data_url

QUESTION = "What is the total?"


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    """A client that does not try again: a refusal is to be seen."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask_about_invoice(*more: Any) -> list[Any]:
    """The messages of a question about the shipped invoice."""
    image = {"type": "image_url", "image_url": {"url": data_url(INVOICE)}}
    content = [image, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}, *more]


@pytest.fixture(scope="module")
def expected(nano_model: LoadedModel) -> str:
    """What the library answers about the invoice."""
    chat = Chat(nano_model)
    return "".join(piece.text for piece in chat.ask(QUESTION, [ImagePart(INVOICE)]))


def test_an_answer_about_an_image_is_that_of_the_library(client: openai.OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(model="nano", messages=ask_about_invoice())
    choice = answer.choices[0]
    assert choice.message.content == expected
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "nano"


def test_the_pieces_of_a_stream_are_the_answer(client: openai.OpenAI, expected: str) -> None:
    chunks = list(client.chat.completions.create(model="nano", messages=ask_about_invoice(), stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_the_stream_helper_collects_the_same(client: openai.OpenAI, expected: str) -> None:
    with client.chat.completions.stream(
        model="nano", messages=ask_about_invoice(), stream_options={"include_usage": True}
    ) as stream:
        for _ in stream:
            pass
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == expected
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 0


def test_a_second_turn_computes_only_what_is_new(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="nano", messages=ask_about_invoice())
    said = first.choices[0].message.content
    more = [{"role": "assistant", "content": said}, {"role": "user", "content": "And the date?"}]
    second = client.chat.completions.create(model="nano", messages=ask_about_invoice(*more))
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    # The template writes a finished answer otherwise than one that is to come, by a tag or two.
    assert cached > first.usage.prompt_tokens - 10


def test_stop_texts_end_an_answer_before_them(client: openai.OpenAI, expected: str) -> None:
    stop = expected[2:4]
    answer = client.chat.completions.create(model="nano", messages=ask_about_invoice(), stop=[stop, "zzz"])
    assert answer.choices[0].message.content == expected[: expected.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_max_tokens_end_an_answer(client: openai.OpenAI, expected: str) -> None:
    answer = client.chat.completions.create(
        model="nano", messages=ask_about_invoice(), max_completion_tokens=2
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 2
    assert expected.startswith(answer.choices[0].message.content or "?")


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 2}, "one answer"),
        ({"messages": [{"role": "user", "content": ""}]}, "must come from one of them"),
        ({"temperature": -1}, "temperature"),
        ({"messages": [{"role": "user", "content": "x" * 30_000}]}, "context"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"if": {}}}}},
            "if",
        ),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "not among the tools"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(
    client: openai.OpenAI, change: dict[str, Any], words: str
) -> None:
    request: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}]} | change
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**request)
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**request, stream=True)


def test_responses_say_the_same_whole_and_streamed(client: openai.OpenAI, expected: str) -> None:
    content: list[Any] = [
        {"type": "input_image", "image_url": data_url(INVOICE), "detail": "high"},
        {"type": "input_text", "text": QUESTION},
    ]
    asked: list[Any] = [{"role": "user", "content": content}]
    answer = client.responses.create(model="nano", input=asked)
    assert answer.output_text == expected
    assert answer.status == "completed"
    with client.responses.stream(model="nano", input=asked) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(deltas) == final.output_text == expected
    assert final.usage is not None
    assert final.usage.input_tokens > 0


def test_responses_that_are_cut_are_incomplete(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="nano", input="Hello", max_output_tokens=1, instructions="Be brief."
    )
    assert answer.status == "incomplete"
    with pytest.raises(openai.BadRequestError, match="not kept"):
        client.responses.create(model="nano", input="Hello", previous_response_id="resp_1")


def test_responses_tell_the_probabilities_that_a_chat_tells(client: openai.OpenAI) -> None:
    request: Any = {"model": "nano", "top_logprobs": 2}
    message: Any = {"role": "user", "content": "Hello"}
    chat = client.chat.completions.create(**request, messages=[message], logprobs=True, max_tokens=5)
    assert chat.choices[0].logprobs is not None
    expected = numbers_of(chat.choices[0].logprobs.content)
    assert len(expected) == 5 * 3
    request |= {"input": "Hello", "max_output_tokens": 5}
    assert text_of(client.responses.create(**{**request, "top_logprobs": None})).logprobs == []
    with pytest.raises(openai.BadRequestError, match="top_logprobs is 2 without include"):
        client.responses.create(**request)
    request["include"] = ["message.output_text.logprobs", "reasoning.encrypted_content"]
    with client.responses.stream(**request) as stream:
        events = list(stream)
    done = [event for event in events if event.type == "response.output_text.done"]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    for told in (done, deltas, [text_of(client.responses.create(**request))]):
        found = numbers_of([one for event in told for one in event.logprobs or ()])
        assert [token for token, _ in found] == [token for token, _ in expected]
        assert [logprob for _, logprob in found] == pytest.approx([one for _, one in expected], abs=1e-3)


def numbers_of(told: Any) -> list[tuple[str, float]]:
    """Tokens and likeliest ones, with their probabilities."""
    return [(one.token, one.logprob) for token in told for one in (token, *token.top_logprobs)]


def text_of(response: Any) -> ResponseOutputText:
    """The text of an answer's message."""
    (message,) = [item for item in response.output if item.type == "message"]
    assert isinstance(message.content[0], ResponseOutputText)
    return message.content[0]


class Line(pydantic.BaseModel):
    """A line of an invoice."""

    item: str = pydantic.Field(max_length=8)
    quantity: int = pydantic.Field(le=99)


class Invoice(pydantic.BaseModel):
    """What a client wants to know."""

    total: float
    lines: list[Line] = pydantic.Field(max_length=2)


def test_a_pydantic_model_is_filled(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="nano", messages=ask_about_invoice(), response_format=Invoice
    )
    assert isinstance(answer.choices[0].message.parsed, Invoice)
    response = client.responses.parse(model="nano", input="An invoice, please.", text_format=Invoice)
    assert isinstance(response.output_parsed, Invoice)


def test_json_objects_are_objects(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": "Hello"}],
        response_format={"type": "json_object"},
        seed=1,
        temperature=1,
        max_tokens=400,
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_a_tool_that_has_to_be_called_is_called(served_with_tools: Served) -> None:
    client = openai.OpenAI(base_url=f"{served_with_tools.url}/v1", api_key="none", max_retries=0)
    tools = [openai.pydantic_function_tool(Invoice, name="store"), openai.pydantic_function_tool(Line)]
    messages: list[Any] = [{"role": "user", "content": "Store it."}]
    choice: Any = {"type": "function", "function": {"name": "store"}}
    request: Any = {"model": "nano", "messages": messages, "tools": tools, "tool_choice": choice}
    request |= {"reasoning_effort": "none", "max_tokens": 300}
    answer = client.chat.completions.parse(**request)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert isinstance(calls[0].function.parsed_arguments, Invoice)
    with client.chat.completions.stream(**request) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == "tool_calls"
    assert streamed.message.tool_calls
    assert isinstance(streamed.message.tool_calls[0].function.parsed_arguments, Invoice)
    # The round trip: what the tool gave goes back with the call.
    messages += [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [calls[0].model_dump(include={"id", "type", "function"})],
        },
        {"role": "tool", "tool_call_id": calls[0].id, "content": "stored"},
    ]
    del request["tool_choice"]
    assert client.chat.completions.create(**{**request, "max_tokens": 5}).usage
