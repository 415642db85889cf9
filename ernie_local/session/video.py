"""Opens the videos of a chat: their chosen frames are stored until a prompt needs patches of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeAlias

from PIL import Image

from ernie_local.errors import InputUnreadable
from ernie_local.media.contact_sheet import SheetFrame, draw_contact_sheet
from ernie_local.media.image_size import ImageReport
from ernie_local.media.open_video import OpenedVideo, VideoSource, open_video
from ernie_local.media.patches import VideoPatches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.tokens import Grid
from ernie_local.media.video_sampling import VideoSampling, clock_text
from ernie_local.media.video_size import VideoReport
from ernie_local.progress import Pause
from ernie_local.reuse.identity import digest_of
from ernie_local.session.image import KeyedMedia


@dataclass(frozen=True, slots=True, eq=False)
class VideoPart:
    """A video of a question, and how many of its frames the model is to see.

    source: what `open_video` takes, or what it gave. fps: frames a second; by default 2, or 16 to 180 evenly
    spread where that would be fewer or more. frames: so many. start, end: seconds of the part that is seen;
    a path may say them, too: "clip.mp4@00:10-00:35". UsageError for values that mean nothing.
    """

    source: VideoSource | OpenedVideo
    fps: float | None = None
    frames: int | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        self.sampling  # noqa: B018  which refuses what means nothing

    @property
    def sampling(self) -> VideoSampling:
        """As `open_video` takes it."""
        return VideoSampling(self.fps, self.frames, start=self.start, end=self.end)


class ChatVideo(KeyedMedia):
    """An opened video, as ChatImage is an image.

    report: which frames the model sees, and at which times. path: absolute, or None for one from memory.
    content_key: a hash of its frames and of all that makes patches of them.
    """

    def __init__(self, opened: OpenedVideo) -> None:
        self.report: VideoReport = opened.report
        self.path = opened.path
        processor = opened.processor
        shape = ("video", opened.report.resized_size, processor.patch_size, processor.merge_size)
        self.content_key = digest_of(
            *shape, processor.mean, processor.std, processor.rescale_factor, opened.store.digest
        )
        self._opened = opened

    @property
    def grid(self) -> Grid:
        """(frames, rows, columns) of its patches."""
        return self.patches().grid

    @property
    def memory_report(self) -> ImageReport:
        """What the planner is to count."""
        return self.report.as_image()

    def patches(self) -> VideoPatches:
        """Its patches, which are made of the stored frames whenever they are asked for."""
        return self._opened.store.patches(self._opened.processor)

    def frame_at(self, seconds: float) -> tuple[float, bytes]:
        """The time and the RGB bytes, (height, width, 3), of the seen frame that is nearest to a time."""
        times = self.report.times
        place = min(range(len(times)), key=lambda index: abs(times[index] - seconds))
        return times[place], self._opened.store.read(place).tobytes()

    def sheet(self, most_frames: int) -> Image.Image:
        """Frames that the model sees, at most so many and evenly spread, on one sheet with their times."""
        times = self.report.times
        count = min(most_frames, len(times))
        places = [index * len(times) // count for index in range(count)]
        return draw_contact_sheet(
            [
                SheetFrame(Image.fromarray(self._opened.store.read(place)), clock_text(times[place]))
                for place in places
            ]
        )

    def release(self) -> None:
        """Nothing is to be dropped: patches are made when they are needed."""


ChatVideoSource: TypeAlias = "VideoSource | OpenedVideo | VideoPart | ChatVideo"


def open_chat_video(
    source: ChatVideoSource,
    processor: ImageProcessorConfig,
    most_tokens: int | None = None,
    pause: Pause | None = None,
) -> ChatVideo:
    """Open a video for a chat, unless it is open; arguments and errors of `open_video`."""
    if isinstance(source, ChatVideo):
        return source
    part = source if isinstance(source, VideoPart) else VideoPart(source)
    if isinstance(part.source, OpenedVideo):
        return ChatVideo(part.source)
    opened = open_video(part.source, processor, part.sampling, most_tokens=most_tokens, pause=pause)
    return ChatVideo(opened)


def open_same_video(
    path: str,
    size: tuple[int, int],
    num_frames: int,
    sampling: VideoSampling,
    processor: ImageProcessorConfig,
) -> ChatVideo:
    """The video at `path`, which had this (width, height) and number of frames; InputUnreadable where it is
    not that one."""
    # An end of a path that looks like a part belongs to its name: the part is in `sampling`.
    if not os.path.exists(path):  # noqa: PTH110
        raise InputUnreadable(
            f"{path}: no such file",
            "the chat continues from this video",
            "restore the video, or start a new chat",
        )
    video = ChatVideo(open_video(path, processor, sampling))
    now = video.report
    if (now.original_size, now.num_frames) != (size, num_frames):
        was = f"{num_frames} frames of {size[0]} x {size[1]} pixels"
        raise InputUnreadable(
            f"{path}: {was} when it was asked about, {now.num_frames} of {now.original_size[0]} x "
            f"{now.original_size[1]} now",
            "the chat continues from this video, and another one would not match what was said about it",
            "restore the video, or start a new chat",
        )
    return video
