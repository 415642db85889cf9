"""Generated clips: equal seeds draw the same, and every answer lies in the frame whose time is asked for."""

from __future__ import annotations

from datetime import timedelta

import numpy
import pytest
from PIL import Image, ImageChops

from ernie_calibration.clips import (
    CLIP_NUMBER,
    CLIP_TIME,
    CLIP_WORD,
    DrawnClip,
    clock,
    draw_clip,
    write_stamp,
)
from ernie_calibration.drawn_image import Run
from ernie_local.media.video_sampling import stamp_text

WIDTH, HEIGHT = 224, 140


def clip(seed: int, num_frames: int) -> DrawnClip:
    return draw_clip(seed, num_frames=num_frames, width=WIDTH, height=HEIGHT)


def pair_of(run: Run) -> int:
    """Which two frames show what is written."""
    (pair,) = {int(glyph.y // HEIGHT) for glyph in run.glyphs if glyph}
    return pair


@pytest.mark.parametrize("num_frames", [2, 5, 8])
def test_an_answer_lies_in_the_frames_of_the_time_asked_for(num_frames: int) -> None:
    for seed in range(8):
        drawn, again = clip(seed, num_frames), clip(seed, num_frames)
        assert drawn == again
        assert len(drawn.frames) == len(drawn.times) == num_frames
        shown = [clock(seconds) for seconds in drawn.times[::2]]
        assert len(set(shown)) == len(shown) == (num_frames + 1) // 2
        assert {question.kind for question in drawn.questions} == {CLIP_NUMBER, CLIP_TIME, CLIP_WORD}
        for question in drawn.questions:
            words, run = question.mentions[0]
            assert words in question.text
            if question.kind == CLIP_TIME:
                assert shown.index(question.answer) == pair_of(question.printed) == pair_of(run)
            elif words in shown:
                assert shown.index(words) == pair_of(question.printed) == pair_of(run)
            else:
                assert pair_of(question.printed) == (0 if words == "first" else (num_frames - 1) // 2)


def test_frames_differ_where_their_numbers_and_times_stand_and_nowhere_else() -> None:
    drawn = draw_clip(11, num_frames=4, width=WIDTH, height=HEIGHT)
    first, joined, second, _ = drawn.frames
    _, _, _, stamp_bottom = ImageChops.difference(first, joined).getbbox() or (0, 0, 0, 0)
    assert 0 < stamp_bottom < HEIGHT * 0.15  # of two frames of one second, only the time differs
    left, top, right, bottom = ImageChops.difference(first, second).getbbox() or (0, 0, 0, 0)
    assert top < HEIGHT * 0.15
    boxes = [run.box for run in drawn.lines if any(run.glyphs)]
    assert right <= max(box[2] + 3 for box in boxes)
    assert stamp_bottom < bottom <= max(box[3] % HEIGHT + 3 for box in boxes)
    assert left < right


def test_the_lines_are_all_that_is_written_on_the_first_frame_of_each_second() -> None:
    drawn = clip(11, 5)
    texts = [[run.text for run in drawn.lines if run.text and pair_of(run) == pair] for pair in range(3)]
    assert [any(stamp_text(seconds) in of_pair for of_pair in texts) for seconds in (0, 1, 2)] == [True] * 3
    printed = {question.printed.text for question in drawn.questions if question.kind != CLIP_TIME}
    assert printed <= {text for of_pair in texts for text in of_pair}


@pytest.mark.parametrize("seconds", [0.0, 3.0, 65.5, 3723.25])
def test_a_stamp_is_a_time_in_the_upper_left_corner(seconds: float) -> None:
    words = stamp_text(seconds).removeprefix("time: ")
    hours, minutes, rest = words.split(":")
    assert timedelta(hours=int(hours), minutes=int(minutes), seconds=float(rest)).total_seconds() == seconds
    frame = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), (128, 128, 128))
    run = write_stamp(frame, seconds, 2.0)
    assert run.text.endswith(words)
    changed = (numpy.asarray(frame)[..., 0] != 128).nonzero()
    left, top, right, bottom = run.box
    assert abs(changed[0].min() / 2 - top) <= 2
    assert abs(changed[0].max() / 2 - bottom) <= 2
    assert changed[1].max() / 2 == pytest.approx(right, abs=3)
    assert left <= 1
