"""Chooses which frames of a video the model sees and which time is written on each, as published.

Times count at the average frame rate: frame i of n is at i / n of the duration. Pure arithmetic.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ernie_local.errors import InputUnreadable, UsageError, parameter

DEFAULT_FPS = 2.0
DEFAULT_MIN_FRAMES, DEFAULT_MAX_FRAMES = 16, 180
_LARGEST_FPS = 1000.0
_MOST_SECONDS = 1e9
# A broken frame is replaced by one at most so many frames away, and the first or last one by a farther one.
_REACH, _REACH_AT_ENDS = 9, 19
_CLOCK = r"(?:(?:(\d{1,3}):)?(\d{1,3}):)?(\d{1,6}(?:\.\d{1,3})?)"
_A_PART = parameter("videos", "clip.mp4@00:10-00:35")
_CUT = re.compile(rf"(?P<path>.*)@(?P<start>{_CLOCK})?-(?P<end>{_CLOCK})?", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class VideoSampling:
    """How many frames of a video the model sees, and of which part.

    fps: frames a second, where that gives min_frames to max_frames of them; else so many, evenly spread.
    frames: so many, evenly spread, whatever `fps` is by default. start, end: seconds of the part, None for
    the video's own. UsageError for values that mean nothing.
    """

    fps: float | None = None
    frames: int | None = None
    min_frames: int = DEFAULT_MIN_FRAMES
    max_frames: int = DEFAULT_MAX_FRAMES
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise UsageError(
                f"{self.min_frames} to {self.max_frames} frames of a video",
                "the least number is at least 1 and at most the largest",
                f"VideoSampling(min_frames={DEFAULT_MIN_FRAMES}, max_frames={DEFAULT_MAX_FRAMES})",
            )
        if self.fps is not None and self.frames is not None:
            raise UsageError(
                f"{parameter('fps', self.fps)} with {parameter('frames', self.frames)}",
                "both say how many frames of a video the model sees",
                "use one of them",
            )
        if self.fps is not None and not 0 < self.fps <= _LARGEST_FPS:
            raise UsageError(
                f"{parameter('fps')} is {self.fps}, more than 0 and at most {_LARGEST_FPS:g} are possible",
                "it counts the frames of each second that the model sees",
                f"{parameter('fps', DEFAULT_FPS)}, as the model was trained",
            )
        if self.frames is not None and not 1 <= self.frames <= self.max_frames:
            raise UsageError(
                f"{parameter('frames')} is {self.frames}, 1 to {self.max_frames} are possible",
                f"the model was trained with at most {DEFAULT_MAX_FRAMES} frames of a video",
                f"{parameter('frames', min(max(self.frames, 1), self.max_frames))}",
            )
        for name, seconds in (("start", self.start), ("end", self.end)):
            if seconds is not None and not 0 <= seconds <= _MOST_SECONDS:
                raise UsageError(
                    f"{parameter(name)} is {seconds}, 0 to {_MOST_SECONDS:g} are possible",
                    "it counts the seconds from the start of the video",
                    _A_PART,
                )
        if self.end is not None and self.end <= (self.start or 0.0):
            raise UsageError(
                f"a part of a video from {self.start or 0:g} s to {self.end:g} s",
                "it ends before it begins",
                _A_PART,
            )

    def part_of(self, num_frames: int, source_fps: float, name: str) -> range:
        """The frames between `start` and `end`; InputUnreadable where none is."""
        first = round((self.start or 0.0) * source_fps)
        last = num_frames if self.end is None else min(num_frames, round(self.end * source_fps))
        if first >= last:
            raise InputUnreadable(
                f"{name}: no frame from {self.start or 0:g} s on, it takes {num_frames / source_fps:.2f} s",
                f"it has {num_frames} frames, {source_fps:g} in a second",
                f"give a part that lies in the video, such as {parameter('videos', 'clip.mp4@00:00-00:05')}",
            )
        return range(first, last)

    def choose(self, num_frames: int, source_fps: float) -> list[int]:
        """Which of `num_frames` frames the model sees, ascending. source_fps: on average.

        By `fps` a frame is seen more than once where the video has fewer of them.
        """
        if self.frames is not None:
            return _spread(num_frames, self.frames)
        fps = DEFAULT_FPS if self.fps is None else self.fps
        duration = num_frames / source_fps
        wanted = int(duration * fps)
        if wanted < self.min_frames:
            return _spread(num_frames, self.min_frames)
        if wanted > self.max_frames:
            return _spread(num_frames, self.max_frames)
        # One for each time, which may be one more than `wanted`.
        indices = np.around(np.arange(0, duration, 1 / fps) * source_fps).astype(int)
        return [int(index) for index in indices if index < num_frames]


def _spread(num_frames: int, num_chosen: int) -> list[int]:
    """The first frames of `num_chosen` parts of equal length; of fewer frames, all."""
    edges = np.linspace(0, num_frames, min(num_chosen, num_frames) + 1).astype(int)
    return [int(edge) for edge in edges[:-1]]


def substitutes(index: int, num_frames: int) -> list[int]:
    """The frames that may stand in for a broken one, the first choice first: -1, +1, -2, +2, ..."""
    reach = _REACH_AT_ENDS if index in (0, num_frames - 1) else _REACH
    around = [index + side * step for step in range(1, reach + 1) for side in (-1, 1)]
    return [one for one in around if 0 <= one < num_frames]


def frame_time(index: int, num_frames: int, source_fps: float) -> float:
    """Seconds from the start at which the model is told that a frame is."""
    return index * (num_frames / source_fps) / num_frames


def stamp_text(seconds: float) -> str:
    """What is written on a frame: "time: 00:01:05.50"."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    return f"time: {int(hours):02d}:{int(minutes):02d}:{rest:05.2f}"


def split_cut(text: str) -> tuple[str, float | None, float | None]:
    """Path, start and end in seconds of "clip.mp4@00:10-00:35"; either end may be left out.

    The text as it is where it ends in no cut.
    """
    found = _CUT.fullmatch(text)
    if found is None or not found["path"] or (found["start"] is None and found["end"] is None):
        return text, None, None
    return found["path"], parse_clock(found["start"]), parse_clock(found["end"])


def parse_clock(text: str | None) -> float | None:
    """Seconds of "1:02:03.5", "02:03", "3.5"; None for None."""
    if text is None:
        return None
    seconds = 0.0
    for part in text.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def clock_text(seconds: float) -> str:
    """Seconds as people write them: "1:05", "1:01:05", with a decimal where there is a part of a second."""
    tenths = round(seconds * 10)
    whole, tenth = divmod(tenths, 10)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    text = f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
    return f"{text}.{tenth}" if tenth else text
