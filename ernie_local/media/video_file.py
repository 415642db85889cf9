"""Reads chosen frames of a video file by PyAV: counts them without decoding, then decodes what it must.

Frames are numbered from 0 in the order in which they are shown. Memory holds a few frames, however long the
video is.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from ernie_local.errors import InputUnreadable
from ernie_local.media.decode import check_size
from ernie_local.media.video_size import check_reading_memory
from ernie_local.media.video_stamp import missing_extra
from ernie_local.progress import Pause
from ernie_local.sizes import format_bytes

if TYPE_CHECKING:
    from PIL import Image

# By FFmpeg's names. No playlists: they name other files and addresses.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,hevc,av1,obu,ivf,m4v,"
    "nut,mxf,dv,apng"
)
_INDEXED = {"mov", "matroska", "avi"}  # where a place can be sought exactly
_MOST_THREADS = 8  # each holds some frames
# Later keyframes than the frame before are jumped to where at least so many frames are saved.
_LEAST_JUMP = 8
_LARGEST_RATIO = 1.25
_FPS_OF_NONE = 25.0  # what FFmpeg takes where nothing is known
_LARGEST_DRIFT = 0.5  # seconds; the model reads times of hundredths


class VideoFile:
    """A video file that is open.

    name: for the user. num_frames: that are shown. fps: on average. size: (width, height) upright. notes: for
    the user. Closing is up to the caller (`with`).
    """

    def __init__(self, file: BinaryIO, name: str, pause: Pause | None = None) -> None:
        """pause: is called between packets, and ends the reading by what it raises.

        InputUnreadable without PyAV, for what is no video, has no picture, no frame, or is too large.
        """
        try:
            import av
        except ImportError as error:
            raise missing_extra(name, f"its decoder is optional: {error}") from error
        self.name, self._file, self._pause = name, file, pause
        # PyAV itself stumbles over packets of a stream that begins later in the file.
        self._errors: tuple[type[Exception], ...] = (av.FFmpegError, IndexError)
        self._open_container: Callable[..., Any] = av.open
        self._num_bytes = file.seek(0, os.SEEK_END)
        self.notes: tuple[str, ...] = ()
        self._container: Any = None
        try:
            self._rewind()
            self._scan()
            self._look_at_first()
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._container is not None:
            self._container.close()

    def read(
        self, indices: Sequence[int], *, jumps: bool = True
    ) -> Generator[tuple[int, Image.Image], None, None]:
        """Frames as RGB images, upright, as large as the first one, of these ascending indices.

        A frame that cannot be decoded is left out. jumps: to the keyframe before a frame, where that saves
        decoding; files whose keyframes are not what they say need a reading without.
        """
        wanted, place = list(indices), 0
        target = self._jump(wanted[0], 0) if wanted and jumps else None
        self._rewind()
        while place < len(wanted):
            try:
                if target is not None:
                    self._container.seek(target, stream=self._stream)
            except self._errors:
                return  # a reading without jumps may find more
            start, target = target, None
            for index, frame in self._decode(start, wanted):
                while place < len(wanted) and wanted[place] < index:
                    place += 1
                if place == len(wanted):
                    return
                if wanted[place] == index:
                    yield index, self._to_image(frame)
                    place += 1
                    if place == len(wanted):
                        return
                target = self._jump(wanted[place], index) if jumps else None
                if target is not None:
                    break
            if target is None:
                return

    def _rewind(self) -> None:
        """Open the file anew: not every container can be sought to its beginning."""
        self.__exit__()
        self._file.seek(0)
        try:
            options = {"format_whitelist": _CONTAINERS}
            # Titles and names of authors are often in no known alphabet.
            self._container = self._open_container(
                self._file, container_options=options, metadata_errors="replace"
            )
        except self._errors as error:
            raise self._broken("cannot be read as a video", error) from error
        streams = self._container.streams.video
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            raise InputUnreadable(
                f"{self.name}: 0 video streams in {len(self._container.streams)} streams",
                f"it holds {' and '.join(kinds) or 'nothing'} only, and the model reads pictures",
                "give a file with moving pictures",
            )
        # A picture of a cover is a stream, too.
        self._stream = next((one for one in streams if not _is_cover(one)), streams[0])
        context = self._stream.codec_context
        if context is None:
            raise self._broken("is coded in a way that PyAV does not decode", None)
        self._check_size(context.width, context.height)
        self._stream.thread_type = "AUTO"
        context.thread_count = min(os.cpu_count() or 1, _MOST_THREADS)

    def _look_at_first(self) -> None:
        """Take size and rotation of the first frame."""
        self._rewind()
        first = next(self._decode(None, range(self.num_frames)), None)
        if first is None:
            raise self._broken(f"none of its {self.num_frames} frames can be decoded", None)
        width, height = self._frame_size = first[1].width, first[1].height
        self._rotation = round(first[1].rotation / 90) % 4  # quarter turns to the left
        self.size = (height, width) if self._rotation % 2 else (width, height)
        self._check_size(*self.size)

    def _check_size(self, width: int, height: int) -> None:
        check_size(width, height, self.name)
        check_reading_memory(width, height, self._num_bytes, self.name)

    def _scan(self) -> None:
        """Count the frames, and note when they are shown and which of them can be begun with."""
        times, starts = array("q"), array("q")
        num_frames, has_times = 0, True
        try:
            for packet in self._container.demux(self._stream):
                if self._pause is not None:
                    self._pause()
                if packet.size == 0 or packet.is_discard:
                    continue
                num_frames += 1
                if packet.pts is None:
                    has_times = False
                    continue
                times.append(packet.pts)
                if packet.is_keyframe:
                    starts.append(packet.pts)
        except self._errors as error:
            if not num_frames:
                raise self._broken("cannot be read", error) from error
            self.notes += (f"it is damaged behind {num_frames} frames, and read until there",)
        if not num_frames:
            raise self._broken("has 0 frames", None)
        ordered = array("q", sorted(times))
        # Without a time of its own for each, frames are counted as they come.
        self._times = ordered if has_times and len(set(ordered)) == num_frames else None
        self._starts = sorted(starts)
        self.num_frames = num_frames
        stated = self._stream.frames
        if stated > num_frames and not self.notes:
            self.notes += (f"it ends early: {num_frames} of {stated} frames are there",)
        self._settle_rate()

    def _settle_rate(self) -> None:
        """Frames a second as the header says, unless the clock of the frames says something else.

        Notes how far the times that the model sees are from that clock, where frames come unevenly.
        """
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else _FPS_OF_NONE
        if self._times is None or self.num_frames < 2:
            return
        span = float((self._times[-1] - self._times[0]) * self._stream.time_base)
        by_clock = (self.num_frames - 1) / span
        if not 1 / _LARGEST_RATIO < by_clock / self.fps < _LARGEST_RATIO:
            told = "says nothing of" if not rate else f"says {self.fps:g}"
            note = f"its header {told} frames a second, its frames have {by_clock:.2f}, which counts"
            self.notes += (note,)
            self.fps = by_clock
        base, first = float(self._stream.time_base), self._times[0]
        drift = max(abs((at - first) * base - index / self.fps) for index, at in enumerate(self._times))
        if drift > _LARGEST_DRIFT:
            note = f"its frames come unevenly: the time on them is up to {drift:.1f} s from the clock's"
            self.notes += (f"{note}, as the model was trained to count",)

    def _jump(self, wanted: int, position: int) -> int | None:
        """The time of the last keyframe before `wanted`, if jumping there saves frames; None if not."""
        if self._times is None or not _INDEXED & {*self._container.format.name.split(",")}:
            return None
        place = bisect_left(self._starts, self._times[wanted] + 1) - 1
        if place < 0 or bisect_left(self._times, self._starts[place]) < position + _LEAST_JUMP:
            return None
        return self._starts[place]

    def _decode(self, start: int | None, wanted: Sequence[int]) -> Iterator[tuple[int, Any]]:
        """Numbers and frames from the current place on: all that are wanted, and some others.

        start: earlier times are left out.
        """
        count = 0
        kept = None if self._times is None else {self._times[index] for index in wanted}
        context = self._stream.codec_context
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._errors:
                packet = None
            if packet is None:
                return
            if self._pause is not None:
                self._pause()
            if kept is not None:  # one that no other frame needs is skipped
                context.skip_frame = "DEFAULT" if packet.pts in kept else "NONREF"
            try:
                frames = packet.decode()
            except self._errors:
                continue  # what is missing is found by its number
            for frame in frames:
                index = count if self._times is None else self._index_of(frame.pts)
                count += 1
                if index is not None and (start is None or frame.pts >= start):
                    yield index, frame

    def _index_of(self, time: int | None) -> int | None:
        assert self._times is not None
        if time is None:
            return None
        index = bisect_left(self._times, time)
        return index if index < len(self._times) and self._times[index] == time else None

    def _to_image(self, frame: Any) -> Image.Image:
        from PIL import Image

        width, height = self._frame_size
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
        image = Image.fromarray(pixels)
        turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        turn = turns[self._rotation]
        return image if turn is None else image.transpose(turn)

    def _broken(self, what: str, error: Exception | None) -> InputUnreadable:
        reason = "" if error is None else f"; the decoder says: {getattr(error, 'strerror', None) or error}"
        return InputUnreadable(
            f"{self.name}: {format_bytes(self._num_bytes)}: {what}",
            f"it may be cut off or damaged, or no video{reason}",
            "copy or download it again, or convert it: ffmpeg -i in.mov -c:v libx264 out.mp4",
        )


def _is_cover(stream: Any) -> bool:
    return bool(getattr(stream, "disposition", 0) & 0x400)  # AV_DISPOSITION_ATTACHED_PIC
