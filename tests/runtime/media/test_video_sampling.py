"""Which frames of a video the model sees, against a slow writing of the published rule, and their times."""

from __future__ import annotations

import math
import random

import pytest

from ernie_local.errors import InputUnreadable, UsageError
from ernie_local.media.video_sampling import (
    VideoSampling,
    frame_time,
    split_cut,
    stamp_text,
    substitutes,
)


def published_frames(
    num_frames: int, source_fps: float, fps: float, target: int, least: int, most: int
) -> list[int]:
    """The rule, step by step in plain Python. target: -1 for none."""
    if target < 0:
        count = int(num_frames / source_fps * fps)
        if count < least:
            target = least
        elif count > most:
            target = most
    chosen = []
    if target > 0:
        parts = min(target, num_frames)
        return [int(part * (num_frames / parts)) for part in range(parts)]  # left edges, cut off
    gap = 1 / fps
    for step in range(math.ceil(num_frames / source_fps / gap)):
        nearest = round(step * gap * source_fps)
        if nearest < num_frames:
            chosen.append(nearest)
    return chosen


def test_300_random_videos_give_the_frames_of_the_published_rule() -> None:
    draw = random.Random(25)
    num_odd = 0
    for _ in range(300):
        source_fps = draw.choice(
            [23.976, 24.0, 25.0, 29.97, 30.0, 50.0, 59.94, 1.0, 12.5, draw.uniform(1, 120)]
        )
        num_frames = max(1, round(draw.choice([0.1, 3, 20, 100, 400, 7200]) * draw.random() * source_fps))
        least, most = draw.choice([(16, 180), (1, 180), (4, 32), (16, 17)])
        kind = draw.choice(["default", "fps", "frames"])
        fps = draw.choice([0.1, 0.5, 1, 2, 3, 7.3, 30]) if kind == "fps" else None
        frames = draw.randint(1, most) if kind == "frames" else None
        sampling = VideoSampling(fps, frames, least, most)
        expected = published_frames(num_frames, source_fps, fps or 2, frames or -1, least, most)
        chosen = sampling.choose(num_frames, source_fps)
        assert chosen == expected, (num_frames, source_fps, sampling)
        num_odd += len(chosen) % 2
    assert num_odd > 30


@pytest.mark.parametrize(
    ("sampling", "num_seen"),
    [
        (VideoSampling(), 18),  # of 8.768 s; one more than its seconds times 2
        (VideoSampling(fps=1), 16),
        (VideoSampling(frames=3), 3),
        (VideoSampling(fps=1, min_frames=1), 9),
        (VideoSampling(frames=10), 10),
    ],
)
def test_the_published_example_has_as_many_frames_as_published(
    sampling: VideoSampling, num_seen: int
) -> None:
    assert len(sampling.choose(263, 29.994)) == num_seen


def test_a_part_is_chosen_from_as_a_video_of_its_own() -> None:
    sampling = VideoSampling(start=10, end=35)
    assert sampling.part_of(3000, 30.0, "a") == range(300, 1050)
    assert VideoSampling(start=90).part_of(3000, 30.0, "a") == range(2700, 3000)
    assert VideoSampling(end=500).part_of(3000, 30.0, "a") == range(3000)
    with pytest.raises(InputUnreadable, match=r"no frame from 200 s on, it takes 100\.00 s"):
        VideoSampling(start=200).part_of(3000, 30.0, "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fps": 2.0, "frames": 20}, "fps=2.0 with frames=20"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"fps": math.nan}, "fps is nan"),
        ({"frames": 181}, "frames is 181, 1 to 180"),
        ({"frames": 0}, "frames is 0"),
        ({"start": 5.0, "end": 5.0}, "from 5 s to 5 s"),
        ({"start": -1.0}, "start is -1.0, 0 to 1e"),
        ({"end": math.inf}, "end is inf"),
        ({"start": math.nan}, "start is nan"),
        ({"min_frames": 20, "max_frames": 10}, "20 to 10 frames"),
    ],
)
def test_what_means_nothing_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VideoSampling(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "time: 00:00:00.00"),
        (65.5, "time: 00:01:05.50"),
        (3725.126, "time: 01:02:05.13"),
        (59.999, "time: 00:00:60.00"),  # as published
        (7199.5, "time: 01:59:59.50"),
    ],
)
def test_the_time_is_written_as_published(seconds: float, text: str) -> None:
    assert stamp_text(seconds) == text


def test_times_count_at_the_average_rate() -> None:
    assert [frame_time(index, 263, 29.994) for index in (0, 15, 262)] == pytest.approx(
        [0.0, 0.5001, 8.7351], abs=1e-4
    )


def test_neighbours_stand_in_for_a_broken_frame_in_the_published_order() -> None:
    assert substitutes(50, 100)[:5] == [49, 51, 48, 52, 47]
    assert len(substitutes(50, 100)) == 18
    assert substitutes(0, 100) == list(range(1, 20))
    assert substitutes(99, 100) == list(range(98, 79, -1))
    assert substitutes(1, 100)[:4] == [0, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("clip.mp4@00:10-00:35", ("clip.mp4", 10.0, 35.0)),
        ("a@b.mp4@1:02:03.5-", ("a@b.mp4", 3723.5, None)),
        ("clip.mp4@-12.5", ("clip.mp4", None, 12.5)),
        ("clip.mp4@-", ("clip.mp4@-", None, None)),
        ("clip.mp4", ("clip.mp4", None, None)),
        ("me@home-1.mp4", ("me@home-1.mp4", None, None)),
    ],
)
def test_a_part_is_named_behind_the_path(text: str, parts: tuple[str, float | None, float | None]) -> None:
    assert split_cut(text) == parts
