"""Tokens that tokenizer_config.json and added_tokens.json declare beside the SentencePiece pieces.

Owns the reading of these two files. Does not decide how text is split, and knows no piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import read_json_object

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A declared token; `special` ones mean more than their letters and never come out of user text.

    Tags are special whatever the file says: files declare <think> an ordinary token just to keep it
    visible in decoded text, and a user's "</think>" must not close a thought.
    """

    token_id: int
    content: str
    special: bool


def read_added_tokens(directory: Path) -> list[AddedToken]:
    """The declared tokens in the order of their ids; [] where neither file is there.

    Where both files name an id, tokenizer_config.json wins, as it also says what is special.
    """
    tokens: dict[int, AddedToken] = {}
    path = directory / ADDED_TOKENS_NAME
    for content, token_id in read_object_if_there(path).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise _unusable(path, f"the token {content!r} has the id {token_id!r}, not a whole number")
        tokens[token_id] = AddedToken(token_id, content, is_tag(content))
    path = directory / TOKENIZER_CONFIG_NAME
    declared = read_object_if_there(path).get("added_tokens_decoder", {})
    if not isinstance(declared, dict):
        raise _unusable(path, "its added_tokens_decoder is not an object")
    for key, entry in declared.items():
        token = _declared_token(path, key, entry)
        tokens[token.token_id] = token
    return [tokens[token_id] for token_id in sorted(tokens)]


def read_object_if_there(path: Path) -> dict[str, object]:
    """The JSON object in `path`, {} where there is no such file; ModelUnusable where it is broken."""
    return read_json_object(path) if path.exists() else {}


def is_tag(text: str) -> bool:
    """Whether a token is written as a tag: <think>, <|IMAGE_START|>, </s>."""
    return len(text) > 2 and text[0] == "<" and text[-1] == ">" and not any(map(str.isspace, text))


def _declared_token(path: Path, key: str, entry: object) -> AddedToken:
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    if not (key.isascii() and key.isdecimal()) or not isinstance(content, str) or not content:
        raise _unusable(path, f"its added_tokens_decoder has the unreadable entry {key!r}: {entry!r}")
    declared_special = bool(entry.get("special")) if isinstance(entry, Mapping) else False
    # ERNIE's files have declared the ten digits special at times; a digit is text whatever a file says.
    return AddedToken(int(key), content, is_tag(content) or (declared_special and len(content) > 1))


def _unusable(path: Path, why: str) -> ModelUnusable:
    return ModelUnusable(f"cannot use the tokenizer file {path}", why, "fetch the model's files again")
