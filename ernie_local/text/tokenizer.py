"""Text to token ids and back, for ERNIE's SentencePiece vocabulary and its special tokens.

Owns splitting at special tokens, byte fallback, and decoding piece by piece. Knows no chat template,
and not what any special token means. A literal U+2581 in a text comes back as a space: the format
writes spaces with that character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.text.added_tokens import AddedToken, is_tag, read_added_tokens
from ernie_local.text.sentencepiece_file import FilePiece, SentencePieceKind, keep_spaces_exactly, read_pieces

TOKENIZER_MODEL_NAME = "tokenizer.model"
_SPACE_MARK = "\u2581"
_REPLACEMENT = "\ufffd".encode()


class ErnieTokenizer:
    """Encodes without a begin token and without a prefix space; every space of a text is kept.

    vocab_size: ids run from 0 to vocab_size - 1 (ids in the middle may be empty).
    special_ids: ids that stand for more than their letters: control pieces and tags.
    """

    def __init__(self, model_proto: bytes, added: Sequence[AddedToken] = ()) -> None:
        """ValueError where `model_proto` is not a SentencePiece model."""
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
        for token_id, piece in enumerate(pieces):
            self._bytes[token_id] = _piece_bytes(piece)
            self._ids[piece.text] = token_id
            if _is_special(piece):
                specials.add(token_id)
        # A declared token wins over the piece with the same id, as it does in transformers.
        for token in added:
            self._bytes[token.token_id] = token.content.encode("utf-8")
            self._ids[token.content] = token.token_id
            if token.special:
                specials.add(token.token_id)
        self.special_ids = frozenset(specials)
        self.vocab_size = max(self._bytes) + 1
        self._unknown_id: int = self._pieces.unk_id()
        # Declared tokens that SentencePiece itself does not cut out of a text must be cut out before it.
        plain = {token.content for token in added if not token.special}
        cut_by_pieces = {piece.text for piece in pieces if piece.kind is SentencePieceKind.USER_DEFINED}
        tags = {text for text, token_id in self._ids.items() if token_id in self.special_ids}
        self._split_all = _alternation((plain - cut_by_pieces) | tags)
        self._split_plain = _alternation(plain - cut_by_pieces)
        self._spelled_out: dict[int, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> ErnieTokenizer:
        """Reads tokenizer.model, tokenizer_config.json and added_tokens.json; the last two may be missing.

        ModelUnusable names the file that is missing or cannot be read.
        """
        path = Path(directory) / TOKENIZER_MODEL_NAME
        try:
            model_proto = path.read_bytes()
        except FileNotFoundError as error:
            raise ModelUnusable(
                f"the model has no tokenizer: {path} is missing",
                f"text becomes tokens by the SentencePiece file {TOKENIZER_MODEL_NAME}",
                f"copy {TOKENIZER_MODEL_NAME} and tokenizer_config.json from the model's original repository",
            ) from error
        except OSError as error:
            raise _broken(path, str(error)) from error
        added = read_added_tokens(Path(directory))
        try:
            return cls(model_proto, added)
        except ValueError as error:
            raise _broken(path, f"{len(model_proto)} bytes are no SentencePiece model: {error}") from error

    def id_of(self, text: str) -> int | None:
        """The id of the piece or token spelled exactly so, None where there is none."""
        return self._ids.get(text)

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Token ids of `text`.

        With `allow_special`, special tokens written in it become their ids, as in a rendered template.
        Without, they are spelled out letter by letter: the text of a user or of a document can name a
        tag and never be one. UsageError where the text holds half of a surrogate pair.
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
        for part in pattern.split(text) if pattern else [text]:
            # A pattern in one group splits into text, token, text, ...: the tokens are whole parts.
            if pattern and pattern.fullmatch(part):
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._encode_plain(part, allow_special))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, special tokens as written; invalid UTF-8 and ids of no piece are U+FFFD."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes that one id stands for; a byte piece is one byte of a longer character."""
        return self._bytes.get(token_id, _REPLACEMENT)

    def _encode_plain(self, text: str, allow_special: bool) -> list[int]:
        ids: list[int] = self._pieces.encode(text)
        if allow_special or self.special_ids.isdisjoint(ids):
            return ids
        # Looked at after encoding and not before: normalization may turn other letters into a tag.
        plain: list[int] = []
        for token_id in ids:
            if token_id in self.special_ids and token_id != self._unknown_id:
                plain.extend(self._spell_out(token_id))
            else:
                plain.append(token_id)
        return plain

    def _spell_out(self, token_id: int) -> list[int]:
        """The text of a special token as plain pieces: cut after its first letter it is no tag any more."""
        if token_id not in self._spelled_out:
            text = self.token_bytes(token_id).decode("utf-8")
            halves = self._encode_plain(text[:1], False) + self._encode_plain(text[1:], False)
            self._spelled_out[token_id] = halves
        return self._spelled_out[token_id]


class StreamDecoder:
    """Text of a growing list of ids: whole characters at once, the bytes of an unfinished one held back.

    The pieces joined equal `tokenizer.decode` of the same ids without the hidden ones.
    """

    def __init__(self, tokenizer: ErnieTokenizer, hidden_ids: Collection[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._hidden_ids = hidden_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes, "" while a character is unfinished or for a hidden id."""
        if token_id in self._hidden_ids:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def finish(self) -> str:
        """What is left: U+FFFD where the ids end inside a character, else ""."""
        return self._utf8.decode(b"", final=True)


def _is_special(piece: FilePiece) -> bool:
    if piece.kind in (SentencePieceKind.CONTROL, SentencePieceKind.UNKNOWN):
        return True
    # Digits, "User:" and runs of spaces are user-defined too, and are nothing but text.
    return piece.kind is SentencePieceKind.USER_DEFINED and is_tag(piece.text)


def _piece_bytes(piece: FilePiece) -> bytes:
    if piece.kind is SentencePieceKind.BYTE:
        return bytes([int(piece.text[1:-1], 16)])
    return piece.text.replace(_SPACE_MARK, " ").encode("utf-8")


def _alternation(texts: Collection[str]) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if longest_first else None


def _broken(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(f"cannot use the tokenizer file {path}", why, "fetch the model's files again")
