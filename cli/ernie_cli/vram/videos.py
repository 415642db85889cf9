"""Measures the videos of `vram --video`, files and lengths with sizes; shows them and the parts of --zoom."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ernie_cli.status import counted
from ernie_cli.vram.command import VramOptions
from ernie_local.errors import UsageError
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from ernie_cli.vram.result import ZoomObject
    from ernie_local.media.video_size import VideoReport
    from ernie_local.planner.model_size import ModelSize

_LENGTH = re.compile(
    r"(?P<number>[0-9]{1,6}(?:\.[0-9]{1,3})?)(?P<unit>s|min|h)@(?P<width>[1-9][0-9]{0,5})[xX](?P<height>[1-9][0-9]{0,5})",
    re.ASCII,
)
_SECONDS = {"s": 1, "min": 60, "h": 3600}
_ASSUMED_FPS = 30.0  # of which the number of frames that are seen hardly depends


def measured_videos(options: VramOptions, model: ModelSize) -> tuple[VideoReport, ...]:
    """What the model would see of each --video; files are counted and not decoded.

    UsageError for a length of nothing and for --fps or --frames without a video, InputUnreadable for a file
    that is none.
    """
    from ernie_cli.videos import check_idle_sampling

    check_idle_sampling(options.video, options.fps, options.frames)
    return tuple(_measured(source, options, model) for source in options.video)


def _measured(source: str, options: VramOptions, model: ModelSize) -> VideoReport:
    from ernie_local.media.open_video import measure_given_video
    from ernie_local.media.video_sampling import VideoSampling
    from ernie_local.media.video_size import measure_video

    sampling = VideoSampling(options.fps, options.frames)
    length = _LENGTH.fullmatch(source)
    if length is None:
        return measure_given_video(source, model.video_processor, sampling)
    num_frames = round(float(length["number"]) * _SECONDS[length["unit"]] * _ASSUMED_FPS)
    if num_frames < 1:
        raise UsageError(f"--video {source}", "a video has at least 1 frame", "--video 60s@1920x1080")
    size = int(length["width"]), int(length["height"])
    return measure_video(source, size, num_frames, _ASSUMED_FPS, sampling, model.video_processor)


def video_lines(priced: Sequence[tuple[VideoReport, int]]) -> Iterator[str]:
    """A line for each video with its bytes in the KV cache."""
    from ernie_cli.videos import video_text

    for report, kv_bytes in priced:
        yield (
            f"{report.name}: {video_text(report)}, {format_bytes(kv_bytes)} of KV cache, "
            f"about {format_bytes(report.reader_bytes)} while it is read, "
            f"{format_bytes(report.stored_bytes)} on disk"
        )


def zoom_lines(zoom: ZoomObject | None) -> Iterator[str]:
    """What the rounds take, and what comes back to memory for them; nothing without --zoom."""
    if zoom is None:
        return
    yield (
        f"zoom: {counted(zoom.rounds, 'part')}, up to {zoom.tokens} tokens each, "
        f"{format_bytes(zoom.kv_bytes)} of KV cache in all"
    )
    if zoom.vision_bank_bytes:
        yield (
            "zoom: the vision bank of experts comes back for each part: where experts are paged, up to "
            f"{format_bytes(zoom.vision_bank_bytes)} are read each time"
        )
