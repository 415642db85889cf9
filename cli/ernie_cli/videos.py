"""Opens the videos that a user names, and tells what the model will see of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ernie_cli.console import Console
from ernie_cli.failures import spell_options
from ernie_local.errors import UsageError
from ernie_local.escapes import printable_line

if TYPE_CHECKING:
    from ernie_local.media.video_size import VideoReport
    from ernie_local.model_files import ModelFiles
    from ernie_local.session import ChatVideo


def check_given_videos(sources: Sequence[str], fps: float | None, frames: int | None) -> None:
    """Look at every video before anything of a model is opened: its header and its frames are there.

    UsageError for an empty name, and for --fps with --frames; InputUnreadable for what is no video.
    """
    _check_names(sources)
    if sources or (fps is not None and frames is not None):
        from ernie_local.media.open_video import check_video
        from ernie_local.media.video_sampling import VideoSampling

        sampling = VideoSampling(fps, frames)
        for source in sources:
            check_video(source, sampling)


def _check_names(sources: Sequence[str]) -> None:
    if not all(map(str.strip, sources)):
        raise UsageError(
            "--video '' names no file (0 characters)",
            "a video is a file, or a part of one",
            "--video clip.mp4, or remove --video",
        )


def check_idle_sampling(sources: Sequence[str], fps: float | None, frames: int | None) -> None:
    """UsageError for options that no video is there for."""
    given = given_sampling(fps, frames)
    if given and not sources:
        raise UsageError(f"{given} without a video", "it says which frames are seen", "--video clip.mp4")


def given_sampling(fps: float | None, frames: int | None) -> str:
    """What was said of frames, as it was written; "" for nothing."""
    given = {"--fps": fps, "--frames": frames}
    return " and ".join(f"{name} {value:g}" for name, value in given.items() if value is not None)


def open_given_videos(
    sources: Sequence[str], fps: float | None, frames: int | None, files: ModelFiles, console: Console
) -> list[ChatVideo]:
    """Every video with its frames for the model, decoded now; UsageError for an empty name, errors of
    `open_video`."""
    _check_names(sources)
    if not sources:
        return []
    from ernie_local.media.open_video import open_video
    from ernie_local.session.video import ChatVideo, VideoPart

    return [
        ChatVideo(
            open_video(
                source,
                files.video_processor,
                VideoPart(source, fps, frames).sampling,
                on_frame=lambda done, all_frames: console.status.show("reading frames", done, all_frames),
            )
        )
        for source in sources
    ]


def show_video(report: VideoReport, console: Console) -> None:
    """Say what the model will see of a video."""
    console.note(f"{report.name} {video_text(report)}")
    for note in report.notes:
        console.warn(f"{printable_line(report.name)}: {spell_options(note)}")


def video_text(report: VideoReport) -> str:
    """Length, frames, sizes and tokens of a video in one line."""
    sizes = " -> ".join(f"{width}x{height}" for width, height in (report.original_size, report.resized_size))
    return (
        f"{report.duration:.1f} s, {len(report.frames)} of {report.num_frames} frames, {sizes}, "
        f"{report.tokens} tokens"
    )
