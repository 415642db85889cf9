"""Strict access to one JSON object of config.json: type, range, and no key left unread.

Owns the checks and their messages. Knows nothing of what a key means; the layouts ask for keys by name,
and `finish` then judges every key that nobody asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ernie_local.config.ignored import is_ignored, smells_of_the_model
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

# Above any real size, and small enough that the product of four of them is a harmless number.
LARGEST_SIZE = 1 << 24
# The same for layers, and for experts in a bank.
LARGEST_COUNT = 1 << 12
_REPORT_HINT = "use a checkpoint in the published layout, or report the key and the model's name"


class Keys:
    """Reads keys of `raw`; `where` and `prefix` name the file and the object in messages.

    A key that is absent or null takes the default; without a default it is an error naming the key.
    """

    def __init__(self, raw: Mapping[str, object], where: str, prefix: str = "") -> None:
        self._raw = raw
        self._where = where
        self._prefix = prefix
        self._read: set[str] = set()

    @property
    def where(self) -> str:
        """The file, for messages."""
        return self._where

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null. Does not count as reading it."""
        return self._raw.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether `key` is there and null, which sometimes means other than absent."""
        return key in self._raw and self._raw[key] is None

    def value(self, key: str) -> object:
        """The value as it stands, None if absent."""
        self._read.add(key)
        return self._raw.get(key)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST_SIZE) -> int:
        """An integer from `low` to `high`."""
        value = self._value_or(key, default)
        return self._checked_integer(key, value, low, high)

    def optional_id(self, key: str) -> int | None:
        """A token id, or None."""
        return self.integer(key, low=0) if self.value(key) is not None else None

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids written as one number or as a list; empty if absent."""
        value = self.value(key)
        if isinstance(value, list | tuple):
            return self.integers(key)
        return () if value is None else (self.integer(key, low=0),)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, zero or above."""
        value = self._value_or(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"is {show(value)}, a number is expected")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not 0.0 <= number < math.inf:
            raise self.refuse(key, f"is {show(value)}, a finite number from 0 up is expected")
        return number

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value_or(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"is {show(value)}, true or false is expected")
        return value

    def integers(self, key: str, length: int | None = None, low: int = 0) -> tuple[int, ...]:
        """A list of integers, of exactly `length` if given."""
        values = self.sequence(key)
        if length is not None and len(values) != length:
            raise self.refuse(key, f"has {len(values)} entries, {length} are expected")
        return tuple(self._checked_integer(key, value, low, LARGEST_SIZE) for value in values)

    def sequence(self, key: str) -> Sequence[object]:
        """A JSON list."""
        value = self._value_or(key, None)
        if not isinstance(value, list | tuple):
            raise self.refuse(key, f"is {show(value)}, a list is expected")
        return value

    def section(self, key: str, default: Mapping[str, object] | None = None) -> Keys:
        """The object under `key`, to be read and finished on its own."""
        value = self._value_or(key, default)
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"is {show(value)}, an object is expected")
        return Keys(value, self._where, f"{self._prefix}{key}.")

    def mapping(self, key: str) -> Mapping[str, object]:
        """A JSON object whose keys are data, not settings; empty if absent."""
        value = self._value_or(key, {})
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"is {show(value)}, an object is expected")
        return value

    def alias(self, key: str, other: str) -> str:
        """The name under which the value stands; both with different values are refused."""
        if self.has(key) and self.has(other) and self._raw[key] != self._raw[other]:
            raise self.refuse(key, f"is {show(self._raw[key])}, but {other} is {show(self._raw[other])}")
        self._read |= {key, other}
        return other if self.has(other) and not self.has(key) else key

    def only(self, key: str, *implemented: object) -> None:
        """Absent, null, or one of the values that this code implements; anything else is refused."""
        value = self.value(key)
        # Types too, or true would pass for 1.
        if value is None or any(type(value) is type(one) and value == one for one in implemented):
            return
        expected = " or ".join(show(one) for one in implemented) or "null"
        raise self.refuse(key, f"is {show(value)}, this code implements only {expected}")

    def all_are(self, key: str, implemented: str) -> None:
        """Absent, null, or a list that holds nothing but the one value that this code implements."""
        for value in self.sequence(key) if self.value(key) is not None else ():
            if value != implemented:
                raise self.refuse(key, f"holds {show(value)}, this code implements only {show(implemented)}")

    def same_as(self, key: str, expected: int, meaning: str) -> None:
        """A key that repeats another value: absent, null or equal to it."""
        value = self.value(key)
        if value is not None and (isinstance(value, bool) or value != expected):
            raise self.refuse(key, f"is {show(value)}, but {meaning} is {expected}")

    def finish(self) -> None:
        """Refuse, by name, the first key that was neither read nor is known to be harmless."""
        for key, value in self._raw.items():
            if key in self._read or is_ignored(key, value):
                continue
            smell = smells_of_the_model(key)
            raise ModelUnusable(
                f"{self._where}: unknown key {show(self._prefix + key)} with value {show(value)}",
                f"its name has to do with {smell}, so leaving it out could give wrong answers"
                if smell
                else "a setting that is not understood could give wrong answers",
                _REPORT_HINT,
            )

    def refuse(self, key: str, problem: str) -> ModelUnusable:
        """The error for `key`, to be raised by the caller: 'config.json: KEY PROBLEM'."""
        return ModelUnusable(
            f"{self._where}: {self._prefix}{key} {problem}",
            "the model cannot be built from this value, or would give wrong answers",
            _REPORT_HINT,
        )

    def _value_or(self, key: str, default: object) -> object:
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            raise self.refuse(key, "is missing")
        return value

    def _checked_integer(self, key: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(key, f"is {show(value)}, an integer is expected")
        if not low <= value <= high:
            raise self.refuse(key, f"is {show(value)}, outside of {low} to {high}")
        return value
