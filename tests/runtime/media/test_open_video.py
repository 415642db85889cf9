"""Videos from files: the right frames in the right order, their times, and what is refused."""

from __future__ import annotations

import builtins
import struct
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ernie_local.errors import ErnieLocalError, InputUnreadable, Interrupted, OutOfMemory
from ernie_local.media import animation, video_size
from ernie_local.media.animation import Animation
from ernie_local.media.frame_store import FrameStore
from ernie_local.media.open_video import open_video
from ernie_local.media.processor import image_to_patches
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_config import read_video_processor
from ernie_local.media.video_file import VideoFile
from ernie_local.media.video_sampling import VideoSampling
from ernie_local.media.video_size import check_reading_memory, measure_video
from ernie_local.media.video_stamp import draw_stamp
from tests.draws import rest_slow
from tests.video_files import (
    gray_of,
    spoil_video,
    turn_video,
    write_animation,
    write_audio,
    write_video,
)

SMALL = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=56 * 56)
PUBLISHED = read_video_processor(Path("/nowhere"), ImageProcessorConfig())
ALL = VideoSampling(fps=1000, max_frames=1000)
TOLERANCE = 3  # of gray, after coding


class CountedPause:
    """Counts how often a reading pauses, and ends it at the `last` time."""

    def __init__(self, last: int | None = None) -> None:
        self.num_asked, self._last = 0, last

    def __call__(self) -> None:
        self.num_asked += 1
        if self.num_asked == self._last:
            raise Interrupted("stopped", "asked to", "go on")


def frames_of(path: Path, indices: Sequence[int], **options: Any) -> list[tuple[int, int]]:
    """Number and gray of the frames that are read."""
    with path.open("rb") as file, VideoFile(file, path.name) as video:
        return [(index, int(np.asarray(image)[40, 60, 0])) for index, image in video.read(indices, **options)]


def assert_right_frames(read: list[tuple[int, int]], indices: Sequence[int]) -> None:
    assert [index for index, _ in read] == list(indices)
    assert all(abs(gray - gray_of(index)) <= TOLERANCE for index, gray in read), read


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 100, gop=10)


@pytest.mark.parametrize(
    "indices", [[0], [99], [0, 1, 50, 51, 99], [9, 10, 11, 60], range(0, 100, 7), range(100)]
)
def test_frames_are_those_of_their_numbers(clip: Path, indices: Sequence[int]) -> None:
    assert_right_frames(frames_of(clip, indices), indices)
    assert_right_frames(frames_of(clip, indices, jumps=False), indices)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mkv", "libx264"), ("avi", "mpeg4"), ("ts", "libx264"), ("webm", "libvpx"), ("mov", "mpeg4")],
)
def test_containers(tmp_path: Path, suffix: str, codec: str) -> None:
    path = write_video(tmp_path / f"clip.{suffix}", 40, codec=codec, gop=10)
    assert_right_frames(frames_of(path, [0, 13, 39]), [0, 13, 39])


def test_bytes_are_read_as_a_file_is_and_leave_nothing_on_disk(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = VideoSampling(frames=6)
    of_file = open_video(clip, SMALL, sampling).store
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    store = open_video(clip.read_bytes(), SMALL, sampling).store
    assert store.digest == of_file.digest
    assert [store.read(index).tobytes() for index in range(6)] == [
        of_file.read(index).tobytes() for index in range(6)
    ]
    pairs = zip(store.patches(SMALL).pieces, of_file.patches(SMALL).pieces, strict=True)
    assert all(torch.equal(one.pixel_values, other.pixel_values) for one, other in pairs)


@pytest.mark.parametrize(
    ("suffix", "count"), rest_slow([("gif", 60), ("mp4", 20), ("ts", 20), ("mp4", 60), ("ts", 60)], 3)
)
def test_bytes_that_are_damaged_at_random_are_read_or_refused(
    tmp_path: Path, suffix: str, count: int
) -> None:
    path = tmp_path / f"clip.{suffix}"
    sound = (write_animation(path, [100] * 9) if suffix == "gif" else write_video(path, 40)).read_bytes()
    random, num_read = np.random.default_rng(11), 0
    for attempt in range(count):
        data = bytearray(sound[: random.integers(1, len(sound))] if attempt % 3 == 0 else sound)
        for place in random.integers(0, len(data), random.integers(1, 30)):
            data[place] = random.integers(256)
        with suppress(ErnieLocalError):
            num_read += len(open_video(bytes(data), SMALL, VideoSampling(fps=7, min_frames=1)).report.frames)
    assert num_read


def test_a_jump_that_fails_costs_no_frame(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewind, asked = VideoFile._rewind, list[int]()

    class Stubborn:
        def __init__(self, container: Any) -> None:
            self._container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

        def seek(self, target: int, **_: object) -> None:
            asked.append(target)
            raise av.error.PermissionError(1, "not permitted")

    def rewind_stubbornly(self: VideoFile) -> None:
        rewind(self)
        self._container = Stubborn(self._container)

    monkeypatch.setattr(VideoFile, "_rewind", rewind_stubbornly)
    opened = open_video(clip, SMALL, VideoSampling(frames=3))
    assert asked
    assert (opened.report.frames, opened.report.notes) == ((0, 33, 66), ())


def test_an_animation_that_asks_for_hours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 23 bytes a frame."""
    control, place = b"\x21\xf9\x04\x08\x0a\0\0\0", struct.pack("<4HB", 0, 0, 1, 1, 0)
    frame = control + b"\x2c" + place + b"\x02\x02\x44\x01\x00"
    head = b"GIF89a" + struct.pack("<2H3B", 2000, 2000, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    monkeypatch.setattr(Animation, "_draw", None)
    with pytest.raises(InputUnreadable, match="540 frames of 2000 x 2000 pixels, 536 of that size"):
        open_video(head + 540 * frame + b"\x3b", SMALL)


def test_frames_are_not_counted_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_animation(tmp_path / "a.gif", [100] * 9).read_bytes()
    monkeypatch.setattr(Animation, "_draw", None)
    monkeypatch.setattr(animation, "MOST_ANIMATION_FRAMES", 5)
    with pytest.raises(InputUnreadable, match="of 6 frames or more, 2 to 5 are possible"):
        open_video(data, SMALL)
    with pytest.raises(Interrupted):
        open_video(data, SMALL, pause=CountedPause(3))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_reading_is_ended_between_frames_that_are_not_seen(tmp_path: Path, suffix: str) -> None:
    path = write_animation(tmp_path / f"a.{suffix}", [100] * 20)
    pause, asked_at = CountedPause(), list[int]()
    sampling = VideoSampling(frames=2)
    open_video(path, SMALL, sampling, pause=pause, on_frame=lambda *_: asked_at.append(pause.num_asked))
    # Frames 0 and 10: those between are drawn, too.
    assert asked_at[-1] >= 20 + 11


def test_frames_that_fill_the_memory_are_refused_before_they_are_decoded(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_reading_memory(3840, 2160, 1000, "a.mp4")
    check_reading_memory(7680, 4320, 3_000_000, "a.mp4")
    for side, num_bytes in ((10_000, 4000), (5000, 1_000_000)):
        with pytest.raises(
            InputUnreadable, match=f"{side} x {side} pixels take .* for a file of {num_bytes:,}"
        ):
            check_reading_memory(side, side, num_bytes, "a.mp4")
    monkeypatch.setattr(video_size, "_MOST_READER_BYTES", 1)
    monkeypatch.setattr(VideoFile, "_decode", None)
    monkeypatch.setattr(Animation, "_draw", None)
    for path in (clip, write_animation(tmp_path / "a.gif", [100] * 9)):
        with pytest.raises(InputUnreadable, match="pixels take"):
            open_video(path.read_bytes(), SMALL)


def test_memory_that_cannot_be_had_is_no_fault_of_the_context() -> None:
    with pytest.raises(OutOfMemory, match="the frames of a video"):
        FrameStore((1 << 20, 1 << 20), 1 << 20, in_memory=True)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_reading_is_ended_before_its_frames_are_known(tmp_path: Path, suffix: str) -> None:
    """A file may have many frames, of which none is seen."""
    path = tmp_path / f"clip.{suffix}"
    written = write_animation(path, [100] * 9) if suffix == "gif" else write_video(path, 40)
    pause = CountedPause(5)
    with pytest.raises(Interrupted):
        open_video(written, SMALL, pause=pause)
    assert pause.num_asked == 5


def test_a_title_in_no_known_alphabet_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(path, "w") as container:
        container.metadata["title"] = "Marker"
        stream: Any = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), dtype=np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    data = path.read_bytes().replace(b"Marker", b"M\xe4rk\xe4r")
    assert open_video(data, SMALL).report.frames == (0,)


def test_the_frames_between_are_not_decoded(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    decode = VideoFile._decode

    def counting(self: VideoFile, start: int | None, wanted: Sequence[int]) -> Any:
        for one in decode(self, start, wanted):
            shown.append(one[0])
            yield one

    monkeypatch.setattr(VideoFile, "_decode", counting)
    assert_right_frames(frames_of(clip, [0, 55, 95]), [0, 55, 95])
    assert len(shown) < 20


def test_frames_are_drawn_resized_and_cut_as_images(clip: Path) -> None:
    """The last of an odd number of frames stands twice, with its time."""
    opened = open_video(clip, SMALL, VideoSampling(frames=3))
    report = opened.report
    assert (report.frames, report.num_frames, report.fps) == ((0, 33, 66), 100, 10.0)
    assert report.times == pytest.approx((0.0, 3.3, 6.6))
    patches = opened.store.patches(SMALL)
    assert patches.grid == (4, 4, 4)
    assert (patches.num_tokens, report.tokens, report.patches) == (8, 8, 64)
    values = torch.cat([pair.pixel_values for pair in patches.pieces])
    with clip.open("rb") as file, VideoFile(file, "clip") as video:
        expected = []
        for (_, frame), text in zip(
            video.read(report.frames), ("00:00:00.00", "00:00:03.30", "00:00:06.60"), strict=True
        ):
            draw_stamp(frame, f"time: {text}")
            expected.append(image_to_patches(frame, SMALL).pixel_values)
    assert torch.equal(values, torch.cat([*expected, expected[-1]]))
    assert [pair.num_patches for pair in patches.pieces] == [32, 32]


def test_the_time_is_black_on_white_in_the_corner() -> None:
    frame = Image.new("RGB", (400, 300), (90, 120, 30))
    draw_stamp(frame, "time: 00:00:01.50")
    pixels = np.asarray(frame)
    changed = (pixels != (90, 120, 30)).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 0 <= rows.min() < 15
    assert rows.max() < 45  # 30 pixels of text
    assert columns.min() <= 3
    assert (pixels[changed] == 0).all(axis=1).any()
    assert (pixels[changed] == 255).all(axis=1).any()
    tiny = Image.new("RGB", (9, 9))
    draw_stamp(tiny, "time: 00:00:01.50")
    assert not np.asarray(tiny).any()


def test_the_published_limits_give_the_published_grids() -> None:
    """`example_video.mp4` of the golden values, of 263 frames; other sizes by the rule."""
    report = measure_video("a", (1920, 1080), 1800, 30.0, VideoSampling(), PUBLISHED)
    assert (len(report.frames), report.resized_size) == (120, (1288, 700))
    assert report.tokens == 60 * 46 * 25
    small = measure_video("a", (320, 240), 20, 10.0, VideoSampling(), PUBLISHED)
    assert small.resized_size[0] * small.resized_size[1] >= 234416
    assert (small.num_seen, len(small.frames)) == (16, 16)


def test_a_part_keeps_the_times_of_the_whole(clip: Path) -> None:
    opened = open_video(f"{clip}@00:05-8.5", SMALL, VideoSampling(frames=2))
    assert opened.report.frames == (50, 67)
    assert opened.report.times == pytest.approx((5.0, 6.7))
    assert opened.report.name == f"{clip}@0:05-0:08.5"
    assert opened.path == str(clip)
    odd = clip.with_name("clip.mp4@00:01-00:02")
    odd.write_bytes(clip.read_bytes())
    assert open_video(odd, SMALL).report.num_frames == len(
        open_video(clip.read_bytes(), SMALL, ALL).report.frames
    )


def test_a_phone_held_upright_gives_upright_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 4)
    with path.open("rb") as file, VideoFile(file, "a") as video:
        ((_, lying),) = video.read([0])
    turn_video(path, 1)
    with path.open("rb") as file, VideoFile(file, "a") as video:
        assert video.size == (48, 64)
        ((_, upright),) = video.read([0])
    assert upright.tobytes() == lying.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_uneven_frames_are_counted_and_the_clock_is_told(tmp_path: Path) -> None:
    times = [*range(0, 2000, 100), *range(2000, 22000, 1000)]
    path = write_video(tmp_path / "a.mp4", 40, 10, times=times)
    assert_right_frames(frames_of(path, [0, 21, 39]), [0, 21, 39])
    (note,) = open_video(path, SMALL).report.notes
    assert "come unevenly" in note


def test_a_header_with_a_wrong_rate_does_not_count(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", 40, 90, times=range(0, 4000, 100))
    with path.open("rb") as file, VideoFile(file, "a") as video:
        assert video.fps == pytest.approx(10.0, rel=0.05)


def test_broken_frames_are_replaced_by_their_neighbours(tmp_path: Path) -> None:
    path = spoil_video(write_video(tmp_path / "a.mp4", 40, codec="mjpeg"), {10, 11})
    read = [index for index, _ in frames_of(path, range(40))]
    assert [index for index in range(40) if index not in read] == [10, 11]
    opened = open_video(path, SMALL, ALL)
    assert opened.report.frames == (*range(10), 9, 12, *range(12, 40))
    assert opened.report.times[10] == pytest.approx(0.9)
    assert opened.report.notes == ("2 of 40 frames cannot be decoded: frames beside them are read",)
    assert np.array_equal(opened.store.read(10), opened.store.read(9))
    assert np.array_equal(opened.store.read(11), opened.store.read(12))


def test_a_hole_without_neighbours_is_refused(tmp_path: Path) -> None:
    path = spoil_video(write_video(tmp_path / "a.mp4", 60, codec="mjpeg"), range(20, 42))
    with pytest.raises(InputUnreadable, match=r"frame 30 of 60 cannot be decoded, nor 18 beside it"):
        open_video(path, SMALL, VideoSampling(frames=2))


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_moving_images(tmp_path: Path, suffix: str) -> None:
    """A frame that stays for twice as long is seen twice as often."""
    path = write_animation(tmp_path / f"a.{suffix}", [100, 200, 100, 100, 100])
    opened = open_video(path, SMALL, VideoSampling(frames=5))
    assert opened.report.num_frames == 5
    assert opened.report.fps == pytest.approx(5 / 0.6)
    grays = [int(opened.store.read(place)[-1, -1, 0]) for place in range(5)]
    assert grays == pytest.approx([gray_of(index) for index in (0, 1, 1, 2, 3)], abs=2)


def test_a_cut_off_file_is_read_until_its_end(tmp_path: Path, clip: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", 60, size=(320, 240))
    path = tmp_path / "b.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = open_video(path, SMALL).report
    assert 5 < report.num_frames < 60
    cut = tmp_path / "b.mp4"
    cut.write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(InputUnreadable, match="cannot be read as a video"):
        open_video(cut, SMALL)


def bad_files(folder: Path) -> list[tuple[Any, str]]:
    picture = folder / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    still = write_animation(folder / "still.gif", [100])
    text, empty, playlist = folder / "a.mp4", folder / "empty.mp4", folder / "list.m3u8"
    text.write_text("no video at all, but long enough to be looked at by anybody")
    empty.write_bytes(b"")
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{write_video(folder / 'in.ts', 4)}\n#EXT-X-ENDLIST\n")
    return [
        (picture, "is a PNG file, not a video"),
        (still, "of 1 frames"),
        (text, "cannot be read as a video"),
        (empty, "holds 0 bytes"),
        (playlist, "cannot be read as a video"),
        (folder, "is a folder, not a video"),
        (folder / "none.mp4", "no such file"),
        ("/dev/zero", "is a pipe or a device"),
        (write_audio(folder / "a.m4a"), "0 video streams in 1 streams"),
        (b"\0" * 4000, "cannot be read as a video"),
        (write_video(folder / "thin.mp4", 4, size=(1000, 4)), "one side 250.0 times the other"),
    ]


def test_what_is_no_video_is_refused_in_three_lines(tmp_path: Path) -> None:
    for source, message in bad_files(tmp_path):
        with pytest.raises(InputUnreadable, match=message) as caught:
            open_video(source, SMALL)
        assert len(str(caught.value).splitlines()) == 3
        assert caught.value.exit_code == 5


def test_without_the_extra_the_message_names_it(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_av(name: str, *arguments: Any, **others: Any) -> Any:
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(InputUnreadable, match=r"pip install 'ernie-local\[video\]'"):
        open_video(clip, SMALL)
    monkeypatch.undo()
    monkeypatch.setattr("ernie_local.media.video_stamp._PACKAGE", "no_such_font")
    with pytest.raises(InputUnreadable, match="no package no_such_font"):
        open_video(clip, SMALL)


def test_a_full_disk_is_told(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ernie_local.media.frame_store.os.pwrite", full)
    with pytest.raises(ErnieLocalError, match="No space left") as caught:
        open_video(clip, SMALL)
    assert caught.value.exit_code == 3
