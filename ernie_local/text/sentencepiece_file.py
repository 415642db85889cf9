"""Reads from a SentencePiece model file what the library does not tell: kinds of pieces, rules for spaces.

The protobuf fields are parsed here because the library's own parser needs the protobuf package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple


class SentencePieceKind(IntEnum):
    """The `type` of a piece in the file."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class FilePiece(NamedTuple):
    """One entry of the vocabulary; its index is its token id."""

    text: str
    kind: SentencePieceKind


@dataclass(frozen=True, slots=True)
class SpaceRules:
    """What the file says of spaces; with neither rule every space of a text is kept.

    prefix: a space is added before each text. removal: several spaces in a row become one, and those at both
    ends go.
    """

    prefix: bool
    removal: bool


# Field numbers of sentencepiece_model.proto: ModelProto, its SentencePiece and its NormalizerSpec.
_PIECES_FIELD, _NORMALIZER_FIELD = 1, 3
_PIECE_TEXT_FIELD, _PIECE_KIND_FIELD = 1, 3
_ADD_DUMMY_PREFIX_FIELD, _REMOVE_EXTRA_WHITESPACES_FIELD = 3, 4
# Wire types.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE_TEXT_KEY = _PIECE_TEXT_FIELD << 3 | _BYTES


def read_model_file(model_proto: bytes) -> tuple[list[FilePiece], SpaceRules]:
    """All pieces of the model in the order of their ids, and its rules for spaces.

    A rule that the file does not name is on, as the format has it. ValueError if the bytes are no such file.
    """
    pieces: list[FilePiece] = []
    switches = {_ADD_DUMMY_PREFIX_FIELD: True, _REMOVE_EXTRA_WHITESPACES_FIELD: True}
    for field, value in _fields(model_proto):
        if not isinstance(value, bytes):
            continue
        if field == _PIECES_FIELD:
            pieces.append(_read_piece(value))
        elif field == _NORMALIZER_FIELD:
            switches.update((one, bool(set_to)) for one, set_to in _fields(value) if one in switches)
    if not pieces:
        raise ValueError("no vocabulary pieces in it")
    return pieces, SpaceRules(switches[_ADD_DUMMY_PREFIX_FIELD], switches[_REMOVE_EXTRA_WHITESPACES_FIELD])


def with_space_rules(model_proto: bytes, rules: SpaceRules) -> bytes:
    """The same model with other rules for spaces.

    Protobuf merges a repeated message field by field: a second NormalizerSpec at the end of the file changes
    these two switches alone.
    """
    keys = (_ADD_DUMMY_PREFIX_FIELD << 3, _REMOVE_EXTRA_WHITESPACES_FIELD << 3)
    switches = bytes([keys[0], rules.prefix, keys[1], rules.removal])
    return model_proto + bytes([_NORMALIZER_FIELD << 3 | _BYTES, len(switches)]) + switches


def _read_piece(record: bytes) -> FilePiece:
    # A fast path: nearly all of ERNIE's 100,000 pieces are a short text and a score (1 + 4 bytes), and no
    # kind.
    if len(record) >= 7 and record[0] == _PIECE_TEXT_KEY and record[1] == len(record) - 7 < 0x80:
        return FilePiece(record[2:-5].decode("utf-8"), SentencePieceKind.NORMAL)
    text, kind = "", SentencePieceKind.NORMAL
    for field, value in _fields(record):
        if field == _PIECE_TEXT_FIELD and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == _PIECE_KIND_FIELD and isinstance(value, int):
            kind = SentencePieceKind(value)
    return FilePiece(text, kind)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of each field; fixed-width numbers come as their bytes."""
    position = 0
    while position < len(message):
        # Nearly all keys and lengths are one byte.
        key = message[position]
        position += 1
        if key >= 0x80:
            key, position = _varint(message, position - 1)
        field, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            number, position = _varint(message, position)
            yield field, number
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"field {field} at byte {position} has the unknown wire type {wire_type}")
        if length > len(message) - position:
            raise ValueError(f"field {field} ends {length - len(message) + position} bytes past the end")
        yield field, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number is cut off at byte {position}")
