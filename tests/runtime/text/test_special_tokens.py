"""Tokens beside the pieces: which files name them, the ids they get, and files that disagree."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import PreTrainedTokenizer

from ernie_local.config import MediaTokens
from ernie_local.errors import ModelUnusable
from ernie_local.session.writer import check_same_model
from ernie_local.text.tokenizer import ErnieTokenizer
from tests.runtime.conftest import train_model

NUM_PIECES = 100_295
SPECIAL = (
    "<|IMAGE_PLACEHOLDER|>", "<|AUDIO_PLACEHOLDER|>", *(f"<|LOC_{index}|>" for index in range(1001)),
    "<|LOC_BEGIN|>", "<|LOC_END|>", "<|LOC_SEP|>", "<|CROP_COL_SEP|>", "<|CROP_ROW_SEP|>", "<|IMAGE_SEP|>",
    "<|IMAGE_START|>", "<|IMAGE_END|>", "<|VIDEO_START|>", "<|VIDEO_END|>",
    *(f"<|IMAGE_UNUSE:{index}|>" for index in range(2059)),
)  # fmt: skip
PUBLISHED = MediaTokens(100295, 101304, 101305, 100295, 101306, 101307)
NAMED = {
    "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>", "sep_token": "<|end_of_sentence|>", "mask_token": "<mask:1>",
}  # fmt: skip


class SlowTokenizer(PreTrainedTokenizer):  # type: ignore[misc, unused-ignore]
    """What the original code of the model has: SentencePiece inside transformers' own tokenizer."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **settings: Any) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        super().__init__(**settings)  # type: ignore[no-untyped-call]

    @property
    def vocab_size(self) -> int:
        return int(self.pieces.vocab_size())

    def get_vocab(self) -> dict[str, int]:
        pieces = {self.pieces.id_to_piece(index): index for index in range(self.vocab_size)}
        return {**pieces, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return list(self.pieces.encode(text, out_type=str))

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.pieces.id_to_piece(index))


def piece_record(text: str, score: float) -> bytes:
    """One entry of a SentencePiece file, shorter than 128 bytes."""
    body = bytes([0x0A, len(text.encode())]) + text.encode() + b"\x15" + struct.pack("<f", score)
    return bytes([0x0A, len(body)]) + body


def write(directory: Path, name: str, content: object) -> None:
    (directory / name).write_text(json.dumps(content))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many pieces and names as the published model has, the names in special_tokens_map.json alone."""
    directory = tmp_path_factory.mktemp("published")
    model = train_model(["<|begin_of_sentence|>", "<|end_of_sentence|>", "<mask:1>", *"0123456789"])
    few = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    more = [piece_record(f"\u2581w{index:x}", -1000.0 - index) for index in range(NUM_PIECES - few)]
    (directory / "tokenizer.model").write_bytes(model + b"".join(more))
    write(directory, "special_tokens_map.json", {**NAMED, "additional_special_tokens": list(SPECIAL)})
    return directory


@pytest.fixture
def small(tokenizer_directory: Path, tmp_path: Path) -> Path:
    """A copy of the tiny tokenizer.model, to which files are added."""
    (tmp_path / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    return tmp_path


@pytest.mark.slow
def test_a_list_of_the_published_size_gets_the_published_ids(published: Path) -> None:
    started = time.process_time()
    tokenizer = ErnieTokenizer.from_directory(published)
    # 0.6 s of computing here; a wide limit, as machines and their load differ.
    assert time.process_time() - started < 5
    assert tokenizer.vocab_size == NUM_PIECES + len(SPECIAL) == 103_367
    assert tokenizer.id_of("<|IMAGE_START|>") == 101304
    check_same_model(tokenizer, PUBLISHED)
    oracle = SlowTokenizer.from_pretrained(str(published))
    # Said by the published file. The model's card asks for transformers 4, which reads the list all the same.
    write(published, "tokenizer_config.json", {**NAMED, "additional_special_tokens": None})
    assert ErnieTokenizer.from_directory(published).id_of("<|IMAGE_START|>") == 101304
    assert [tokenizer.id_of(name) for name in SPECIAL] == oracle.convert_tokens_to_ids(list(SPECIAL))
    text = "User:  Picture 1:<|IMAGE_START|><|IMAGE_END|>w1f  w2 <|LOC_7|>\n\nAssistant: "
    assert tokenizer.encode(text) == oracle.encode(text, add_special_tokens=False)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text, allow_special=False))


def test_named_tokens_that_no_piece_is_come_before_the_list(small: Path) -> None:
    names = {**NAMED, "sep_token": "<sep>", "mask_token": {"content": "<mask>", "special": True}}
    write(
        small,
        "special_tokens_map.json",
        {**names, "additional_special_tokens": ["<|A|>", "<|B|>"]},
    )
    oracle = SlowTokenizer.from_pretrained(str(small))
    tokenizer = ErnieTokenizer.from_directory(small)
    for name in ("<sep>", "<mask>", "<|A|>", "<|B|>"):
        assert tokenizer.id_of(name) == oracle.convert_tokens_to_ids(name)
        assert tokenizer.id_of(name) in tokenizer.special_ids


def test_two_lists_are_one_after_the_other(small: Path) -> None:
    """As in transformers 4, which the model's card asks for."""
    first = ErnieTokenizer.from_directory(small).vocab_size
    write(small, "tokenizer_config.json", {"additional_special_tokens": ["<|Z|>", "<|A|>"]})
    write(small, "special_tokens_map.json", {"additional_special_tokens": ["<|A|>", {"content": "<|B|>"}]})
    tokenizer = ErnieTokenizer.from_directory(small)
    assert [tokenizer.id_of(f"<|{name}|>") for name in "ZAB"] == [first, first + 1, first + 2]


def test_listed_pieces_keep_their_ids_and_become_special(small: Path) -> None:
    before = ErnieTokenizer.from_directory(small)
    write(small, "special_tokens_map.json", {"additional_special_tokens": ["<|LOC_7|>", "User", "1"]})
    after = ErnieTokenizer.from_directory(small)
    assert after.vocab_size == before.vocab_size
    assert after.id_of("<|LOC_7|>") == before.id_of("<|LOC_7|>")
    assert after.id_of("User") in after.special_ids - before.special_ids
    assert after.id_of("1") not in after.special_ids
    assert after.special_ids.isdisjoint(after.encode("User 1", allow_special=False))


def test_three_files_that_agree(small: Path) -> None:
    first = ErnieTokenizer.from_directory(small).vocab_size
    write(small, "added_tokens.json", {"<|A|>": first, "<|B|>": first + 1})
    write(small, "tokenizer_config.json", {"added_tokens_decoder": {str(first + 1): {"content": "<|B|>"}}})
    write(small, "special_tokens_map.json", {"additional_special_tokens": ["<|B|>", "<|A|>", "<|C|>"]})
    tokenizer = ErnieTokenizer.from_directory(small)
    assert [tokenizer.id_of(f"<|{name}|>") for name in "ABC"] == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {
                "added_tokens.json": {"<|A|>": 900},
                "tokenizer_config.json": {"added_tokens_decoder": {"901": "<|A|>"}},
            },
            r"'<\|A\|>' has the id 900 in added_tokens\.json and 901 in tokenizer_config\.json",
        ),
        (
            {
                "added_tokens.json": {"<|A|>": 900},
                "tokenizer_config.json": {"added_tokens_decoder": {"900": "<|B|>"}},
            },
            r"the id 900 is '<\|A\|>' in added_tokens\.json and '<\|B\|>' in tokenizer_config\.json",
        ),
        (
            {"added_tokens.json": {"<|A|>": 900, "<|B|>": 900}},
            r"the id 900 is '<\|A\|>' in added_tokens\.json and '<\|B\|>' in added_tokens\.json",
        ),
        (
            {"special_tokens_map.json": {"additional_special_tokens": "<|A|>"}},
            "special_tokens_map.*not a list",
        ),
        ({"special_tokens_map.json": {"additional_special_tokens": [7]}}, "special_tokens_map.*holds 7"),
        ({"special_tokens_map.json": {"pad_token": {"text": "<pad>"}}}, "pad_token holds an object"),
    ],
)
def test_files_that_disagree_are_refused(small: Path, files: dict[str, object], message: str) -> None:
    for name, content in files.items():
        write(small, name, content)
    with pytest.raises(ModelUnusable) as caught:
        ErnieTokenizer.from_directory(small)
    assert caught.match(f"(?s).*{message}")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("added_tokens.json", {"<a>": ["x"] * 999}),
        ("added_tokens.json", {"x" * 9999: -1}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 999 + "x": "<a>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"text": "x" * 9999}}}),
    ],
)
def test_a_message_shows_no_more_than_a_terminal_does(small: Path, name: str, content: object) -> None:
    write(small, name, content)
    with pytest.raises(ModelUnusable, match=name) as caught:
        ErnieTokenizer.from_directory(small)
    assert len(caught.value.why) < 300


def test_a_list_that_runs_into_an_added_id_is_refused(small: Path) -> None:
    first = ErnieTokenizer.from_directory(small).vocab_size
    write(small, "added_tokens.json", {"<|A|>": first + 1})
    write(small, "special_tokens_map.json", {"additional_special_tokens": ["<|B|>"]})
    with pytest.raises(
        ModelUnusable, match=rf"<\|B\|>' would have the id {first + 1} .* which '<\|A\|>' has"
    ):
        ErnieTokenizer.from_directory(small)


def test_a_list_that_is_not_of_this_config_is_refused(published: Path, tmp_path: Path) -> None:
    """One name too few moves all tags behind it."""
    (tmp_path / "tokenizer.model").write_bytes((published / "tokenizer.model").read_bytes())
    shorter = [name for name in SPECIAL if name != "<|LOC_SEP|>"]
    write(tmp_path, "special_tokens_map.json", {"additional_special_tokens": shorter})
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    with pytest.raises(ModelUnusable, match=r"writes <\|IMAGE_START\|> as 101303, config.json as 101304"):
        check_same_model(tokenizer, PUBLISHED)
    no_start = [name if name != "<|IMAGE_START|>" else "<|OTHER|>" for name in SPECIAL]
    write(tmp_path, "special_tokens_map.json", {"additional_special_tokens": no_start})
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    with pytest.raises(ModelUnusable, match=r"<\|IMAGE_START\|> as no token(.|\n)*101304 is <\|OTHER\|>"):
        check_same_model(tokenizer, PUBLISHED)
