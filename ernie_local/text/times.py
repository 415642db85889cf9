"""Finds the moments of a video that a model names in its answers.

The model reads "time: 00:01:05.50" on each frame and has no fixed form for what it says of it. What counts:

- clock times: 0:05, 00:01:05, 01:02:03.5, also behind "time:";
- seconds and minutes with their unit: 12.5 s, 12.5 seconds, 1 min 5 s, 12.5秒, 1分5秒;
- numbers under one of the keys `TIME_KEYS` in JSON.

A number behind "picture", a ratio such as 16:9 and a length of time cannot be told apart from a moment in
every case; moments behind the end of the video are left out by whoever knows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TIME_KEYS = ("time", "timestamp", "start", "end", "start_time", "end_time", "seconds")
_MOST_TIMES = 1000
_NUMBER = r"\d{1,6}(?:\.\d{1,3})?"
_CLOCK = r"(?<![\d:.])(?:(?P<hours>\d{1,3}):)?(?P<minutes>\d{1,3}):(?P<seconds>\d{2}(?:\.\d{1,3})?)(?![\d:])"
_HOUR = r"h|hr|hrs|hours?|小时"
_MINUTE = r"m|min|mins|minutes?|分钟?"
_SECOND = r"s|sec|secs|seconds?|秒"
_END = r"(?![A-Za-z])"
_UNITS = (
    rf"(?<![\d.:\w])(?:(?P<unit_hours>\d{{1,3}})\s?(?:{_HOUR}){_END}\s?(?:and\s)?)?"
    rf"(?:(?P<unit_minutes>\d{{1,4}})\s?(?:{_MINUTE}){_END}\s?(?:and\s)?)?"
    rf"(?:(?P<unit_seconds>{_NUMBER})\s?-?(?:{_SECOND}){_END})"
    rf"|(?<![\d.:\w])(?P<only_minutes>\d{{1,4}})\s?-?(?:mins?|minutes?|分钟){_END}"
)
_KEYED = rf"[\"'](?:{'|'.join(TIME_KEYS)})[\"']\s*:\s*(?P<keyed>{_NUMBER})(?![\d.:])"
_TIME = re.compile(rf"{_CLOCK}|{_KEYED}|{_UNITS}", re.ASCII | re.IGNORECASE)
_SIXTY = 60.0


@dataclass(frozen=True, slots=True)
class FoundTime:
    """A moment as an answer has it: seconds from the start of the video, and the words for it."""

    seconds: float
    text: str


def find_times(text: str) -> tuple[FoundTime, ...]:
    """The moments in an answer, in its order, each once; a clock time with 60 seconds or minutes is none."""
    found: dict[float, FoundTime] = {}
    for match in _TIME.finditer(text):
        seconds = _seconds_of(match)
        if seconds is not None and len(found) < _MOST_TIMES:
            found.setdefault(seconds, FoundTime(seconds, match[0]))
    return tuple(found.values())


def _seconds_of(match: re.Match[str]) -> float | None:
    if match["keyed"] is not None:
        return float(match["keyed"])
    if match["minutes"] is not None:
        minutes, seconds = float(match["minutes"]), float(match["seconds"])
        # The published code rounds 59.999 s up to 60.00.
        if seconds > _SIXTY or (match["hours"] is not None and minutes >= _SIXTY):
            return None
        return _total(match["hours"], match["minutes"], match["seconds"])
    if match["only_minutes"] is not None:
        return _total(None, match["only_minutes"], None)
    return _total(match["unit_hours"], match["unit_minutes"], match["unit_seconds"])


def _total(hours: str | None, minutes: str | None, seconds: str | None) -> float:
    return 3600 * float(hours or 0) + _SIXTY * float(minutes or 0) + float(seconds or 0)
