"""Chats over a real network with random weights: the cache of a chat against a computation from scratch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from ernie_local.errors import ModelUnusable
from ernie_local.loading import LoadedModel, load
from ernie_local.sampling import SamplingOptions
from ernie_local.session import Chat
from ernie_local.text.tokenizer import ErnieTokenizer

if TYPE_CHECKING:
    from tests.conftest import Oracle


@pytest.fixture(scope="module")
def model(
    make_oracle: Callable[..., Oracle],
    tokenizer: ErnieTokenizer,
    tokenizer_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> LoadedModel:
    """A whole model directory, loaded; prompts are cut into chunks of 7 tokens, and images with them."""
    directory = tmp_path_factory.mktemp("chat_model")
    make_oracle(3, {"vocab_size": tokenizer.vocab_size}).save(directory)
    (directory / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    limits = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 16}
    (directory / "preprocessor_config.json").write_text(json.dumps(limits))
    return load(directory, context_size=400, chunk_tokens=7)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Two images that are not alike."""
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, color in zip(paths, ("red", "blue"), strict=True):
        image = Image.new("RGB", (90, 60), color)
        image.putpixel((3, 5), (0, 255, 0))
        image.save(path)
    return paths


def answer(chat: Chat, text: str, **options: Any) -> str:
    return "".join(piece.text for piece in chat.ask(text, max_tokens=12, **options))


def test_greedy_answer_is_the_argmax_of_teacher_forced_logits(model: LoadedModel, images: list[Path]) -> None:
    chat = Chat(model)
    text = answer(chat, "What is the total?", images=images)
    prompt = (
        "<|begin_of_sentence|>User: Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
        "Picture 2:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>What is the total?"
        "\nAssistant: <think>\n\n</think>\n\n"
    )
    ids = model.tokenizer.encode(prompt)
    chosen: list[int] = []
    think_id = model.tokenizer.id_of("<think>")
    assert think_id is not None
    for _ in range(12):
        logits = model.logits([*ids, *chosen], images=images)[-1]
        logits[think_id] = -100.0
        chosen.append(int(logits.argmax()))
    hidden = model.tokenizer.special_ids
    assert text.strip("\n") == model.tokenizer.decode(i for i in chosen if i not in hidden).strip("\n")
    assert chat.last is not None
    assert chat.last.usage.prompt_tokens == len(ids) + chat.last.usage.image_tokens - 2


def test_a_cached_conversation_goes_on_as_one_computed_anew(
    model: LoadedModel, images: list[Path], tmp_path: Path
) -> None:
    chat = Chat(model, system="Be brief.")
    answer(chat, "First?", images=images[:1])
    answer(chat, "Second?", thinking=True, thinking_budget=4)
    chat.save(tmp_path / "chat.json")
    anew = Chat.load(tmp_path / "chat.json", model)
    for each in (chat, anew):
        answer(each, "Third?", images=images[1:])
    assert chat.last is not None
    assert anew.last is not None
    assert chat.last.usage.cached_tokens > 0
    assert anew.last.usage.cached_tokens == 0
    assert chat.last.text == anew.last.text
    first, second = (each._sequence.decode(40) for each in (chat, anew))
    assert (first - second).abs().max() <= 1e-4 * (first.max() - first.min())


def test_undo_and_ask_again_gives_the_same(model: LoadedModel, images: list[Path]) -> None:
    chat = Chat(model, sampling=SamplingOptions(temperature=1.0, seed=7))
    answer(chat, "First?", images=images[:1])
    said = answer(chat, "Second?", images=images)
    chat.undo()
    assert answer(chat, "Something else?") != said
    chat.undo()
    assert answer(chat, "Second?", images=images) == said


def test_two_chats_of_one_model_do_not_meet(model: LoadedModel) -> None:
    one, two = Chat(model), Chat(model)
    streams = [one.ask("What?", max_tokens=12), two.ask("Which?", max_tokens=12)]
    mixed: list[list[str]] = [[], []]
    for _ in range(20):
        for index, stream in enumerate(streams):
            mixed[index] += [piece.text for piece in [next(stream, None)] if piece is not None]
    assert "".join(mixed[0]) == answer(Chat(model), "What?")
    assert "".join(mixed[1]) == answer(Chat(model), "Which?")


def test_a_model_without_a_tokenizer_says_so(tiny_model: LoadedModel) -> None:
    with pytest.raises(ModelUnusable, match=r"tokenizer\.model is missing"):
        Chat(tiny_model)
