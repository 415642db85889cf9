"""Opens a video and prepares the frames that the model sees: chosen, with their time, resized.

All of a video that is needed is decoded here, so that a damaged one is refused before a model is loaded.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import BinaryIO, NamedTuple, TypeAlias

from PIL import Image

from ernie_local.errors import DoesNotFit, InputUnreadable, UsageError, parameter
from ernie_local.media.animation import MOVING_KINDS, Animation
from ernie_local.media.formats import SNIFFED_BYTES, image_format
from ernie_local.media.frame_store import FrameStore
from ernie_local.media.given_file import is_there, open_given
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_file import VideoFile
from ernie_local.media.video_sampling import (
    VideoSampling,
    clock_text,
    frame_time,
    split_cut,
    stamp_text,
    substitutes,
)
from ernie_local.media.video_size import VideoReport, measure_video
from ernie_local.media.video_stamp import check_font, draw_stamp
from ernie_local.progress import Pause

VideoSource: TypeAlias = "str | os.PathLike[str] | bytes"
OnFrame: TypeAlias = Callable[[int, int], None]
_Frames: TypeAlias = Generator[tuple[int, Image.Image], None, None]
_FRAMES_AHEAD = 4  # that wait to be drawn and resized, or to be stored


@dataclass(frozen=True, slots=True, eq=False)
class OpenedVideo:
    """A video ready for the model. path: of its file, None for bytes. store: its chosen frames."""

    report: VideoReport
    path: str | None
    store: FrameStore
    processor: ImageProcessorConfig


def open_video(
    source: VideoSource,
    processor: ImageProcessorConfig,
    sampling: VideoSampling | None = None,
    *,
    most_tokens: int | None = None,
    on_frame: OnFrame | None = None,
    pause: Pause | None = None,
) -> OpenedVideo:
    """Open a video, a moving GIF or WebP.

    source: a path, with a part of it as in "clip.mp4@00:10-00:35" unless a file has exactly that name, or
    bytes, of which nothing is written to disk. processor: as of `read_video_processor`. sampling: None is as
    the model was trained. most_tokens: that there is room for. on_frame: gets how many frames are ready, and
    of how many. pause: is called often while the file is read, and ends the reading by what it raises.

    InputUnreadable for what is no video, damaged beyond what neighbouring frames make up for, or too large;
    UsageError for a part that is given twice; DoesNotFit for more than `most_tokens`, before a frame is
    decoded, and where the disk has no room for the frames; OutOfMemory where the memory has none.
    """
    sampling = sampling or VideoSampling()
    if isinstance(source, bytes):
        wanted = _Wanted("video", None, processor, sampling, most_tokens, pause)
        return _open(io.BytesIO(source), wanted, on_frame)
    text, sampling = _path_and_part(source, sampling)
    with open_given(text, "a video") as file:
        path = os.path.abspath(os.path.expanduser(text))  # noqa: PTH100, PTH111
        return _open(file, _Wanted(text, path, processor, sampling, most_tokens, pause), on_frame)


def check_video(source: str | os.PathLike[str], sampling: VideoSampling) -> None:
    """Raise what `open_video` would raise of a file's header and of the part that is asked for."""
    text, sampling = _path_and_part(source, sampling)
    with open_given(text, "a video") as file, _open_source(file, text) as video:
        sampling.part_of(video.num_frames, video.fps, text)
        check_font(text)


def measure_given_video(
    source: str | os.PathLike[str], processor: ImageProcessorConfig, sampling: VideoSampling
) -> VideoReport:
    """What the model would see of a file, which is counted and not decoded; errors of `open_video`."""
    text, sampling = _path_and_part(source, sampling)
    with open_given(text, "a video") as file, _open_source(file, text) as video:
        return measure_video(
            _shown_name(text, sampling), video.size, video.num_frames, video.fps, sampling, processor
        )


def _path_and_part(source: str | os.PathLike[str], sampling: VideoSampling) -> tuple[str, VideoSampling]:
    text = os.fspath(source)
    if is_there(text):
        return text, sampling
    path, start, end = split_cut(text)
    if start is None and end is None:
        return text, sampling
    if sampling.start is not None or sampling.end is not None:
        raise UsageError(
            f"{text}: a part of a video is given twice",
            "the path names one, and start or end another",
            f"{path} with start and end, or the path alone",
        )
    return path, replace(sampling, start=start, end=end)


class _Wanted(NamedTuple):
    """What `open_video` was asked for. path: None for bytes."""

    name: str
    path: str | None
    processor: ImageProcessorConfig
    sampling: VideoSampling
    most_tokens: int | None
    pause: Pause | None


def _open(file: BinaryIO, wanted: _Wanted, on_frame: OnFrame | None) -> OpenedVideo:
    name, path, processor, sampling, most_tokens, pause = wanted
    with _open_source(file, name, pause) as video:
        shown = _shown_name(name, sampling)
        report = measure_video(shown, video.size, video.num_frames, video.fps, sampling, processor)
        check_font(name)
        if most_tokens is not None and report.tokens > most_tokens:
            raise DoesNotFit(
                f"{shown}: {len(report.frames)} frames take {report.tokens} tokens, the context has room for "
                f"{max(0, most_tokens)}",
                f"the model sees {report.resized_size[0]} x {report.resized_size[1]} pixels of each frame",
                f"fewer frames by {parameter('frames')} or {parameter('fps')}, a part of the video, or a "
                f"larger {parameter('context_size')}",
            )
        store = FrameStore(report.resized_size, len(report.frames), in_memory=path is None)
        numbers = _fill(store, video, report, on_frame)
        notes = video.notes
        replaced = sum(number != chosen for number, chosen in zip(numbers, report.frames, strict=True))
        if replaced:
            notes += (f"{replaced} of {len(numbers)} frames cannot be decoded: frames beside them are read",)
        times = tuple(frame_time(number, report.num_frames, report.fps) for number in numbers)
        return OpenedVideo(
            replace(report, frames=tuple(numbers), times=times, notes=notes), path, store, processor
        )


def _open_source(file: BinaryIO, name: str, pause: Pause | None = None) -> VideoFile | Animation:
    head = file.read(SNIFFED_BYTES)
    if not head:
        raise InputUnreadable(
            f"{name}: holds 0 bytes",
            "an empty file shows nothing; a download or a copy may have been cut off",
            "download or copy it again",
        )
    kind = image_format(head)
    if kind in MOVING_KINDS:
        file.seek(0)
        return Animation(file, kind, name, pause)
    if kind is not None:
        raise InputUnreadable(
            f"{name}: is a {kind} file, not a video",
            "it is read in more detail as an image",
            f"give it as an image: {parameter('images', name)}",
        )
    return VideoFile(file, name, pause)


def _fill(
    store: FrameStore,
    video: VideoFile | Animation,
    report: VideoReport,
    on_frame: OnFrame | None,
) -> list[int]:
    """Put the frames into the store, those that cannot be decoded by their neighbours; their numbers."""
    numbers: list[int | None] = [None] * len(report.frames)

    def keep(frames: _Frames, stand_in: Mapping[int, Sequence[int]]) -> None:
        """stand_in: for which places each number stands."""
        with closing(frames):
            for number, frame in _finished(frames, report):
                for place in stand_in[number]:
                    store.write(place, frame)
                    numbers[place] = number
                    if on_frame is not None:
                        on_frame(len(numbers) - numbers.count(None), len(numbers))

    places: dict[int, list[int]] = {}  # more than one where more frames a second are wanted than there are
    for place, number in enumerate(report.frames):
        places.setdefault(number, []).append(place)
    keep(video.read(list(places)), places)
    if None in numbers and isinstance(video, VideoFile):
        # Keyframes may not be what the file says.
        keep(video.read(_missing(numbers, report), jumps=False), places)
    if None in numbers and isinstance(video, VideoFile):
        found = _find_neighbours(video, _missing(numbers, report))
        stand_in: dict[int, list[int]] = {}
        for number, neighbour in found.items():
            stand_in.setdefault(neighbour, []).extend(places[number])
        keep(video.read(sorted(stand_in), jumps=False), stand_in)
    for number in _missing(numbers, report):
        raise _undecodable(video, number, "nor one beside it twice")
    return [number for number in numbers if number is not None]


def _missing(numbers: Sequence[int | None], report: VideoReport) -> list[int]:
    pairs = zip(numbers, report.frames, strict=True)
    return list(dict.fromkeys(wanted for number, wanted in pairs if number is None))


def _find_neighbours(video: VideoFile, missing: Sequence[int]) -> dict[int, int]:
    """Which frame that can be decoded stands in for each of the missing ones."""
    candidates = {number: substitutes(number, video.num_frames) for number in missing}
    wanted = sorted({one for several in candidates.values() for one in several})
    there = {number for number, _ in video.read(wanted, jumps=False)}
    found = {}
    for number, several in candidates.items():
        sound = next((one for one in several if one in there), None)
        if sound is None:
            raise _undecodable(video, number, f"nor {len(several)} beside it")
        found[number] = sound
    return found


def _undecodable(video: VideoFile | Animation, number: int, neighbours: str) -> InputUnreadable:
    return InputUnreadable(
        f"{video.name}: frame {number} of {video.num_frames} cannot be decoded, {neighbours}",
        f"the video is damaged around {clock_text(number / video.fps)}",
        f"a part of it that is sound, such as {parameter('videos', 'clip.mp4@00:00-00:10')}, or "
        "ffmpeg -i in.mp4 repaired.mp4",
    )


def _finished(
    frames: Iterable[tuple[int, Image.Image]], report: VideoReport
) -> Iterator[tuple[int, Image.Image]]:
    """Frames with their times, resized, in order; this is done on threads while others are decoded."""

    def finish(number: int, frame: Image.Image) -> tuple[int, Image.Image]:
        draw_stamp(frame, stamp_text(frame_time(number, report.num_frames, report.fps)))
        return number, frame.resize(report.resized_size, resample=Image.Resampling.BICUBIC)

    waiting: deque[Future[tuple[int, Image.Image]]] = deque()
    with ThreadPoolExecutor(2) as pool:
        for one in frames:
            waiting.append(pool.submit(finish, *one))
            if len(waiting) > _FRAMES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _shown_name(name: str, sampling: VideoSampling) -> str:
    ends = (sampling.start, sampling.end)
    if ends == (None, None):
        return name
    return f"{name}@" + "-".join("" if one is None else clock_text(one) for one in ends)
