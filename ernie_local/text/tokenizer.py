"""Turns text into token ids and back, with ERNIE's SentencePiece vocabulary and its special tokens.

A U+2581 in a text comes back as a space, because SentencePiece writes spaces with that character.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from ernie_local.errors import ModelUnusable, UsageError
from ernie_local.files import read_plain
from ernie_local.strict_json import show
from ernie_local.text.sentencepiece_file import (
    FilePiece,
    SentencePieceKind,
    SpaceRules,
    read_model_file,
    with_space_rules,
)
from ernie_local.text.special_tokens import (
    TOKENIZER_CONFIG_NAME,
    AddedToken,
    DeclaredTokens,
    broken_tokenizer_file,
    disagreement,
    is_tag,
    read_declared_tokens,
    read_object_if_there,
)

TOKENIZER_MODEL_NAME = "tokenizer.model"
# ERNIE's file has 1.6 MB.
MAX_TOKENIZER_BYTES = 64 << 20
_SPACE_MARK = "\u2581"
_REPLACEMENT = "\ufffd".encode()


class ErnieTokenizer:
    """Encodes without a begin token; of spaces it keeps what the rules of its file keep.

    vocab_size: ids are below it; some may be unused. longest_bytes: of one of them. special_ids: ids of
    control pieces and tags, which mean more than their letters; special_texts: what they are written as.
    notes: a line for each rule of the files that changes spaces, or is not followed.
    """

    def __init__(
        self,
        model_proto: bytes,
        declared: DeclaredTokens | None = None,
        *,
        add_prefix_space: bool | None = None,
    ) -> None:
        """add_prefix_space: what tokenizer_config.json says of a space before each text.

        ValueError where `model_proto` is not a SentencePiece model, ModelUnusable where `declared` does not
        fit it.
        """
        import sentencepiece

        pieces, of_model = read_model_file(model_proto)
        rules, self.notes = _choose_rules(of_model, add_prefix_space)
        keep_all = SpaceRules(prefix=False, removal=False)
        try:
            self._pieces: Any = sentencepiece.SentencePieceProcessor(
                model_proto=with_space_rules(model_proto, keep_all)
            )
            # Rules hold for a whole text; parts of it, between added tokens, are encoded without.
            self._normalizer: Any = None
            if rules != keep_all:
                self._normalizer = sentencepiece.SentencePieceProcessor(
                    model_proto=with_space_rules(model_proto, rules)
                )
        except RuntimeError as error:
            raise ValueError(str(error)) from error
        declared = declared or DeclaredTokens()
        added = declared.placed({piece.text: token_id for token_id, piece in enumerate(pieces)}, len(pieces))
        _check_replaced(pieces, added)
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
            if is_special or text in declared.special:
                specials.add(token_id)
        self.special_ids = frozenset(specials)
        self.vocab_size = max(self._bytes) + 1
        self.longest_bytes = max(map(len, self._bytes.values()))
        self._unknown_id: int = self._pieces.unk_id()
        # SentencePiece finds its user-defined pieces in a text; other declared tokens are split off before.
        found_by_pieces = {piece.text for piece in pieces if piece.kind is SentencePieceKind.USER_DEFINED}
        ordinary = {token.content for token in added if token.token_id not in self.special_ids}
        plain = ordinary - found_by_pieces
        tags = {text for text, token_id in self._ids.items() if token_id in self.special_ids}
        self.special_texts = frozenset(tags)
        self._split_tags, self._split_plain = _alternation(tags), _alternation(plain)
        self._spelled_out: dict[int, list[int]] = {}

    @classmethod
    def from_directory(cls, directory: Path) -> ErnieTokenizer:
        """Read tokenizer.model, and the files beside it that declare tokens.

        ModelUnusable names the file that is missing or cannot be read, and files that disagree.
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
            raise broken_tokenizer_file(path, error.strerror or str(error)) from error
        declared = read_declared_tokens(Path(directory))
        prefix = read_object_if_there(Path(directory) / TOKENIZER_CONFIG_NAME).get("add_prefix_space")
        try:
            return cls(model_proto, declared, add_prefix_space=prefix if isinstance(prefix, bool) else None)
        except ValueError as error:
            raise broken_tokenizer_file(
                path, f"{len(model_proto)} bytes are no SentencePiece model: {error}"
            ) from error

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
        if not allow_special:
            return self._encode_text(text, allow_special)
        ids: list[int] = []
        for index, part in enumerate(self.split_at_tags(text)):
            ids += [self._ids[part]] if index % 2 else self._encode_text(part, allow_special)
        return ids

    def split_at_tags(self, text: str) -> list[str]:
        """Text, special token, text, ...: always an odd number of parts, some of them empty."""
        # The pattern is one group, so the tokens are kept.
        return self._split_tags.split(text)

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a part of a text, with every space of it kept and no tags in it."""
        return self._encode_parts(text, allow_special=False)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids, with special tokens as written; U+FFFD for invalid UTF-8 and unknown ids."""
        return b"".join(self.token_bytes(token_id) for token_id in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one id, which may be one byte of a longer character."""
        return self._bytes.get(token_id, _REPLACEMENT)

    def _encode_text(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text between tags."""
        if self._normalizer is not None:
            text = self._normalizer.normalize(text).replace(_SPACE_MARK, " ")
        return self._encode_parts(text, allow_special)

    def _encode_parts(self, text: str, allow_special: bool) -> list[int]:
        """Ids of a text as it is, where tokens that are no pieces are split off."""
        ids: list[int] = []
        for index, part in enumerate(self._split_plain.split(text)):
            if part:
                ids += [self._ids[part]] if index % 2 else self._encode_plain(part, allow_special)
        return ids

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
            # That of the piece, which was in the text; a declared token may have another.
            text = self._pieces.id_to_piece(token_id).replace(_SPACE_MARK, " ")
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


def _choose_rules(of_model: SpaceRules, add_prefix_space: bool | None) -> tuple[SpaceRules, tuple[str, ...]]:
    """The rules for spaces that are followed, and notes on them.

    The original code hands every text between tags to SentencePiece with the rules of the file. What
    tokenizer_config.json says of a prefix comes first where it takes one away, as in transformers.
    """
    notes: list[str] = []
    rules = SpaceRules(of_model.prefix and add_prefix_space is not False, of_model.removal)
    says_prefix = f"{TOKENIZER_CONFIG_NAME} says add_prefix_space: {str(add_prefix_space).lower()}"
    if rules.prefix:
        notes.append(f"{TOKENIZER_MODEL_NAME} adds a space before each text between two tags")
    elif of_model.prefix:
        notes.append(
            f"{TOKENIZER_MODEL_NAME} would add a space before each text; {says_prefix}: none is added"
        )
    elif add_prefix_space:
        notes.append(f"{says_prefix}, but {TOKENIZER_MODEL_NAME} adds no space before a text: none is added")
    if rules.removal:
        notes.append(
            f"{TOKENIZER_MODEL_NAME} removes extra spaces: the model sees one in place of several in a row, "
            "and none at the ends of a text"
        )
    return rules, tuple(notes)


def _check_replaced(pieces: Sequence[FilePiece], added: Iterable[AddedToken]) -> None:
    """ModelUnusable where a token of another text takes the id of a piece that texts are made of."""
    of_no_text = (SentencePieceKind.CONTROL, SentencePieceKind.UNKNOWN, SentencePieceKind.UNUSED)
    for token in added:
        piece = pieces[token.token_id] if token.token_id < len(pieces) else None
        if piece is None or piece.kind in of_no_text or _is_special(piece):
            continue
        if _piece_bytes(piece) != token.content.encode("utf-8", "replace"):
            raise disagreement(
                f"the id {token.token_id} is {show(piece.text)} in {TOKENIZER_MODEL_NAME} and "
                f"{show(token.content)} by the lists of tokens beside it",
                "texts are made of that piece, and would be read as the token",
            )


def _is_special(piece: FilePiece) -> bool:
    if piece.kind in (SentencePieceKind.CONTROL, SentencePieceKind.UNKNOWN):
        return True
    # Digits, "User:" and runs of spaces are user-defined too, and are plain text.
    return piece.kind is SentencePieceKind.USER_DEFINED and is_tag(piece.text)


def _piece_bytes(piece: FilePiece) -> bytes:
    if piece.kind is SentencePieceKind.BYTE:
        return bytes([int(piece.text[1:-1], 16)])
    return piece.text.replace(_SPACE_MARK, " ").encode("utf-8")


def _alternation(texts: Collection[str]) -> re.Pattern[str]:
    """One group that matches any of these, the longest first."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
