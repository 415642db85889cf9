"""Computes from size and frames of a video how large it is for the model: frames, patches, tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.errors import InputUnreadable
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_sampling import VideoSampling, frame_time
from ernie_local.sizes import format_bytes

_TEMPORAL_MERGE = 2  # frames that one token joins
_PIXEL_BYTES = 3
# Frames that are held at a time while a video is read: decoder, picture, drawn and resized ones.
_FRAMES_HELD, _READER_BYTES = 24, 48 << 20
# What reading any file may take, or so many bytes for each of its own.
_MOST_READER_BYTES, _BYTES_PER_FILE_BYTE = 1 << 30, 1000


@dataclass(frozen=True, slots=True)
class VideoReport:
    """What the model sees of a video. Sizes are (width, height) in pixels.

    num_frames, fps: of the file. frames: the numbers of the chosen ones, and times: the seconds written on
    them. tokens: placeholders in the prompt, without the two tags around them. patches: of all chosen frames,
    with the last one twice where their number is odd. notes: for the user. start, end: of the part that was
    asked for, None for the video's own. wanted_fps, wanted_frames: as asked for, None where that was not.
    """

    name: str
    original_size: tuple[int, int]
    resized_size: tuple[int, int]
    num_frames: int
    fps: float
    frames: tuple[int, ...]
    times: tuple[float, ...]
    patches: int
    tokens: int
    notes: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    wanted_fps: float | None = None
    wanted_frames: int | None = None

    @property
    def duration(self) -> float:
        """Seconds of the whole file."""
        return self.num_frames / self.fps

    @property
    def num_seen(self) -> int:
        """Frames that the model sees: an even number."""
        return len(self.frames) + len(self.frames) % _TEMPORAL_MERGE

    @property
    def pair_patches(self) -> int:
        """Of two frames, which are encoded by themselves."""
        return _TEMPORAL_MERGE * self.patches // self.num_seen

    @property
    def reader_bytes(self) -> int:
        """About the memory that reading it takes, however long it is; the chosen frames lie on disk."""
        return _reader_bytes(*self.original_size)

    @property
    def stored_bytes(self) -> int:
        """Of the chosen frames on disk, as the model sees them."""
        width, height = self.resized_size
        return len(self.frames) * _PIXEL_BYTES * width * height

    def as_image(self) -> ImageReport:
        """What it takes of memory: as an image of all its tokens, and of the patches of two frames."""
        name = f"{self.name} (video)"
        return ImageReport(name, self.original_size, self.resized_size, self.pair_patches, self.tokens)


def _reader_bytes(width: int, height: int) -> int:
    return _READER_BYTES + _FRAMES_HELD * _PIXEL_BYTES * width * height


def check_reading_memory(width: int, height: int, num_bytes: int, name: str) -> None:
    """InputUnreadable where reading frames of this size takes far more than a file of `num_bytes` should."""
    needed, most = _reader_bytes(width, height), max(_MOST_READER_BYTES, _BYTES_PER_FILE_BYTE * num_bytes)
    if needed > most:
        raise InputUnreadable(
            f"{name}: frames of {width} x {height} pixels take {format_bytes(needed)} to read, at most "
            f"{format_bytes(most)} for a file of {num_bytes:,} bytes",
            "videos of this size have larger files: this one is nearly blank, or was made to fill the memory",
            "make it smaller: ffmpeg -i in.mp4 -vf scale=1920:-2 out.mp4",
        )


def measure_video(
    name: str,
    size: tuple[int, int],
    num_frames: int,
    fps: float,
    sampling: VideoSampling,
    processor: ImageProcessorConfig,
) -> VideoReport:
    """What the model would see of a video of (width, height) `size`. processor: as of `read_video_processor`.

    InputUnreadable for a part that does not lie in it, and as of `measure_image`.
    """
    part = sampling.part_of(num_frames, fps, name)
    frames = tuple(part.start + index for index in sampling.choose(len(part), fps))
    frame = measure_image(name, size, processor)
    num_seen = len(frames) + len(frames) % _TEMPORAL_MERGE
    return VideoReport(
        name=name,
        original_size=size,
        resized_size=frame.resized_size,
        num_frames=num_frames,
        fps=fps,
        frames=frames,
        times=tuple(frame_time(index, num_frames, fps) for index in frames),
        patches=num_seen * frame.patches,
        tokens=num_seen // _TEMPORAL_MERGE * frame.tokens,
        start=sampling.start,
        end=sampling.end,
        wanted_fps=sampling.fps,
        wanted_frames=sampling.frames,
    )
