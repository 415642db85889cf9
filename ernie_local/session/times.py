"""Places the moments of an answer in the videos of its chat, and shows them on a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ernie_local.files import place_of_new_file, shared_file
from ernie_local.media.contact_sheet import SheetFrame, draw_contact_sheet
from ernie_local.media.draw_boxes import save_drawing
from ernie_local.media.video_sampling import clock_text
from ernie_local.session.video import ChatVideo
from ernie_local.text.times import find_times


@dataclass(frozen=True, slots=True)
class AnswerTime:
    """A moment of a video that an answer names.

    seconds: from the start of the file. text: the words for it. video: the number of the video, counted
    from 1 over the whole chat, and name: its name; both None where the chat has several and the question had
    not just one.
    """

    seconds: float
    text: str
    video: int | None
    name: str | None


def locate_times(text: str, videos: Sequence[ChatVideo], num_asked: int) -> tuple[AnswerTime, ...]:
    """The moments of an answer that lie in a video.

    videos: of the whole chat, as the prompt numbers them; the last `num_asked` belong to this question.
    """
    if not videos:
        return ()
    number = len(videos) if len(videos) == 1 or num_asked == 1 else None
    possible = videos if number is None else [videos[number - 1]]
    longest = max(video.report.duration for video in possible)
    name = None if number is None else videos[number - 1].name
    return tuple(
        AnswerTime(time.seconds, time.text, number, name)
        for time in find_times(text)
        if time.seconds <= longest
    )


def sheet_path(path: Path, *, has_images: bool) -> Path:
    """Where `write_sheet` is to write beside drawings of boxes: NAME-times.png where the chat has images."""
    return path.with_stem(f"{path.stem}-times") if has_images else path


def write_sheet(path: Path, times: Sequence[AnswerTime], videos: Sequence[ChatVideo]) -> list[Path]:
    """Draw the frames that the model saw nearest to these moments on one PNG; the file, if one is written.

    videos: of the chat, as `AnswerTime.video` numbers them; a moment of one that is not there any more is
    left out. ErnieLocalError where the file cannot be written.
    """
    frames = []
    for number, time in enumerate(times, start=1):
        if time.video is None or time.video > len(videos):
            continue
        video = videos[time.video - 1]
        _, pixels = video.frame_at(time.seconds)
        image = Image.frombytes("RGB", video.report.resized_size, pixels)
        frames.append(SheetFrame(image, f"{number}: {clock_text(time.seconds)}"))
    if not frames:
        return []
    with shared_file(place_of_new_file(path), "a drawing") as new:
        save_drawing(draw_contact_sheet(frames), new)
    return [path]
