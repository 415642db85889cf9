"""Reads files that say what a conversation was: a transcript (.txt), or turns (.json)."""

from __future__ import annotations

from pathlib import Path

from ernie_calibration.images.text_card import READ_QUESTIONS
from ernie_calibration.sample import SampleTurn
from ernie_local.errors import InputUnreadable, ModelUnusable
from ernie_local.strict_json import read_json_object, show

TEXT_SUFFIXES = (".txt", ".json")
MAX_TEXT_BYTES = 1 << 20
# A text without an image answers this.
WRITE_QUESTION = "Write a text."
_KEYS = {"question", "answer"}
_HINT = 'write {"turns": [{"question": "...", "answer": "..."}]}'


def read_turns(path: Path, *, of_image: bool) -> tuple[SampleTurn, ...]:
    """The turns that `path` holds, at least one; InputUnreadable for a file in any other form.

    .txt: one turn, whose answer is the whole text: the transcript of the image, or a text to be written.
    .json: `{"turns": [{"question": ..., "answer": ...}]}` and no other key.
    """
    if path.suffix.lower() == ".json":
        return _json_turns(path)
    text = _read_text(path).strip()
    if not text:
        raise InputUnreadable(
            f"{path}: holds 0 characters of text", "an answer cannot be empty", "write it, or delete the file"
        )
    question = READ_QUESTIONS[0] if of_image else WRITE_QUESTION
    return (SampleTurn(question, text, "transcript" if of_image else "text"),)


def _read_text(path: Path) -> str:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_TEXT_BYTES:
            raise InputUnreadable(
                f"{path}: {num_bytes:,} bytes, at most {MAX_TEXT_BYTES:,} are read",
                "a conversation has to fit the model's context",
                "split it into several files",
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputUnreadable(
            f"{path}: cannot be read",
            f"the system says: {error.strerror or error}",
            "check its permissions",
        ) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputUnreadable(
            f"{path}: byte {error.start + 1} of {len(data)} is 0x{data[error.start]:02x}, which is not UTF-8",
            "transcripts are read as UTF-8",
            f"convert it: iconv -t utf-8 {path.name}",
        ) from error


def _json_turns(path: Path) -> tuple[SampleTurn, ...]:
    try:
        given = read_json_object(path, MAX_TEXT_BYTES)
    except ModelUnusable as error:  # the reader is written for files of models
        raise InputUnreadable(error.what, error.why, _HINT) from error
    unknown = sorted(set(given) - {"turns"})
    if unknown:
        raise _wrong(path, f"the key {show(unknown[0])}", "turns is the only known key")
    turns = given.get("turns")
    if not isinstance(turns, list) or not turns:
        raise _wrong(path, f"turns is {show(turns)}", "a list of at least 1 turn is needed")
    return tuple(_turn(path, index + 1, turn) for index, turn in enumerate(turns))


def _turn(path: Path, number: int, turn: object) -> SampleTurn:
    if not isinstance(turn, dict) or set(turn) != _KEYS:
        found = ", ".join(sorted(map(show, turn))) if isinstance(turn, dict) else show(turn)
        raise _wrong(
            path, f"turn {number} has {found or 'no keys'}", "a turn has the keys question and answer"
        )
    question, answer = turn["question"], turn["answer"]
    for key, text in (("question", question), ("answer", answer)):
        if not isinstance(text, str) or not text.strip():
            raise _wrong(
                path,
                f"the {key} of turn {number} is {show(text)}",
                "question and answer are texts that are not empty",
            )
    return SampleTurn(question, answer, "given")


def _wrong(path: Path, what: str, why: str) -> InputUnreadable:
    return InputUnreadable(f"{path}: {what}", why, _HINT)
