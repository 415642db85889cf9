"""Which files are videos, and what a reader asks about one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local.errors import DoesNotFit, InputUnreadable, Interrupted, ModelUnusable, UsageError
from ernie_local.extraction.documents import VIDEO, document_kind, documents_of, find_files
from ernie_local.extraction.reader import NO_BOXES_NOTE, ReadingOptions
from ernie_local.extraction.record import Record
from ernie_local.extraction.videos import draw_moments, sheet_of_video
from ernie_local.media.draw_boxes import is_drawing
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_file import VideoFile
from ernie_local.session import VideoPart, open_chat_video
from ernie_local.structured import AnswerForm
from tests.runtime.extraction.test_reader import TOTALS, ScriptedChat, reader
from tests.video_files import gray_of, write_animation, write_video

SMALL = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=56 * 56)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 50)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.avi", "a.mpg", "a.flv"])
def test_a_video_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    codec = {".webm": "libvpx", ".mpg": "mpeg2video", ".flv": "flv1"}.get(name[1:], "mpeg4")
    path = write_video(tmp_path / name, 5, 25, codec=codec)
    hidden = path.rename(tmp_path / "scan.png")
    assert document_kind(hidden) == VIDEO
    assert find_files([tmp_path]).files[0].name == "scan.png"


def test_only_what_moves_is_a_video(tmp_path: Path) -> None:
    kinds = {}
    for name in ("a.gif", "a.webp"):
        kinds[f"moving {name}"] = document_kind(write_animation(tmp_path / f"moving-{name}", [100] * 3))
        Image.new("RGB", (9, 9)).save(tmp_path / name)
        kinds[name] = document_kind(tmp_path / name)
    assert kinds == {"moving a.gif": VIDEO, "a.gif": "GIF", "moving a.webp": VIDEO, "a.webp": "WebP"}
    Image.new("RGB", (9, 9)).save(tmp_path / "page.mp4", "PNG")
    assert document_kind(tmp_path / "page.mp4") == "PNG"
    (tmp_path / "noise.mov").write_bytes(bytes(range(256)))
    assert document_kind(tmp_path / "noise.mov") == VIDEO  # and the decoder says what is wrong
    (tmp_path / "noise.png").write_bytes(bytes(range(256)))
    with pytest.raises(InputUnreadable, match="is not an image"):
        document_kind(tmp_path / "noise.png")
    (document,) = documents_of(find_files([tmp_path / "moving-a.gif"]).files, per_file=True)
    assert (document.is_video, document.key) == (True, ("moving-a.gif", None))


def test_a_video_is_asked_about_once_and_without_boxes(clip: Path) -> None:
    form = AnswerForm.of("total: number")
    chat = ScriptedChat({"total": 12}, {"total": 13})
    chat.model.files.video_processor = SMALL
    asking = reader(chat, form, boxes=True, frames=6)
    video = asking.open_video(clip)
    assert len(video.report.frames) == 6
    found = asking.read([video])
    assert (found.fields, found.boxes, found.notes) == ({"total": 12}, {}, (NO_BOXES_NOTE,))
    ((text, num_images, asked),) = chat.asked
    assert (text, num_images, asked) == ("Read the fields of this video.", 0, form)
    assert reader(chat, form, prompt="Look.").read([video]).notes == ()
    assert chat.asked[1][0] == "Look."
    assert [len(message.media) for message in chat.messages] == [1, 1]


def test_a_model_that_cannot_see_videos_is_an_error_of_the_document(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Files:
        @property
        def video_processor(self) -> ImageProcessorConfig:
            raise ModelUnusable("fps = 3 is not supported", "only 2 is", "another file")

    chat = ScriptedChat()
    chat.model.files = Files()
    with pytest.raises(InputUnreadable, match=r"clip\.mp4: fps = 3 is not supported"):
        reader(chat).open_video(clip)


def test_a_video_beyond_the_context_is_refused_before_it_is_decoded(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = ScriptedChat()
    chat.model.files.video_processor = SMALL
    chat.model.settings.context_size = 5
    monkeypatch.setattr(VideoFile, "read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DoesNotFit, match=r"clip\.mp4: 6 frames take \d+ tokens, the context has room for 5"):
        reader(chat, frames=6).open_video(clip)


def test_a_stop_ends_the_reading_of_a_video(clip: Path) -> None:
    chat = ScriptedChat()
    chat.model.files.video_processor = SMALL
    asking = reader(chat)
    asking.stop()
    with pytest.raises(Interrupted):
        asking.open_video(clip)


def test_frames_are_part_of_the_identity_and_nothing_else_changed() -> None:
    def detail(**options: Any) -> str:
        return ReadingOptions(TOTALS, **options).identity()["detail"]

    assert detail() == "high"  # as in files of records that were written before
    assert detail(trim=True, fps=0.5) == "high, trimmed, fps 0.5"
    assert detail(frames=8) == "high, frames 8"


def test_moments_of_a_record_are_drawn(clip: Path, tmp_path: Path) -> None:
    video = open_chat_video(VideoPart(clip, frames=50), SMALL)
    record = Record("in/clip.mp4", fields={"start": 1, "turns": ["at 0:03", "at 9:59"]})
    path = draw_moments(record, video, tmp_path)
    assert path == tmp_path / "in" / "clip.mp4.png"
    assert is_drawing(path)
    with Image.open(path) as sheet:
        grays = [sheet.getpixel((12 + step * 492 + 470, 12 + 350)) for step in range(2)]
        assert sheet.width == 2 * 492 + 12
    for gray, index in zip(grays, (10, 30), strict=True):
        assert abs(gray[0] - gray_of(index)) < 8  # type: ignore[index]
    assert draw_moments(record, video, tmp_path) == path  # again
    assert draw_moments(Record("clip.mp4", fields={"count": 3}), video, tmp_path) is None


def test_a_file_of_the_user_is_not_drawn_over(clip: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "clip.mp4.png"
    Image.new("RGB", (9, 9)).save(theirs)
    before = theirs.read_bytes()
    with pytest.raises(UsageError, match=r"will not draw over .*clip\.mp4\.png"):
        draw_moments(
            Record("clip.mp4", fields={"start": 1}), open_chat_video(VideoPart(clip), SMALL), tmp_path
        )
    assert theirs.read_bytes() == before


def test_a_sheet_shows_frames_from_start_to_end(clip: Path) -> None:
    sheet = sheet_of_video(clip)
    assert sheet.width == 4 * 492 + 12
    left = sheet.getpixel((12 + 470, 12 + 350))
    assert isinstance(left, tuple)
    assert abs(left[0] - gray_of(0)) < 8
