"""The moments that an answer names, in every form that is known."""

from __future__ import annotations

import pytest

from ernie_local.text.times import find_times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("The door opens at 0:05.", [5]),
        ("at 00:01:05, again at 1:02:03.5", [65, 3723.5]),
        ("time: 00:00:12.50", [12.5]),
        ("after 12.5 s and 3s and 1.25 seconds, 40 sec", [12.5, 3, 1.25, 40]),
        ("from 0:05 to 0:10 (0:05-0:10)", [5, 10]),
        ("1 min 5 s, 2 minutes and 30 seconds, 1 h 2 min 3 s, 3 minutes", [65, 150, 3723, 180]),
        ("在12.5秒和1分5秒", [12.5, 65]),
        ('{"start": 3, "end_time": 4.5, "timestamp": "00:07", "count": 9}', [3, 4.5, 7]),
        ("the 30-second mark", [30]),
        ("16 people, 5 shots, v1.2.3, 10.0.0.1, 5 small dogs, 7m/s, a wall of 3 m", []),
        ("1:75, 1:2, 12:34:56:78, 2:61:00", []),
        ("00:00:60.00", [60]),
        ("", []),
    ],
)
def test_moments(text: str, seconds: list[float]) -> None:
    assert [found.seconds for found in find_times(text)] == seconds


def test_the_words_are_kept() -> None:
    (clock, unit) = find_times("At 00:01:05 for 3 seconds.")
    assert (clock.text, unit.text) == ("00:01:05", "3 seconds")
