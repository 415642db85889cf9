"""Texts that go on, probabilities of tokens, and answers that have begun: against the model's own logits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2
import openai
import pytest
import torch

from ernie_local.loading import LoadedModel
from ernie_local.session import Chat, ChatMessage
from tests.runtime.server.serving import Served

PROMPT = "User: Hello, who are you?\nAssistant: "
QUESTION = "Hello, who are you?"


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    """A client that does not try again."""
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def prompt_ids(model: LoadedModel, text: str = PROMPT) -> list[int]:
    """The begin token and a text."""
    begin = model.tokenizer.id_of("<|begin_of_sentence|>")
    assert begin is not None
    return [begin, *model.tokenizer.encode(text, allow_special=False)]


def greedy(model: LoadedModel, token_ids: Sequence[int], num_tokens: int) -> list[int]:
    """The likeliest next tokens, by the engine alone."""
    engine = model.engine()
    logits, chosen = engine.prefill(token_ids), list[int]()
    for _ in range(num_tokens):
        chosen.append(int(logits[: model.tokenizer.vocab_size].argmax()))
        logits = engine.decode(chosen[-1])
    return chosen


def logprobs_after(model: LoadedModel, given: Sequence[int], chosen: Sequence[int]) -> torch.Tensor:
    """(chosen tokens, vocab) of what comes behind `given`, computed at once for all of `chosen`."""
    ids = [*given, *chosen]
    logits = torch.empty(len(ids), model.config.text.vocab_size)
    model.engine().prefill_all(ids, out=logits)
    rows = logits[len(given) - 1 : -1, : model.tokenizer.vocab_size]
    return torch.log_softmax(rows, dim=1)


def post(served: Served, path: str, **body: Any) -> httpx2.Response:
    """The answer to a request that the client library would not send."""
    return httpx2.post(f"{served.url}{path}", json=body, timeout=60)


def test_a_text_goes_on_as_the_model_says(client: openai.OpenAI, nano_model: LoadedModel) -> None:
    expected = nano_model.tokenizer.decode(greedy(nano_model, prompt_ids(nano_model), 6))
    whole = client.completions.create(model="nano", prompt=PROMPT, max_tokens=6)
    assert whole.choices[0].text == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt_ids(nano_model)), 6)
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(  # type: ignore[call-overload]
            model="nano", prompt=PROMPT, max_tokens=6, stream=True, stream_options=options
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-2:] == [None, "length"]
    assert chunks[-1].usage.completion_tokens == 6
    # Said again, nothing but its last token is computed.
    again = client.completions.create(model="nano", prompt=PROMPT, max_tokens=1)
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == whole.usage.prompt_tokens - 1


def test_a_prompt_may_be_token_ids_and_be_in_a_list(client: openai.OpenAI, nano_model: LoadedModel) -> None:
    ids = prompt_ids(nano_model)
    texts = {
        client.completions.create(model="nano", prompt=prompt, max_tokens=4).choices[0].text
        for prompt in (PROMPT, [PROMPT], ids, [ids])
    }
    assert len(texts) == 1
    assert client.completions.create(model="nano", prompt=PROMPT).usage.completion_tokens <= 16  # type: ignore[union-attr]


def test_a_tag_in_a_text_is_letters_and_an_id_is_a_tag(
    client: openai.OpenAI, nano_model: LoadedModel
) -> None:
    end = nano_model.tokenizer.id_of("<|end_of_sentence|>")
    assert end is not None
    written = client.completions.create(model="nano", prompt="a<|end_of_sentence|>", max_tokens=1)
    given = client.completions.create(model="nano", prompt=[*prompt_ids(nano_model, "a"), end], max_tokens=1)
    assert written.usage is not None
    assert given.usage is not None
    assert given.usage.prompt_tokens == len(prompt_ids(nano_model, "a")) + 1
    assert written.usage.prompt_tokens > given.usage.prompt_tokens + 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"n": 2}, "n is 2"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": ["a", "b"]}, "one text"),
        ({"prompt": [[1], [2]]}, "one text"),
        ({"prompt": [1, "a"]}, "one text"),
        ({"prompt": []}, "length"),
        ({"prompt": [[]]}, "at least 1 token"),
        ({"prompt": [-1]}, "-1"),
        ({"prompt": [10**9]}, "1000000000"),
        ({"prompt": [10**30]}, "outside"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"prompt": "x " * 5000}, "prompt the prompt is too long"),
        ({"prompt": "half \ud800"}, "body|invalid character"),
    ],
)
def test_a_text_that_cannot_go_on_is_refused_by_name(
    served: Served, change: dict[str, Any], words: str
) -> None:
    body = json.dumps({"prompt": PROMPT, **change})
    for stream in ("", ', "stream": true'):
        sent = (body[:-1] + stream + "}").encode("utf-8", "surrogatepass")
        answer = httpx2.post(f"{served.url}/v1/completions", content=sent, timeout=60)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert any(word in f"{error['param']} {error['message']}" for word in words.split("|")), error


def test_places_of_images_are_no_text(served: Served, nano_model: LoadedModel) -> None:
    answer = post(served, "/v1/completions", prompt=[1, nano_model.config.media.image], max_tokens=1)
    assert answer.status_code == 400
    assert "1 of them places of images" in answer.json()["error"]["message"]


def test_logprobs_of_a_text_are_those_of_the_model(client: openai.OpenAI, nano_model: LoadedModel) -> None:
    ids = prompt_ids(nano_model)
    chosen = greedy(nano_model, ids, 6)
    expected = logprobs_after(nano_model, ids, chosen)
    answer = client.completions.create(model="nano", prompt=PROMPT, max_tokens=6, logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    assert "".join(found.tokens) == answer.choices[0].text
    of_chosen = expected[range(6), chosen].tolist()
    assert found.token_logprobs == pytest.approx(of_chosen, abs=1e-3)
    for row, best, likeliest in zip(expected, found.tokens, found.top_logprobs, strict=True):
        assert list(likeliest.values()) == pytest.approx(row.topk(2).values.tolist(), abs=1e-3)
        assert next(iter(likeliest)) == best  # greedy
    places = [answer.choices[0].text[:place] for place in found.text_offset]
    assert places == ["".join(found.tokens[:count]) for count in range(6)]


def test_logprobs_of_a_chat_are_those_of_the_model(client: openai.OpenAI, nano_model: LoadedModel) -> None:
    asked: Any = {"model": "nano", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 10}
    plain = client.chat.completions.create(**asked)
    assert plain.choices[0].logprobs is None
    drawn = {**asked, "temperature": 1.5, "seed": 3, "extra_body": {"repetition_penalty": 1.3}}
    for request in (asked, drawn):
        answer = client.chat.completions.create(**request, logprobs=True, top_logprobs=3)
        choice = answer.choices[0]
        assert choice.logprobs is not None
        content = choice.logprobs.content
        assert content
        chosen = [token_id_of(nano_model, bytes(one.bytes or ())) for one in content]
        chat = Chat(nano_model)
        prompt = chat.writer.prompt([ChatMessage("user", QUESTION).for_template()], thinking=False)
        expected = logprobs_after(nano_model, prompt.token_ids, chosen)
        # A thought is not to be opened: the rest shares its probability.
        think = nano_model.tokenizer.id_of("<think>")
        assert think is not None
        expected = torch.log_softmax(expected.index_fill(1, torch.tensor([think]), -torch.inf), dim=1)
        for row, one, token_id in zip(expected, content, chosen, strict=True):
            assert one.logprob == pytest.approx(float(row[token_id]), abs=1e-3)
            likeliest = [top.logprob for top in one.top_logprobs]
            assert likeliest == pytest.approx(row.topk(3).values.tolist(), abs=1e-3)
            assert request is drawn or one.top_logprobs[0].token == one.token
        told = b"".join(bytes(one.bytes or ()) for one in content).decode()
        assert told.strip("\n") == choice.message.content
        streamed = [
            one
            for chunk in client.chat.completions.create(**request, logprobs=True, top_logprobs=3, stream=True)
            for one in (chunk.choices[0].logprobs.content or () if chunk.choices[0].logprobs else ())
        ]
        assert [one.model_dump() for one in streamed] == [one.model_dump() for one in content]


def token_id_of(model: LoadedModel, written: bytes) -> int:
    """The token of these bytes, which in nano is one."""
    found = [one for one in range(model.tokenizer.vocab_size) if model.tokenizer.token_bytes(one) == written]
    return found[-1]  # the first may be a byte of the alphabet


def test_a_stop_text_takes_its_tokens_along(client: openai.OpenAI) -> None:
    asked: Any = {"model": "nano", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 30}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    assert whole
    stop = whole[7:12]
    choice = client.chat.completions.create(**asked, logprobs=True, stop=stop).choices[0]
    assert choice.logprobs is not None
    told = b"".join(bytes(one.bytes or ()) for one in choice.logprobs.content or ()).decode()
    shown = whole[: whole.index(stop)]
    assert choice.message.content == shown
    assert told.startswith(shown)
    assert stop not in told
    assert all(one.top_logprobs == [] for one in choice.logprobs.content or ())


def test_likeliest_tokens_without_logprobs_are_refused(served: Served) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    answer = post(served, "/v1/chat/completions", messages=messages, top_logprobs=2)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "top_logprobs"


def test_an_answer_that_has_begun_goes_on_as_the_model_would(
    client: openai.OpenAI, nano_model: LoadedModel
) -> None:
    asked: Any = {"model": "nano", "max_tokens": 40}
    question: Any = {"role": "user", "content": QUESTION}
    choice = client.chat.completions.create(**asked, messages=[question], logprobs=True).choices[0]
    assert choice.logprobs is not None
    tokens = [bytes(one.bytes or ()).decode() for one in choice.logprobs.content or ()]
    ids, num_compared = nano_model.tokenizer.encode("\n\n" + "".join(tokens)), 0
    for count in range(2, min(len(tokens), 14), 3):
        begun = "".join(tokens[:count])
        shorter = nano_model.tokenizer.encode("\n\n" + begun)
        if ids[: len(shorter)] != shorter:  # the letters are other tokens without those behind them
            continue
        num_compared += 1
        messages: list[Any] = [question, {"role": "assistant", "content": begun}]
        rest = client.chat.completions.create(**asked, messages=messages)
        said = rest.choices[0].message.content or ""
        assert (begun + said).startswith((choice.message.content or "")[: len(begun) + 20])
    assert num_compared >= 2


@pytest.mark.parametrize(
    ("message", "more", "words"),
    [
        ({"content": "So"}, {"reasoning_effort": "high"}, "thinking"),
        ({"reasoning_content": "So"}, {"reasoning_effort": "none"}, "of a thought to go on with"),
        ({"content": "{"}, {"response_format": {"type": "json_object"}}, "form"),
        ({"tool_calls": [{"function": {"name": "f"}}]}, {}, "what the tool gave"),
    ],
)
def test_what_cannot_go_on_is_refused(
    served: Served, message: dict[str, Any], more: dict[str, Any], words: str
) -> None:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", **message}]
    answer = post(served, "/v1/chat/completions", messages=messages, **more)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
