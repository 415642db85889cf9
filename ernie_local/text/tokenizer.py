"""Turns text into token ids and back, with ERNIE's SentencePiece vocabulary and its special tokens.

A U+2581 in a text comes back as a space, because SentencePiece writes spaces with that character.
"""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.files import read_plain
from ernie_local.strict_json import read_json_object
from ernie_local.text.sentencepiece_file import FilePiece, SentencePieceKind, keep_spaces_exactly, read_pieces

TOKENIZER_MODEL_NAME = "tokenizer.model"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
# ERNIE's file has 1.6 MB.
MAX_TOKENIZER_BYTES = 64 << 20
_SPACE_MARK = "\u2581"
_REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that a file declares beside the pieces. A special one is never made from a user's text.

    Tags are special whatever the file says: files declare <think> an ordinary token only to keep it visible
    in decoded text, and a user's "</think>" must not close a thought.
    """

    token_id: int
    content: str
    special: bool


class ErnieTokenizer:
    """Encodes without a begin token and without a prefix space; every space of a text is kept.

    vocab_size: ids are below it; some may be unused. special_ids: ids of control pieces and tags, which mean
    more than their letters.
    """

    def __init__(
        self, model_proto: bytes, added: Sequence[AddedToken] = (), special: Collection[str] = ()
    ) -> None:
        """special: pieces and tokens that are special whatever their kind.

        ValueError where `model_proto` is not a SentencePiece model.
        """
        import sentencepiece

        pieces = read_pieces(model_proto)
        self._pieces: Any = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(keep_spaces_exactly(model_proto))
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        self._bytes: dict[int, bytes] = {}
        self._ids: dict[str, int] = {}
        specials: set[int] = set()
        # A declared token replaces the piece with the same id, as in transformers.
        for token_id, text, content, is_special in (
            *((index, one.text, _piece_bytes(one), _is_special(one)) for index, one in enumerate(pieces)),
            *((one.token_id, one.content, one.content.encode("utf-8"), one.special) for one in added),
        ):
            self._bytes[token_id] = content
            self._ids[text] = token_id
            if is_special or text in special:
                specials.add(token_id)
        self.special_ids = frozenset(specials)
        self.vocab_size = max(self._bytes) + 1
        self._unknown_id: int = self._pieces.unk_id()
        # SentencePiece finds its user-defined pieces in a text; other declared tokens are split off before.
        found_by_pieces = {piece.text for piece in pieces if piece.kind is SentencePieceKind.USER_DEFINED}
        ordinary = {token.content for token in added if token.token_id not in self.special_ids}
        plain = ordinary - found_by_pieces
        tags = {text for text, token_id in self._ids.items() if token_id in self.special_ids}
        self._split_all, self._split_plain = _alternation(plain | tags), _alternation(plain)
        self._spelled_out: dict[int, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> ErnieTokenizer:
        """Read tokenizer.model and, if they are there, the files of declared and of special tokens.

        ModelUnusable names the file that is missing or cannot be read.
        """
        path = Path(directory) / TOKENIZER_MODEL_NAME
        try:
            model_proto = read_plain(path, MAX_TOKENIZER_BYTES)
        except FileNotFoundError as error:
            raise ModelUnusable(
                f"the model has no tokenizer: {path} is missing",
                f"text becomes tokens by the SentencePiece file {TOKENIZER_MODEL_NAME}",
                f"copy {TOKENIZER_MODEL_NAME} and tokenizer_config.json from the model's original repository",
            ) from error
        except OSError as error:
            raise _broken(path, error.strerror or str(error)) from error
        added = _read_added_tokens(Path(directory))
        try:
            return cls(model_proto, added, _special_names(Path(directory)))
        except ValueError as error:
            raise _broken(path, f"{len(model_proto)} bytes are no SentencePiece model: {error}") from error

    def id_of(self, text: str) -> int | None:
        """The id of the piece or token `text`, None if there is none."""
        return self._ids.get(text)

    def is_named(self, token_id: int) -> bool:
        """Whether a piece or a declared token has this id."""
        return token_id in self._bytes

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Token ids of `text`. UsageError for half of a surrogate pair in it.

        allow_special: special tokens in the text become their ids, as in a rendered template. Otherwise they
        are encoded as plain text, so that the text of a user or a document cannot act as a tag.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text has an invalid character at position {error.start} of {len(text)}",
                f"U+{ord(text[error.start]):04X} is half of a surrogate pair and has no UTF-8 form",
                "remove that character, or pass the text in UTF-8",
            ) from error
        pattern = self._split_all if allow_special else self._split_plain
        ids: list[int] = []
        for index, part in enumerate(pattern.split(text)):
            # The pattern is one group, so the parts are text, token, text, ...
            if index % 2:
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._encode_plain(part, allow_special))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, with special tokens as written; U+FFFD for invalid UTF-8 and unknown ids."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one id, which may be one byte of a longer character."""
        return self._bytes.get(token_id, _REPLACEMENT)

    def _encode_plain(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = self._pieces.encode(text)
        if allow_special or self.special_ids.isdisjoint(ids):
            return ids
        # Checked after encoding, because normalization may turn other letters into a tag.
        plain: list[int] = []
        for token_id in ids:
            is_tag = token_id in self.special_ids and token_id != self._unknown_id
            plain += self._spell_out(token_id) if is_tag else [token_id]
        return plain

    def _spell_out(self, token_id: int) -> list[int]:
        """Ids of a special token's text, encoded as plain text: in two parts, neither of which is a tag."""
        if token_id not in self._spelled_out:
            text = self.token_bytes(token_id).decode("utf-8")
            parts = self._encode_plain(text[:1], False) + self._encode_plain(text[1:], False)
            self._spelled_out[token_id] = parts
        return self._spelled_out[token_id]


class StreamDecoder:
    """Decodes ids one by one; the bytes of an unfinished character are kept for the next call.

    The texts joined equal `tokenizer.decode` of the same ids without the hidden ones and those of no piece.
    """

    def __init__(self, tokenizer: ErnieTokenizer, hidden_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" for one without text, and while a character is unfinished."""
        if token_id in self._hidden_ids or not self._tokenizer.is_named(token_id):
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """U+FFFD if the ids have ended inside a character, else ""."""
        return self._utf8.decode(b"", final=True)


def _read_added_tokens(directory: Path) -> list[AddedToken]:
    """The tokens of tokenizer_config.json and added_tokens.json by id; [] where neither file is there.

    Where both name an id, tokenizer_config.json wins: it also says what is special.
    """
    tokens: dict[int, AddedToken] = {}
    path = directory / "added_tokens.json"
    for content, token_id in read_object_if_there(path).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise _broken(path, f"the token {content!r} has the id {token_id!r}, not a whole number")
        tokens[token_id] = AddedToken(token_id, content, _is_tag(content))
    path = directory / TOKENIZER_CONFIG_NAME
    declared = read_object_if_there(path).get("added_tokens_decoder", {})
    if not isinstance(declared, dict):
        raise _broken(path, "its added_tokens_decoder is not an object")
    for key, entry in declared.items():
        token = _declared_token(path, key, entry)
        tokens[token.token_id] = token
    return [tokens[token_id] for token_id in sorted(tokens)]


def _special_names(directory: Path) -> frozenset[str]:
    """The tokens that the settings name as special, by the keys that transformers knows.

    `mask_token` and `additional_special_tokens` name pieces such as <mask:4>, which nothing else tells from
    text. A single character is always text.
    """
    named: list[object] = []
    for name in (TOKENIZER_CONFIG_NAME, SPECIAL_TOKENS_NAME):
        for key, value in read_object_if_there(directory / name).items():
            if key.endswith("_token"):
                named.append(value)
            elif key in ("additional_special_tokens", "extra_special_tokens"):
                values = value.values() if isinstance(value, dict) else value
                named += values if isinstance(values, Iterable) else ()
    texts = (entry.get("content") if isinstance(entry, Mapping) else entry for entry in named)
    return frozenset(text for text in texts if isinstance(text, str) and len(text) > 1)


def read_object_if_there(path: Path) -> dict[str, object]:
    """The JSON object in `path`, {} where there is no such file; ModelUnusable for a broken one."""
    return read_json_object(path) if os.path.lexists(path) else {}


def _is_tag(text: str) -> bool:
    """Whether a token is written as a tag: <think>, <|IMAGE_START|>, </s>."""
    return len(text) > 2 and text[0] == "<" and text[-1] == ">" and not any(map(str.isspace, text))


def _declared_token(path: Path, key: str, entry: object) -> AddedToken:
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    if not (key.isascii() and key.isdecimal()) or not isinstance(content, str) or not content:
        raise _broken(path, f"its added_tokens_decoder has the unreadable entry {key!r}: {entry!r}")
    declared_special = bool(entry.get("special")) if isinstance(entry, Mapping) else False
    # Some files of ERNIE declare the ten digits special; a digit is always text.
    return AddedToken(int(key), content, _is_tag(content) or (declared_special and len(content) > 1))


def _is_special(piece: FilePiece) -> bool:
    if piece.kind in (SentencePieceKind.CONTROL, SentencePieceKind.UNKNOWN):
        return True
    # Digits, "User:" and runs of spaces are user-defined too, and are plain text.
    return piece.kind is SentencePieceKind.USER_DEFINED and _is_tag(piece.text)


def _piece_bytes(piece: FilePiece) -> bytes:
    if piece.kind is SentencePieceKind.BYTE:
        return bytes([int(piece.text[1:-1], 16)])
    return piece.text.replace(_SPACE_MARK, " ").encode("utf-8")


def _alternation(texts: Collection[str]) -> re.Pattern[str]:
    """One group that matches any of these, the longest first."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _broken(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(f"cannot use the tokenizer file {path}", why, "fetch the model's files again")
