"""Videos of a chat: their places in the prompt, their frames, their times, what is saved and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ernie_local import ChatMessage, VideoPart
from ernie_local.errors import DoesNotFit, InputUnreadable, Interrupted, UsageError
from ernie_local.media.frame_store import FrameStore
from ernie_local.media.open_video import open_video
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.session import Chat, open_chat_video, sheet_path, write_sheet
from ernie_local.session.transcript import read_saved_chat
from tests.runtime.conftest import Talk, Talks
from tests.video_files import write_animation, write_video

SMALL = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=56 * 56)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 50)


@pytest.fixture
def chat(talk: Talks) -> Talk:
    one = talk()
    one.chat.model.files.video_processor = SMALL
    return one


def test_images_then_videos_then_text_stand_in_the_prompt(chat: Talk, clip: Path, image: Path) -> None:
    answer = chat.ask("What happens?", "It turns at 0:03.", images=[str(image)], videos=[str(clip)])
    text = chat.cached_text()
    assert text.index("Picture 1:") < text.index("Video 1:") < text.index("What happens?")
    (video,) = answer.videos
    assert (len(video.frames), video.num_frames) == (16, 50)
    assert video.tokens == 8 * 2 * 2
    assert answer.usage.video_tokens == video.tokens
    assert answer.usage.image_tokens == answer.images[0].tokens
    assert [(time.seconds, time.video, time.name) for time in answer.times] == [(3.0, 1, str(clip))]
    chat.ask("And then?", "x", videos=VideoPart(clip, frames=4))
    assert "Video 2:" in chat.cached_text()
    assert chat.chat.last is not None
    assert chat.chat.last.usage.cached_tokens > video.tokens


def test_parts_in_any_order(chat: Talk, clip: Path) -> None:
    parts: list[Any] = [
        VideoPart(clip, frames=2),
        "Before.",
        Image.new("RGB", (56, 56)),
        VideoPart(clip, fps=1),
        "Both?",
    ]
    chat.engine.say("x", "</s>")
    list(chat.chat.send([ChatMessage("user", parts)]))
    text = chat.cached_text()
    places = [text.index(one) for one in ("Video 1:", "Before.", "Picture 1:", "Video 2:", "Both?")]
    assert places == sorted(places)
    (turn,) = chat.chat.history
    assert [one.num_tokens for one in turn.media] == [4, turn.images[0].num_tokens, 32]
    assert [one.grid for one in turn.media if one not in turn.images] == [(2, 4, 4), (16, 4, 4)]


def test_times_behind_the_end_are_none(chat: Talk, clip: Path) -> None:
    answer = chat.ask("When?", "At 0:04, and the clock shows 10:30.", videos=clip)
    assert [time.seconds for time in answer.times] == [4]
    assert chat.ask("Again?", "At 0:02.").times[0].name == str(clip)
    other = chat.ask("And here?", "At 0:01.", videos=VideoPart(clip, frames=2))
    assert other.times[0].video == 2
    assert chat.ask("Which?", "At 0:01.").times[0].video is None


def test_equal_frames_are_equal_videos(clip: Path) -> None:
    one, same, other = (open_chat_video(VideoPart(clip, frames=frames), SMALL) for frames in (4, 4, 6))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert open_chat_video(open_video(clip.read_bytes(), SMALL), SMALL).path is None


def test_a_chat_with_videos_is_saved_and_continued(chat: Talk, clip: Path, tmp_path: Path) -> None:
    chat.ask("What?", "This.", videos=[f"{clip}@0:01-0:04", VideoPart(clip, fps=1.0)])
    path = tmp_path / "chat.json"
    chat.chat.save(path)
    files = chat.chat.model.files
    loaded = read_saved_chat(path, files)
    assert loaded.media == list(chat.chat.history[0].media)
    content = json.loads(path.read_text())
    content["turns"][0]["question"][0]["content"][0]["frames"] = 51
    path.write_text(json.dumps(content))
    with pytest.raises(InputUnreadable, match="51 frames of 64 x 48 pixels when it was asked about, 50 of"):
        Chat.load(path, chat.chat.model)


def test_a_video_from_memory_cannot_be_saved(chat: Talk, clip: Path, tmp_path: Path) -> None:
    chat.ask("What?", "This.", videos=[clip.read_bytes()])
    with pytest.raises(UsageError, match="turn 1 of the chat has a video without a path"):
        chat.chat.save(tmp_path / "chat.json")


def test_moments_are_shown_on_a_sheet(chat: Talk, tmp_path: Path) -> None:
    path = write_animation(tmp_path / "a.gif", [1000] * 20)
    answer = chat.ask("When?", "At 0:00, 0:05 and 0:19.", videos=path)
    (video,) = chat.chat.history[0].media
    out = tmp_path / "sheet.png"
    assert write_sheet(out, answer.times, [video]) == [out]  # type: ignore[list-item]
    with Image.open(out) as sheet:
        assert sheet.width > 3 * 480
        grays = [sheet.getpixel((12 + step * 492 + 470, 40)) for step in range(3)]
    assert len(set(grays)) == 3
    assert write_sheet(tmp_path / "none.png", (), []) == []
    chat.chat.undo()
    assert write_sheet(tmp_path / "none.png", answer.times, []) == []
    assert sheet_path(out, has_images=True).name == "sheet-times.png"


def test_a_video_cannot_be_zoomed_into_and_an_image_beside_it_can(talk: Talks, tmp_path: Path) -> None:
    one = talk(variant="thinking", zoom=True)
    one.chat.model.files.video_processor = SMALL
    path = write_animation(tmp_path / "a.gif", [1000] * 20)
    box = '<tool_call>\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500]}}\n'
    says = "so\n</think>\n\n" + box + "</tool_call>\n"
    one.engine.say(says, "</think>\n\nAt 0:05.")
    list(one.chat.ask("When?", videos=path))
    assert one.chat.last is not None
    (step,) = one.chat.last.steps
    assert step.result.text == "error: the chat has 0 images, and only they can be zoomed into"
    assert [(time.seconds, time.video) for time in one.chat.last.times] == [(5.0, 1)]
    one.engine.say(says, "</think>\n\nPicture 2: [1, 2, 30, 40] at 0:06.")
    list(one.chat.ask("And?", images=Image.new("RGB", (112, 112))))
    (step,) = one.chat.last.steps
    assert (step.first_image, step.is_error) == (2, False)
    assert [box.image for box in one.chat.last.boxes] == [2]
    assert [(time.seconds, time.video) for time in one.chat.last.times] == [(6.0, 1)]
    usage = one.chat.last.usage
    (video,) = one.chat.history[0].media
    assert usage.video_tokens == video.num_tokens
    assert usage.image_tokens == sum(image.num_tokens for image in one.chat.history[1].images)


def test_frames_that_fill_the_disk_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda _file, data, _at: len(data) - 1)
    with pytest.raises(DoesNotFit, match="the frames of a video: "):
        open_video(clip, SMALL)


def test_videos_of_a_conversation_share_the_context(chat: Talk, clip: Path) -> None:
    """The second is refused before a frame of it is decoded, with what is left."""
    context = chat.engine.context_size
    chat.chat.model.files.video_processor = ImageProcessorConfig(min_pixels=28 * 28 * 100)
    first = open_chat_video(VideoPart(clip, frames=2), chat.chat.model.files.video_processor)
    num_frames = 2 * (context // first.num_tokens)
    room = context - first.num_tokens
    words = f"{num_frames} frames take {num_frames // 2 * first.num_tokens} tokens, .* room for {room}"
    parts: list[Any] = [VideoPart(clip, frames=2), VideoPart(clip.read_bytes(), frames=num_frames), "Both?"]
    with pytest.raises(DoesNotFit, match=words):
        chat.chat.send([ChatMessage("user", parts)])
    with pytest.raises(DoesNotFit, match=words):
        chat.chat.send([ChatMessage("user", parts[:1]), ChatMessage("user", parts[1:])])
    chat.ask("One?", "x", videos=parts[0])
    with pytest.raises(DoesNotFit, match=words):
        chat.chat.ask("Two?", videos=parts[1])


def test_a_stop_ends_the_reading_of_a_video(chat: Talk, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = FrameStore.write, list[int]()

    def stopping(self: FrameStore, index: int, frame: Image.Image) -> None:
        write(self, index, frame)
        written.append(index)
        chat.chat.stop()

    with monkeypatch.context() as patched:
        patched.setattr(FrameStore, "write", stopping)
        with pytest.raises(Interrupted, match="after 0 of 1 messages"):
            chat.chat.ask("What?", videos=VideoPart(clip, frames=12))
    assert len(written) < 12
    assert chat.ask("What?", "This.", videos=VideoPart(clip, frames=4)).finish_reason == "stop"


@pytest.mark.parametrize("role", ["system", "assistant"])
def test_only_users_and_tools_show_videos(clip: Path, role: str) -> None:
    with pytest.raises(UsageError, match="with 0 images and 1 videos"):
        ChatMessage(role, [VideoPart(clip)])  # type: ignore[arg-type]
