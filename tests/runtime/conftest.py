"""Fixtures around text and chats: two tiny tokenizers, trained here, and a model that says what it is told.
And the native module, once with each instruction set.

One tokenizer has its special tokens inside tokenizer.model, as nano does; the other in tokenizer_config.json.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import sentencepiece
import torch
from PIL import Image

from ernie_local.config import MediaTokens
from ernie_local.errors import Interrupted
from ernie_local.kernels.native import native_module
from ernie_local.media.patches import Patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.tokens import positions_3d
from ernie_local.model.decode_step import Mark
from ernie_local.model_files import ModelFiles
from ernie_local.session import Answer, Chat
from ernie_local.text.tokenizer import ErnieTokenizer

MODULE = native_module()


@pytest.fixture(params=[] if MODULE is None else MODULE.instruction_sets())
def kernels(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The native module, set to one instruction set."""
    assert MODULE is not None
    before = MODULE.instruction_set()
    MODULE.use_instruction_set(request.param)
    yield MODULE
    MODULE.use_instruction_set(before)


# After <unk>, <s> and </s> these get the ids 3, 4, 5, ...: those of the tiny models' config.
TAGS = (
    "<|begin_of_sentence|>", "<|end_of_sentence|>",
    "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>",
    "<|VIDEO_PLACEHOLDER|>", "<|VIDEO_START|>", "<|VIDEO_END|>", "<think>", "</think>", "<|LOC_7|>",
)  # fmt: skip
SENTENCES = (
    "User: Picture 1: What is the total of the invoice?",
    "Assistant: The total is 1,234.50 EUR on 2024-03-01.",
    "several   spaces  and (brackets) [here]; größer, naïve, 中文 測試",
    "You are a multimodal AI assistant called ERNIE developed by Baidu.\n",
)


def train_model(symbols: Sequence[str], vocab_size: int = 512) -> bytes:
    """A SentencePiece BPE model with byte fallback that keeps every space."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        user_defined_symbols=list(symbols),
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model alone, with tags and digits as user-defined symbols. Not to be written to."""
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "tokenizer.model").write_bytes(train_model([*TAGS, *"0123456789"]))
    return directory


@pytest.fixture(scope="session")
def declared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.model without tags; tokenizer_config.json declares them behind its last id, and digits."""
    directory = tmp_path_factory.mktemp("declared")
    model = train_model([])
    (directory / "tokenizer.model").write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    first_id = processor.vocab_size()
    declared = {
        str(first_id + index): {"content": tag, "special": tag != "<think>"} for index, tag in enumerate(TAGS)
    }
    for digit in "0123456789":
        token_id = processor.piece_to_id(digit)
        if token_id != processor.unk_id():
            declared[str(token_id)] = {"content": digit, "special": True}
    config = {"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": declared}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="session")
def tokenizer(tokenizer_directory: Path) -> ErnieTokenizer:
    """The tokenizer whose special tokens are inside tokenizer.model."""
    return ErnieTokenizer.from_directory(tokenizer_directory)


@pytest.fixture(scope="session")
def declared_tokenizer(declared_directory: Path) -> ErnieTokenizer:
    """The tokenizer whose special tokens tokenizer_config.json declares."""
    return ErnieTokenizer.from_directory(declared_directory)


@pytest.fixture(scope="session", params=["inside", "declared"])
def either_tokenizer(
    request: pytest.FixtureRequest, tokenizer: ErnieTokenizer, declared_tokenizer: ErnieTokenizer
) -> ErnieTokenizer:
    """Both tokenizers, one after the other."""
    return tokenizer if request.param == "inside" else declared_tokenizer


MEDIA = MediaTokens(image=5, image_start=6, image_end=7, video=8, video_start=9, video_end=10)
EXTRA_ROWS = 7  # rows of the logits that no token of the tokenizer has


class ScriptedEngine:
    """An engine that keeps ids and positions as the real one does, and whose logits follow a script."""

    chunk_tokens = 2048

    def __init__(self, tokenizer: ErnieTokenizer, context_size: int, media: MediaTokens = MEDIA) -> None:
        self.context_size = context_size
        self._media = media
        self.ids: list[int] = []
        self.prefills: list[tuple[list[int], list[Patches]]] = []
        self.before_decode: Callable[[int], None] = lambda token_id: None
        self.after_decode: Callable[[int], None] = lambda token_id: None
        self._next_positions = [0]  # by length
        self._script: Iterator[int] = iter(())
        self._tokenizer = tokenizer

    @property
    def length(self) -> int:
        return len(self.ids)

    def say(self, *texts: str, end: str = "</s>") -> None:
        """What the model says from the next logits on; without an end it goes on saying nothing new.

        Of several texts, each is the answer to another prompt.
        """
        script: list[int] = []
        for text in texts:
            ids = self._tokenizer.encode(text)
            end_id = self._tokenizer.id_of(end) if end else ids[-1]
            assert end_id is not None
            script += [*ids, end_id]
        self._script = iter([*script, *script[-1:] * 10_000])

    def rewind(self, mark: Mark) -> None:
        assert mark.length <= len(self.ids)
        assert mark.next_position == self._next_positions[mark.length], "the mark's position is wrong"
        del self.ids[mark.length :]
        del self._next_positions[mark.length + 1 :]

    def prefill(
        self,
        token_ids: Sequence[int],
        images: Sequence[Patches] = (),
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[str, int, int], None] | None = None,
        on_encoded: Callable[[int, torch.Tensor], None] | None = None,
        cuts: Sequence[int] = (),
    ) -> torch.Tensor:
        ids = list(token_ids)
        assert ids
        self.prefills.append((ids, list(images)))
        if should_stop is not None and should_stop():
            raise Interrupted("stopped", "asked", "again")
        if on_progress is not None:
            on_progress("tokens", 0, len(ids))
        grids = [image.grid for image in images]
        positions, following = positions_3d(ids, grids, self._media, 2, self._next_positions[-1])
        # The position of a text token is what the next position was before it.
        self._next_positions = [*self._next_positions[:-1], *positions[0].tolist(), following]
        return self._append(ids)

    def decode(self, token_id: int) -> torch.Tensor:
        self.before_decode(token_id)
        self._next_positions.append(self._next_positions[-1] + 1)
        logits = self._append([token_id])
        self.after_decode(token_id)
        return logits

    def _append(self, ids: list[int]) -> torch.Tensor:
        self.ids += ids
        assert len(self.ids) <= self.context_size, "the context is overrun"
        assert len(self._next_positions) == len(self.ids) + 1
        logits = torch.zeros(self._tokenizer.vocab_size + EXTRA_ROWS)
        logits[next(self._script)] = 10.0
        logits[self._tokenizer.encode("x")[0]] = 5.0
        logits[-EXTRA_ROWS:] = 100.0
        return logits


class ScriptedModel:
    """What a chat needs of a LoadedModel."""

    paging = results = None
    network = SimpleNamespace(dtype=torch.float32)

    def __init__(
        self,
        tokenizer: ErnieTokenizer,
        directory: Path,
        context_size: int = 2000,
        media: MediaTokens = MEDIA,
        processor: ImageProcessorConfig | None = None,
    ) -> None:
        self.directory = directory
        self.context_size = context_size
        config: Any = SimpleNamespace(
            media=media,
            media_ids=media,
            reads_images=True,
            text=SimpleNamespace(vocab_size=tokenizer.vocab_size),
            vision=(tower := SimpleNamespace(spatial_merge_size=2, temporal_merge_size=2)),
            tower=tower,
            eos_token_ids=(2,),
        )
        self.config = config
        self.files = ModelFiles(directory, config)
        self.files.tokenizer = self.tokenizer = tokenizer
        if processor is None:
            processor = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=28 * 28 * 16)
        self.files.image_processor = self.image_processor = processor

    def engine(self) -> ScriptedEngine:
        return ScriptedEngine(self.tokenizer, self.context_size, self.config.media)


class Talk:
    """A chat with the engine behind it at hand."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.engine = cast("ScriptedEngine", chat._sequence.engine)

    def ask(self, text: str | Sequence[Any], says: str, end: str = "</s>", **options: Any) -> Answer:
        """The answer to a question, read to its end."""
        self.engine.say(says, end=end)
        list(self.chat.ask(text, **options))
        answer = self.chat.last
        assert answer is not None
        return answer

    def cached_text(self) -> str:
        return self.chat.model.tokenizer.decode(self.engine.ids)


Talks = Callable[..., Talk]


@pytest.fixture
def talk(tokenizer: ErnieTokenizer, tmp_path: Path) -> Talks:
    """`talk(context_size=..., **chat options)`."""

    def make(context_size: int = 2000, **options: Any) -> Talk:
        model = ScriptedModel(tokenizer, tmp_path, context_size)
        return Talk(Chat(cast("Any", model), **options))

    return make


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A page of 100 x 60 pixels, which becomes 112 x 56: 8 tokens."""
    path = tmp_path / "page.png"
    Image.new("RGB", (100, 60), "white").save(path)
    return path
