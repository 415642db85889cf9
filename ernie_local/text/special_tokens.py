"""Reads the tokens that a model's files declare beside the pieces of tokenizer.model.

Two files name them with their ids: added_tokens.json, and tokenizer_config.json in added_tokens_decoder. The
lists of special_tokens_map.json and tokenizer_config.json give ids only by their order. Files may repeat each
other; where two disagree, the model is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import read_json_object, show

TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"
SPECIAL_TOKENS_MAP_NAME = "special_tokens_map.json"
# In the order in which transformers gives ids to those that no piece is.
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTED_TOKENS = "additional_special_tokens"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that a file declares beside the pieces. A special one is never made from a user's text.

    Tags are special whatever the file says: files declare <think> an ordinary token only to keep it visible
    in decoded text, and a user's "</think>" must not close a thought.
    """

    token_id: int
    content: str
    special: bool


@dataclass(frozen=True, slots=True)
class DeclaredTokens:
    """added: tokens with their ids. listed: names of special ones, in the order in which they get ids.

    special: pieces and tokens that are special whatever their kind, such as <mask:4>, which nothing else
    tells from text.
    """

    added: tuple[AddedToken, ...] = ()
    listed: tuple[str, ...] = ()
    special: frozenset[str] = frozenset()

    def placed(self, pieces: Mapping[str, int], num_pieces: int) -> list[AddedToken]:
        """All of them with ids: listed ones that are no piece come behind pieces and added ones, in a row.

        pieces: the ids of tokenizer.model. ModelUnusable where an id in that row is another token's.
        """
        added = {token.token_id: token for token in self.added}
        known = {token.content for token in self.added}
        next_id = num_pieces + sum(token_id >= num_pieces for token_id in added)
        for content in self.listed:
            if content in known:
                continue
            if content in pieces:
                special = is_tag(content) or len(content) > 1
                added.setdefault(pieces[content], AddedToken(pieces[content], content, special))
                continue
            if next_id in added:
                raise disagreement(
                    f"{show(content)} would have the id {next_id} by the lists of special tokens, "
                    f"which {show(added[next_id].content)} has",
                    f"the {len(self.listed)} listed tokens follow {num_pieces} pieces and the added ones",
                )
            added[next_id] = AddedToken(next_id, content, special=True)
            known.add(content)
            next_id += 1
        return [added[token_id] for token_id in sorted(added)]


def read_declared_tokens(directory: Path) -> DeclaredTokens:
    """What the files of `directory` declare; ModelUnusable for a broken file, and where two disagree."""
    config = read_object_if_there(directory / TOKENIZER_CONFIG_NAME)
    special_map = read_object_if_there(directory / SPECIAL_TOKENS_MAP_NAME)
    by_id: dict[int, tuple[str, AddedToken]] = {}
    by_content: dict[str, tuple[str, int]] = {}
    for name, tokens in (
        (ADDED_TOKENS_NAME, _added_tokens(directory / ADDED_TOKENS_NAME)),
        (TOKENIZER_CONFIG_NAME, _decoder_tokens(directory / TOKENIZER_CONFIG_NAME, config)),
    ):
        for token in tokens:
            _check_agreement(name, token, by_id, by_content)
            # The later file also says what is special.
            by_id[token.token_id] = (name, token)
            by_content[token.content] = (name, token.token_id)
    listed = [
        *_special_names(directory / TOKENIZER_CONFIG_NAME, config),
        *_special_names(directory / SPECIAL_TOKENS_MAP_NAME, special_map),
    ]
    order = {key: index for index, key in enumerate((*_NAMED_TOKENS, _LISTED_TOKENS))}
    names = [content for _, content in sorted(listed, key=lambda pair: order[pair[0]])]
    added = tuple(token for _, (_, token) in sorted(by_id.items()))
    # A single character is always text.
    special = frozenset(name for name in (*names, *_others(config), *_others(special_map)) if len(name) > 1)
    return DeclaredTokens(added, tuple(dict.fromkeys(names)), special)


def read_named_tokens(directory: Path) -> dict[str, str]:
    """The tokens that have a role, such as bos_token, by its name; tokenizer_config.json comes first."""
    named: dict[str, str] = {}
    for name in (SPECIAL_TOKENS_MAP_NAME, TOKENIZER_CONFIG_NAME):
        path = directory / name
        named.update(
            pair for pair in _special_names(path, read_object_if_there(path)) if pair[0] in _NAMED_TOKENS
        )
    return named


def read_object_if_there(path: Path) -> dict[str, object]:
    """The JSON object in `path`, {} where there is no such file; ModelUnusable for a broken one."""
    return read_json_object(path) if os.path.lexists(path) else {}


def is_tag(text: str) -> bool:
    """Whether a token is written as a tag: <think>, <|IMAGE_START|>, </s>."""
    return len(text) > 2 and text[0] == "<" and text[-1] == ">" and not any(map(str.isspace, text))


def broken_tokenizer_file(path: Path, why: str) -> ModelUnusable:
    """The error for a file of the tokenizer that cannot be used."""
    return ModelUnusable(f"cannot use the tokenizer file {path}", why, "fetch the model's files again")


def _check_agreement(
    name: str,
    token: AddedToken,
    by_id: Mapping[int, tuple[str, AddedToken]],
    by_content: Mapping[str, tuple[str, int]],
) -> None:
    """by_id, by_content: what was read before, with the file that said so."""
    other_name, other_id = by_content.get(token.content, (name, token.token_id))
    if other_id != token.token_id:
        raise disagreement(
            f"{show(token.content)} has the id {other_id} in {other_name} and {token.token_id} in {name}",
            "a token has one id",
        )
    if token.token_id in by_id and by_id[token.token_id][1].content != token.content:
        other_name, other = by_id[token.token_id]
        raise disagreement(
            f"the id {token.token_id} is {show(other.content)} in {other_name} "
            f"and {show(token.content)} in {name}",
            "an id is one token",
        )


def _added_tokens(path: Path) -> Iterator[AddedToken]:
    for content, token_id in read_object_if_there(path).items():
        if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
            raise broken_tokenizer_file(
                path, f"the token {show(content)} has the id {show(token_id)}, not a whole number"
            )
        yield AddedToken(token_id, content, is_tag(content))


def _decoder_tokens(path: Path, config: Mapping[str, object]) -> Iterator[AddedToken]:
    declared = config.get("added_tokens_decoder", {})
    if not isinstance(declared, dict):
        raise broken_tokenizer_file(path, "its added_tokens_decoder is not an object")
    for key, entry in declared.items():
        content = _content_of(entry)
        if not (key.isascii() and key.isdecimal()) or not content:
            raise broken_tokenizer_file(
                path, f"its added_tokens_decoder has the unreadable entry {show(key)}: {show(entry)}"
            )
        declared_special = bool(entry.get("special")) if isinstance(entry, Mapping) else False
        # Some files of ERNIE declare the ten digits special; a digit is always text.
        yield AddedToken(int(key), content, is_tag(content) or (declared_special and len(content) > 1))


def _special_names(path: Path, settings: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(key, token) of each special token that a file names without an id."""
    for key in _NAMED_TOKENS:
        if settings.get(key) is not None:
            yield key, _named_token(path, key, settings[key])
    listed = settings.get(_LISTED_TOKENS)
    if listed is not None and not isinstance(listed, list):
        raise broken_tokenizer_file(path, f"its {_LISTED_TOKENS} is {show(listed)}, not a list")
    for entry in listed or ():
        yield _LISTED_TOKENS, _named_token(path, _LISTED_TOKENS, entry)


def _others(settings: Mapping[str, object]) -> Iterator[str]:
    """Special tokens under keys that transformers knows, but gives no ids by."""
    extra = settings.get("extra_special_tokens")
    entries = list(extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ())
    entries += [value for key, value in settings.items() if key.endswith("_token")]
    yield from filter(None, map(_content_of, entries))


def _named_token(path: Path, key: str, entry: object) -> str:
    content = _content_of(entry)
    if not content:
        raise broken_tokenizer_file(path, f"its {key} holds {show(entry)}, not a token")
    return content


def _content_of(entry: object) -> str:
    """The text of a token, which stands alone or in an object; "" for anything else."""
    content = entry.get("content") if isinstance(entry, Mapping) else entry
    return content if isinstance(content, str) else ""


def disagreement(what: str, why: str) -> ModelUnusable:
    """The error for two files of a tokenizer that say different things."""
    return ModelUnusable(what, why, "use the tokenizer files of one repository, and of one revision of it")
