"""Chats that find what earlier chats and processes computed: equal to the bit, and without the tower."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.loading import LoadedModel, load, loader
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from ernie_local.planner.fit import Placement
from ernie_local.reuse.cache_folder import CacheWarning
from ernie_local.session import Chat, Usage
from ernie_local.text.tokenizer import ErnieTokenizer
from tests.runtime.random_adapters import random_adapter, write_peft

if TYPE_CHECKING:
    from tests.conftest import Oracle, PackNano


class Counter:
    """Images that went through the tower, and tokens that went through the layers of any model."""

    def __init__(self) -> None:
        self.num_images = 0
        self.num_tokens = 0

    def taken(self) -> tuple[int, int]:
        """(images, tokens) since the last call."""
        taken = (self.num_images, self.num_tokens)
        self.num_images = self.num_tokens = 0
        return taken


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counter, encode, forward = Counter(), ErnieModel.encode_images, ErnieModel.forward

    def count_images(self: ErnieModel, images: Sequence[Patches], *more: Any) -> list[torch.Tensor]:
        counter.num_images += len(images)
        return encode(self, images, *more)

    def count_tokens(
        self: ErnieModel, hidden: torch.Tensor, *arguments: Any, **keywords: Any
    ) -> torch.Tensor:
        counter.num_tokens += hidden.shape[0]
        return forward(self, hidden, *arguments, **keywords)

    monkeypatch.setattr(ErnieModel, "encode_images", count_images)
    monkeypatch.setattr(ErnieModel, "forward", count_tokens)
    return counter


@pytest.fixture(autouse=True)
def no_cache_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CacheWarning)
        yield


@pytest.fixture(scope="module")
def directory(
    make_oracle: Callable[..., Oracle],
    tokenizer: ErnieTokenizer,
    tokenizer_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A whole model with a tokenizer and images of up to 16 tokens. Not to be written to."""
    directory = tmp_path_factory.mktemp("kept_model")
    make_oracle(5, {"vocab_size": tokenizer.vocab_size}).save(directory)
    (directory / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    limits = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 16}
    (directory / "preprocessor_config.json").write_text(json.dumps(limits))
    return directory


Open = Callable[..., LoadedModel]


@pytest.fixture
def open_model(directory: Path, tmp_path: Path) -> Open:
    """Loads the model as a new process would, with the cache folder of the test."""

    def make(model: Path = directory, **options: Any) -> LoadedModel:
        chosen: dict[str, Any] = {"cache": tmp_path / "kept", "context_size": 400} | options
        return load(model, **chosen)

    return make


def picture(color: str = "red", dot: tuple[int, int] = (3, 5)) -> Image.Image:
    image = Image.new("RGB", (90, 60), color)
    image.putpixel(dot, (0, 255, 0))
    return image


def ask(chat: Chat, text: str, images: Sequence[Any] = (), num_tokens: int = 6, **options: Any) -> Usage:
    list(chat.ask(text, images, max_tokens=num_tokens, **options))
    assert chat.last is not None
    return chat.last.usage


def next_logits(chat: Chat) -> torch.Tensor:
    """What the model says next, on top of all that the sequence has."""
    return chat._sequence.decode(40)


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("chunk_tokens", [7, 2048])
def test_a_second_process_computes_the_question_alone(
    open_model: Open, counter: Counter, tmp_path: Path, kv_dtype: str, chunk_tokens: int
) -> None:
    options = {"kv_dtype": kv_dtype, "chunk_tokens": chunk_tokens}
    ask(Chat(open_model(**options)), "What is the total?", [picture()])
    counter.taken()
    chat = Chat(open_model(**options))
    usage = ask(chat, "Who wrote this page?", [picture()], num_tokens=1)
    assert usage.restored_tokens == usage.cached_tokens > usage.image_tokens == 6
    assert counter.taken() == (0, usage.prompt_tokens - usage.restored_tokens)
    anew = Chat(open_model(**options, cache=tmp_path / "another"))
    assert ask(anew, "Who wrote this page?", [picture()], num_tokens=1).restored_tokens == 0
    assert torch.equal(next_logits(chat), next_logits(anew))
    before, after = (list(one._sequence.engine.read_rows(0, usage.prompt_tokens)) for one in (anew, chat))
    assert all(map(torch.equal, before, after))


def test_a_continued_chat_goes_on_as_if_it_had_not_ended(
    open_model: Open, counter: Counter, tmp_path: Path
) -> None:
    picture().save(tmp_path / "page.png")
    chat = Chat(open_model())
    ask(chat, "What is the total?", [tmp_path / "page.png"])
    ask(chat, "And the date?", thinking=True, thinking_budget=3)
    chat.save(tmp_path / "chat.json")
    counter.taken()
    shutil.copytree(tmp_path / "kept", tmp_path / "copied")  # neither is to find what the other one adds
    again = Chat.load(tmp_path / "chat.json", open_model(cache=tmp_path / "copied"))
    usage = ask(again, "Who wrote it?", num_tokens=1)
    assert counter.taken() == (0, usage.prompt_tokens - usage.restored_tokens)
    here = ask(chat, "Who wrote it?", num_tokens=1)
    assert here.restored_tokens == 0
    assert usage.cached_tokens == usage.restored_tokens == here.cached_tokens > usage.image_tokens
    assert torch.equal(next_logits(again), next_logits(chat))


def test_in_one_chat_an_image_is_looked_at_and_computed_once(
    open_model: Open, counter: Counter, tmp_path: Path
) -> None:
    picture().save(tmp_path / "page.png")
    chat = Chat(open_model(cache=None))
    first = ask(chat, "What is the total?", [tmp_path / "page.png"])
    assert counter.taken()[0] == 1
    ask(chat, "And the date?")
    chat.undo()
    ask(chat, "And the author?")
    list(chat.retry(max_tokens=6))
    edited = chat.history[0].question[0]
    list(chat.send([type(edited)("user", (*edited.images, "What else is there?"))], max_tokens=6))
    num_images, num_tokens = counter.taken()
    assert num_images == 0
    assert num_tokens < 4 * first.prompt_tokens
    chat.save(tmp_path / "chat.json")
    # Another chat of the same model: the tokens are computed, the tower is not run.
    usage = ask(Chat.load(tmp_path / "chat.json", chat.model), "Who?")
    assert (counter.taken()[0], usage.reused_images, usage.restored_tokens) == (0, 1, 0)


def test_features_from_memory_and_folder_give_the_same_bits(open_model: Open, counter: Counter) -> None:
    model = open_model()
    chats = [Chat(model, "Be brief."), Chat(model, "Be brief."), Chat(open_model(), "Be long.")]
    ask(Chat(model), "What?", [picture()])
    assert counter.taken()[0] == 1
    usages = [ask(chat, "What?", [picture()]) for chat in chats]
    assert counter.taken()[0] == 0
    assert [usage.reused_images for usage in usages] == [1, 0, 1]  # of the second chat all tokens were there
    anew = Chat(open_model(cache=None), "Be long.")
    ask(anew, "What?", [picture()])
    keys = [one.content_key for one in anew.history[0].images]
    for model in (chats[2].model, anew.model):
        assert model.results is not None
    found = [
        one.model.results.find_features(keys[0], (6, one.model.config.text.hidden_size))
        for one in (chats[2], anew)
        if one.model.results is not None
    ]
    assert found[0] is not None
    assert found[1] is not None
    assert torch.equal(found[0], found[1])


def test_what_differs_never_hits(
    open_model: Open, directory: Path, counter: Counter, tmp_path: Path, pack_nano: PackNano
) -> None:
    ask(Chat(open_model()), "What?", [picture()])
    counter.taken()
    changed = tmp_path / "changed"
    shutil.copytree(directory, changed)
    weights = changed / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    others = [
        Chat(open_model(kv_dtype="bfloat16")),
        Chat(open_model(kv_dtype="int8")),
        Chat(open_model(), "Another system text."),
        Chat(open_model(changed)),
    ]
    for chat in others[:3]:
        # Features depend on none of this, keys and values do.
        usage = ask(chat, "What?", [picture()])
        assert (usage.restored_tokens, usage.reused_images) == (0, 1)
    usage = ask(others[3], "What?", [picture()])
    assert (usage.restored_tokens, usage.reused_images, counter.taken()[0]) == (0, 0, 1)
    for other in (picture(dot=(3, 6)), picture("blue"), picture().resize((90, 61))):
        usage = ask(Chat(open_model()), "What?", [other])
        # What stands before the image is the same.
        assert (usage.restored_tokens, usage.reused_images, counter.taken()[0]) == (0, 0, 1)
    smaller = json.loads((directory / "preprocessor_config.json").read_text()) | {"max_pixels": 28 * 28 * 4}
    (changed / "preprocessor_config.json").write_text(json.dumps(smaller))
    shutil.copy(directory / "model.safetensors", weights)
    usage = ask(Chat(open_model(changed)), "What?", [picture()])
    assert (usage.restored_tokens, usage.reused_images, counter.taken()[0]) == (0, 0, 1)


def test_another_adapter_or_scale_never_hits(open_model: Open, directory: Path, tmp_path: Path) -> None:
    config = read_config(directory)
    adapter = random_adapter(config, r"layers\..*_proj\.weight")
    lora = write_peft(tmp_path / "adapter", adapter, config, rank=3)
    for number, given in enumerate(([], [lora], [f"{lora}:0.5"], [lora, lora])):
        usage = ask(Chat(open_model(lora=given)), "What?", [picture()])
        assert (usage.restored_tokens, usage.reused_images) == (0, 0)
        chat = Chat(open_model(lora=given))
        anew = Chat(open_model(lora=given, cache=tmp_path / f"empty{number}"))
        assert ask(chat, "Which one?", [picture()], num_tokens=1).restored_tokens > 6
        ask(anew, "Which one?", [picture()], num_tokens=1)
        assert torch.equal(next_logits(chat), next_logits(anew))


def test_a_copy_of_the_model_hits(open_model: Open, directory: Path, tmp_path: Path) -> None:
    ask(Chat(open_model()), "What?", [picture()])
    shutil.copytree(directory, tmp_path / "copy")
    assert ask(Chat(open_model(tmp_path / "copy")), "Which?", [picture()]).restored_tokens > 6


def test_a_quantized_model_never_hits_its_source(
    open_model: Open, packed_nano: Path, counter: Counter
) -> None:
    for model in (NANO_DIRECTORY, packed_nano):
        usage = ask(Chat(open_model(model)), "What?", [picture()], num_tokens=1)
        assert (usage.restored_tokens, usage.reused_images, counter.taken()[0]) == (0, 0, 1)
        chat = Chat(open_model(model))
        assert ask(chat, "Which one is it?", [picture()], num_tokens=1).restored_tokens > 6
        anew = Chat(open_model(model, cache=None))
        ask(anew, "Which one is it?", [picture()], num_tokens=1)
        assert counter.taken()[0] == 1


def test_another_instruction_set_or_number_of_threads_never_hits(
    open_model: Open, native_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = native_kernels.instruction_sets()
    for name in sets:
        native_kernels.use_instruction_set(name)
        assert ask(Chat(open_model()), "What?", [picture()]).restored_tokens == 0
        assert ask(Chat(open_model()), "Which?", [picture()]).restored_tokens > 6
    chat = Chat(open_model())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    usage = ask(chat, "What?", [picture()])
    assert (usage.restored_tokens, usage.reused_images) == (0, 0)


def test_two_images_and_a_document_are_one_group(open_model: Open, counter: Counter) -> None:
    pages = [picture("red"), picture("blue"), picture("white")]
    ask(Chat(open_model()), "What is on them?", pages)
    counter.taken()
    usage = ask(Chat(open_model()), "Which is red of these?", pages)
    assert usage.restored_tokens > usage.image_tokens == 18
    assert counter.taken()[0] == 0
    # Fewer of them are another beginning, whose features are known.
    usage = ask(Chat(open_model()), "Which is red of these?", pages[:2])
    assert (usage.restored_tokens, usage.reused_images, counter.taken()[0]) == (0, 2, 0)


def test_paged_experts_leave_no_memory_to_features(
    open_model: Open, packed_nano: Path, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = open_model(packed_nano, cache=None)
    assert resident.results is not None
    assert resident.results.memory.limit_bytes == 64 << 20
    with monkeypatch.context() as patched:
        patched.setattr(loader, "place", lambda *_: Placement(64 << 20, 2048))
        paged = open_model(packed_nano)
    assert paged.paging is not None
    assert paged.results is not None
    assert paged.results.memory.limit_bytes == 0
    ask(Chat(paged), "What?", [picture()], num_tokens=1)
    assert paged.results.memory.num_bytes == 0
    counter.taken()
    usage = ask(Chat(paged, "Be brief."), "What?", [picture()], num_tokens=1)
    assert (usage.reused_images, counter.taken()[0]) == (1, 0)  # from the folder
    # Experts give the same bits wherever they are.
    assert ask(Chat(open_model(packed_nano)), "Which?", [picture()], num_tokens=1).restored_tokens > 6


def test_a_long_text_is_found_in_whole_chunks(open_model: Open, counter: Counter, tmp_path: Path) -> None:
    text = "What is the total of the invoice? " * 8
    ask(Chat(open_model(chunk_tokens=16)), text + "One?")
    counter.taken()
    chat = Chat(open_model(chunk_tokens=16))
    usage = ask(chat, text + "And another one?", num_tokens=1)
    assert usage.restored_tokens % 16 == 0
    assert usage.restored_tokens > 32
    assert counter.taken() == (0, usage.prompt_tokens - usage.restored_tokens)
    anew = Chat(open_model(chunk_tokens=16, cache=None))
    ask(anew, text + "And another one?", num_tokens=1)
    assert torch.equal(next_logits(chat), next_logits(anew))
    # As large chunks would be computed otherwise, they are others.
    assert ask(Chat(open_model(chunk_tokens=32)), text + "And another one?").restored_tokens == 0


def test_a_folder_that_loses_an_entry_on_the_way_costs_nothing_but_time(
    open_model: Open, counter: Counter, tmp_path: Path
) -> None:
    first = Chat(open_model(chunk_tokens=7))
    ask(first, "What is the total?", [picture()], num_tokens=1)
    names = [path for path in (tmp_path / "kept").iterdir() if path.name.startswith("prefix")]
    for path in names:
        content = path.read_bytes()
        for damaged in (content[:-1], b"", content[:300] + b"!" + content[301:]):
            path.write_bytes(damaged)
            chat = Chat(open_model(chunk_tokens=7))
            with pytest.warns(CacheWarning, match="it is computed again"):
                ask(chat, "What is the total?", [picture()], num_tokens=1)
            assert torch.equal(next_logits(chat), logits_of(first))
            assert path.read_bytes() == content


def logits_of(chat: Chat) -> torch.Tensor:
    """As `next_logits`, with the chat as it was before."""
    engine = chat._sequence.engine
    mark = engine.mark()
    logits = engine.decode(40)
    engine.rewind(mark)
    return logits


def test_an_interrupted_answer_leaves_the_image(open_model: Open, counter: Counter) -> None:
    chat = Chat(open_model())
    pieces = chat.ask("What is the total?", [picture()])
    next(pieces)
    pieces.close()
    counter.taken()
    assert ask(Chat(open_model()), "Who?", [picture()]).restored_tokens > 6
    assert counter.taken()[0] == 0


def test_a_large_model_is_hashed_after_its_first_answer(
    open_model: Open, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ernie_local.reuse import model_hash

    monkeypatch.setattr(model_hash, "_HASHED_AT_ONCE", 0)
    monkeypatch.setattr(model_hash, "_SETTLED_SECONDS", 0.0)
    read: list[int] = []
    chat = Chat(open_model())
    chat.on_progress = lambda unit, done, _: read.append(done) if unit == "model" else None
    ask(chat, "What?", [picture()])
    assert read
    read.clear()
    counter.taken()
    again = Chat(open_model(), "Be brief.")
    again.on_progress = chat.on_progress
    usage = ask(again, "What?", [picture()])
    assert (usage.reused_images, counter.taken()[0], read) == (1, 0, [])


def test_who_leaves_does_not_wait_for_a_hash(open_model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from ernie_local.reuse import model_hash

    monkeypatch.setattr(model_hash, "_HASHED_AT_ONCE", 0)
    chat = Chat(open_model())
    pieces = chat.ask("What is the total?", [picture()])
    next(pieces)
    with pytest.warns(CacheWarning, match="stopped before its files were hashed"):
        pieces.close()
    assert chat.history
    assert chat.model.results is not None
    assert chat.model.results.folder is not None
    assert chat.model.results.folder.names() == []


def test_pixels_that_a_file_has_are_not_kept(open_model: Open, tmp_path: Path) -> None:
    picture().save(tmp_path / "page.png")
    for _ in range(2):  # computed, then restored
        chat = Chat(open_model())
        ask(chat, "What?", [tmp_path / "page.png"])
        (image,) = chat.history[0].images
        assert (image._image, image._patches) == (None, None)
    assert chat.last is not None
    assert chat.last.usage.restored_tokens
    ask(chat, "What?", [picture()])
    assert chat.history[1].images[0].patches().num_tokens == 6


def test_files_that_changed_under_a_loaded_model_are_told(
    open_model: Open, directory: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "model")
    chat = Chat(open_model(tmp_path / "model"))
    (tmp_path / "model" / "config.json").touch()
    with pytest.warns(CacheWarning, match="its files have changed since it was loaded"):
        ask(chat, "What?", [picture()])
    assert not [path for path in (tmp_path / "kept").iterdir() if path.name.startswith("prefix")]
