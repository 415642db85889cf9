"""The tokenizer against sentencepiece and transformers, and what must hold for any text."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.text.sentencepiece_file import (
    FilePiece,
    SentencePieceKind,
    SpaceRules,
    read_model_file,
    with_space_rules,
)
from ernie_local.text.tokenizer import ErnieTokenizer, StreamDecoder

FRAGMENTS = (
    "The total is", " ", "  ", "\n", "\t", "1,234.50", "ﬁ", "größer", "中文", "😀", "e\u0301", "\x00", "\x7f",
    "<", "<think>", "</think>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|end_of_sentence|>", "</s>", "<unk>",
    "<0x0A>", "think>", "User:", "Assistant: ", "\u00a0", "\u200b",
)  # fmt: skip
# The format itself writes a space as U+2581, so that one character does not come back.
any_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
any_mixture = st.lists(st.one_of(st.sampled_from(FRAGMENTS), any_text), max_size=8).map("".join)


@given(text=any_mixture)
def test_any_text_comes_back(either_tokenizer: ErnieTokenizer, text: str) -> None:
    for allow_special in (True, False):
        assert either_tokenizer.decode(either_tokenizer.encode(text, allow_special)) == text


@given(text=any_mixture)
def test_no_text_makes_a_special_token_unless_allowed(either_tokenizer: ErnieTokenizer, text: str) -> None:
    assert either_tokenizer.special_ids.isdisjoint(either_tokenizer.encode(text, allow_special=False))


@given(text=any_mixture)
def test_equals_sentencepiece(tokenizer: ErnieTokenizer, tokenizer_directory: Path, text: str) -> None:
    """Tags and digits are inside the model here, so that the library alone splits as we do."""
    path = str(tokenizer_directory / "tokenizer.model")
    pieces = sentencepiece.SentencePieceProcessor(model_file=path)
    if "</s>" in text or "<unk>" in text or "<0x0A>" in text:
        return  # the library never reads control pieces out of a text
    ids = pieces.encode(text)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == pieces.decode(ids)


@pytest.fixture(scope="module")
def llama_tokenizer(tokenizer_directory: Path) -> Any:
    """transformers' LlamaTokenizer over the same vocabulary, without begin token and prefix space."""
    from tokenizers import AddedToken
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    file_pieces, _ = read_model_file(proto)
    vocab = {piece.text: token_id for token_id, piece in enumerate(file_pieces)}
    normal = [piece.text for piece in file_pieces if piece.kind is SentencePieceKind.NORMAL]
    scores = {text: pieces.get_score(vocab[text]) for text in normal}
    llama = LlamaTokenizer(
        vocab=vocab, merges=generate_merges(vocab, scores), add_prefix_space=False, add_bos_token=False
    )
    for piece in file_pieces:
        if piece.kind is SentencePieceKind.USER_DEFINED:
            llama.add_tokens([AddedToken(piece.text, normalized=False, special=len(piece.text) > 1)])
    return llama


@settings(max_examples=60)
@given(text=any_mixture)
def test_equals_transformers(tokenizer: ErnieTokenizer, llama_tokenizer: Any, text: str) -> None:
    if "<0x" in text or "\x00" in text:
        return  # transformers reads a byte piece out of a text that spells it
    ids = llama_tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == llama_tokenizer.decode(ids, skip_special_tokens=False)


@given(text=any_mixture, data=st.data())
def test_stream_gives_the_same_text_and_only_whole_characters(
    either_tokenizer: ErnieTokenizer, text: str, data: st.DataObject
) -> None:
    ids = either_tokenizer.encode(text)
    if ids:
        ids = ids[: data.draw(st.integers(1, len(ids)))]  # it may end inside a character
    decoder = StreamDecoder(either_tokenizer)
    pieces = [decoder.push(token_id) for token_id in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + decoder.finish() == either_tokenizer.decode(ids)


def test_stream_holds_the_bytes_of_an_unfinished_character_back(tokenizer: ErnieTokenizer) -> None:
    decoder = StreamDecoder(tokenizer)
    ids = tokenizer.encode("😀")
    assert [decoder.push(token_id) for token_id in ids] == ["", "", "", "😀"]


def test_stream_replaces_a_character_that_never_ends(tokenizer: ErnieTokenizer) -> None:
    broken = tokenizer.encode("😀")[:2]
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token_id) for token_id in [*broken, *tokenizer.encode("a")]]
    assert "".join(pieces) == tokenizer.decode([*broken, *tokenizer.encode("a")]) == "\ufffda"


def test_stream_leaves_hidden_tokens_out(tokenizer: ErnieTokenizer) -> None:
    emoji = tokenizer.encode("😀")
    end = tokenizer.id_of("<|end_of_sentence|>")
    assert end is not None
    decoder = StreamDecoder(tokenizer, hidden_ids={end})
    # Not even between the bytes of a character does a hidden token show.
    assert "".join(decoder.push(token_id) for token_id in [emoji[0], end, *emoji[1:], end]) == "😀"


def test_spaces_newlines_and_digits(either_tokenizer: ErnieTokenizer) -> None:
    assert either_tokenizer.encode("  a") != either_tokenizer.encode(" a") != either_tokenizer.encode("a")
    assert either_tokenizer.encode("\n") == [either_tokenizer.id_of("<0x0A>")]
    assert len(either_tokenizer.encode("2024")) == 4
    assert either_tokenizer.encode("") == []


RULES = [SpaceRules(prefix, removal) for prefix in (False, True) for removal in (False, True)]


# Further fields of the file: spaces stay as they are in pieces; the space before a text comes behind it.
KEEPS_SPACES, PREFIX_BEHIND = b"\x1a\x02\x28\x00", b"\x12\x03\xc0\x01\x01"


@pytest.mark.parametrize("more", [b"", KEEPS_SPACES, PREFIX_BEHIND])
@pytest.mark.parametrize("rules", RULES)
@settings(max_examples=30)
@given(text=any_mixture)
def test_rules_of_the_file_for_spaces_are_followed(
    tokenizer_directory: Path, rules: SpaceRules, more: bytes, text: str
) -> None:
    """As the original code does, which hands each text between tags to the library."""
    proto = with_space_rules((tokenizer_directory / "tokenizer.model").read_bytes(), rules) + more
    library = sentencepiece.SentencePieceProcessor(model_proto=proto)
    if "<" in text:
        return  # tags are split off, or spelled out
    assert tokenizer_of(proto).encode(text) == library.encode(text)
    assert tokenizer_of(proto).encode(text, allow_special=False) == library.encode(text)


@cache
def tokenizer_of(proto: bytes) -> ErnieTokenizer:
    return ErnieTokenizer(proto)


def test_rules_that_change_spaces_are_told(tokenizer_directory: Path) -> None:
    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    assert ErnieTokenizer(proto).notes == ()
    both = with_space_rules(proto, SpaceRules(prefix=True, removal=True))
    adds, removes = ErnieTokenizer(both).notes
    assert "adds a space before each text" in adds
    assert "removes extra spaces" in removes
    # A file without these fields has both rules.
    assert read_model_file(b"\x0a\x03\x0a\x01a") == (
        [FilePiece("a", SentencePieceKind.NORMAL)],
        SpaceRules(True, True),
    )


def test_the_config_may_take_a_prefix_away_and_says_so(tokenizer_directory: Path, tmp_path: Path) -> None:
    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    with_prefix = with_space_rules(proto, SpaceRules(prefix=True, removal=False))
    (tmp_path / "tokenizer.model").write_bytes(with_prefix)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": false}')
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    assert tokenizer.encode("a  b") == ErnieTokenizer(proto).encode("a  b")
    assert ["none is added" in note for note in tokenizer.notes] == [True]
    (tmp_path / "tokenizer.model").write_bytes(proto)
    (tmp_path / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    assert tokenizer.encode("a  b") == ErnieTokenizer(proto).encode("a  b")
    assert ["none is added" in note for note in tokenizer.notes] == [True]


def test_special_tokens_in_text(either_tokenizer: ErnieTokenizer) -> None:
    end_id = either_tokenizer.id_of("<|IMAGE_END|>")
    assert end_id in either_tokenizer.special_ids
    assert either_tokenizer.encode("a<|IMAGE_END|>b").count(end_id or -1) == 1
    spelled = either_tokenizer.encode("a<|IMAGE_END|>b", allow_special=False)
    assert end_id not in spelled
    assert either_tokenizer.decode(spelled) == "a<|IMAGE_END|>b"


def test_a_tag_that_normalization_makes_is_spelled_out() -> None:
    """Fullwidth brackets become plain ones under NFKC, so that the tag is there only after normalization."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a plain text of some words"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=290,
        hard_vocab_limit=False,
        user_defined_symbols=["<think>"],
        byte_fallback=True,
        normalization_rule_name="nfkc",
        add_dummy_prefix=False,
        minloglevel=2,
    )
    tokenizer = ErnieTokenizer(model.getvalue())
    disguised = "\uff1cthink\uff1e"
    assert tokenizer.id_of("<think>") not in tokenizer.encode(disguised, allow_special=False)
    assert tokenizer.decode(tokenizer.encode(disguised, allow_special=False)) == "<think>"


def test_declared_tokens(declared_tokenizer: ErnieTokenizer, declared_directory: Path) -> None:
    think_id = declared_tokenizer.id_of("<think>")
    # Declared as not special, and still a tag that no user may write; a digit is text whatever is declared.
    assert think_id in declared_tokenizer.special_ids
    assert declared_tokenizer.id_of("1") not in declared_tokenizer.special_ids
    assert declared_tokenizer.vocab_size == (think_id or 0) + 3
    assert declared_tokenizer.decode([think_id or 0]) == "<think>"


def test_tokens_that_the_settings_name_are_special(declared_directory: Path, tmp_path: Path) -> None:
    """Ordinary pieces of the vocabulary and ordinary added tokens: by every key and in both files."""
    proto = (declared_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(proto)
    learned, other = [
        piece.text
        for piece in read_model_file(proto)[0]
        if piece.kind is SentencePieceKind.NORMAL and piece.text.isalpha() and len(piece.text) > 2
    ][:2]
    ordinary = ["[SEP]", "[MASK]", "[SYS]", "[A]", "[B]"]
    added = {text: 600 + index for index, text in enumerate([*ordinary, "[TEXT]"])}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    config = {
        "sep_token": "[SEP]",
        "mask_token": {"content": "[MASK]", "special": True},
        "pad_token": None,
        "add_bos_token": True,
        "cls_token": learned,
        "extra_special_tokens": {"sys": "[SYS]"},
        "bos_token": "1",
        "eos_token": "not a piece",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    lists = {"additional_special_tokens": ["[A]", {"content": "[B]"}]}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(lists))
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    assert {tokenizer.id_of(learned), *range(600, 605)} <= tokenizer.special_ids
    assert tokenizer.special_ids.isdisjoint({605, tokenizer.id_of("1"), tokenizer.id_of(other)})
    text = "".join(ordinary)
    assert tokenizer.encode(text) == list(range(600, 605))
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text, allow_special=False))


@pytest.mark.parametrize("piece", ["\u2581", "e", "7", "<0xC3>"])
def test_a_token_in_place_of_a_piece_of_texts_is_refused(
    tokenizer_directory: Path, tmp_path: Path, piece: str
) -> None:
    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(proto)
    token_id = [one.text for one in read_model_file(proto)[0]].index(piece)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": token_id}))
    with pytest.raises(ModelUnusable, match=rf"the id {token_id} is .* in tokenizer.model and '<\|new\|>'"):
        ErnieTokenizer.from_directory(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({piece.replace("\u2581", " "): token_id}))
    if piece != "<0xC3>":  # a byte is written as no text
        assert ErnieTokenizer.from_directory(tmp_path).decode([token_id]) == piece.replace("\u2581", " ")


def test_the_old_name_of_a_tag_stays_text(tokenizer_directory: Path, tmp_path: Path) -> None:
    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(proto)
    token_id = [one.text for one in read_model_file(proto)[0]].index("<think>")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|new|>": token_id}))
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    assert tokenizer.encode("<|new|>") == [token_id]
    for text in ("a <think> b", "<|new|>"):
        ids = tokenizer.encode(text, allow_special=False)
        assert tokenizer.decode(ids) == text
        assert tokenizer.special_ids.isdisjoint(ids)


def test_both_files_with_ids_are_read(declared_directory: Path, tmp_path: Path) -> None:
    model = (declared_directory / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    added = {"<|A|>": 600, "plain words": 601, "<|C|>": 602, "plain": 603}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    declared = {"added_tokens_decoder": {"602": {"content": "<|C|>", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(declared))
    tokenizer = ErnieTokenizer.from_directory(tmp_path)
    assert tokenizer.encode("<|A|>plain words<|C|>") == [600, 601, 602]
    # A declared token that is no tag is text, and so stays one token in a user's words.
    assert tokenizer.encode("plain words", allow_special=False) == [601]
    assert {600, 602} <= tokenizer.special_ids
    assert 601 not in tokenizer.special_ids
    # Of two tokens with the same beginning the longer one is meant.
    assert tokenizer.encode("plainplain words") == [603, 601]
    assert tokenizer.vocab_size == 604


def test_ids_of_no_piece_are_replaced(tokenizer: ErnieTokenizer) -> None:
    assert tokenizer.decode([10**6]) == "\ufffd"


def test_half_a_surrogate_pair_is_refused_by_name(tokenizer: ErnieTokenizer) -> None:
    with pytest.raises(UsageError, match=r"position 2 of 3(.|\n)*U\+DC80"):
        tokenizer.encode("ab\udc80")


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"tokenizer\.model is missing"):
        ErnieTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"version https://git-lfs.github.com/spec/v1\n", b"\x0a\xff"]
)
def test_a_broken_model_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ModelUnusable, match=r"tokenizer\.model"):
        ErnieTokenizer.from_directory(tmp_path)


def test_every_cut_of_a_model_file_is_refused_or_read(tokenizer_directory: Path) -> None:
    proto = (tokenizer_directory / "tokenizer.model").read_bytes()
    for length in range(0, len(proto), 97):
        try:
            ErnieTokenizer(proto[:length])
        except ValueError:
            continue


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "<a>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"5": {"content": 3}}}'),
        ("added_tokens.json", '{"<a>": "5"}'),
        ("added_tokens.json", '{"<a>": -1}'),
        ("added_tokens.json", '{"<a>": true}'),
    ],
)
def test_a_broken_side_file_is_named(
    tokenizer_directory: Path, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes((tokenizer_directory / "tokenizer.model").read_bytes())
    (tmp_path / name).write_text(content)
    with pytest.raises(ModelUnusable, match=name):
        ErnieTokenizer.from_directory(tmp_path)
