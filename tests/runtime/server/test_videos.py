"""Videos in requests: seen as by the library, reused, and refused with the reason if they cannot be read."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from ernie_local.loading import LoadedModel
from ernie_local.media.frame_store import FrameStore
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.server.attachments import AttachmentLimits, Attachments
from ernie_local.server.conversation import chat_messages
from ernie_local.server.requests import ChatRequest, read_body
from ernie_local.session import Chat, ImagePart, VideoPart
from tests.runtime.server.conftest import serving
from tests.runtime.server.scripted import ScriptedChat
from tests.runtime.server.serving import INVOICE, Served
from tests.video_files import write_animation, write_audio, write_video

CHAT = "/v1/chat/completions"
QUESTION = {"type": "text", "text": "When?"}
SMALL = ImageProcessorConfig(min_pixels=28 * 28, max_pixels=56 * 56)


@pytest.fixture(autouse=True)
def _small_frames(nano_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of few tokens: what the model makes of them does not matter here."""
    monkeypatch.setattr(nano_model.files, "video_processor", SMALL)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Three seconds."""
    return write_video(tmp_path_factory.mktemp("video") / "clip.mp4", 30).read_bytes()


@pytest.fixture(scope="module")
def gif(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Twenty seconds, as a moving image."""
    return write_animation(tmp_path_factory.mktemp("video") / "a.gif", [1000] * 20).read_bytes()


def video(data: bytes, kind: str = "video/mp4", **settings: Any) -> dict[str, Any]:
    """A video as a part of a message."""
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "video_url", "video_url": {"url": url, **settings}}


def post(served: Served, parts: list[Any], path: str = CHAT, **more: Any) -> httpx2.Response:
    """The answer to one message."""
    messages = [{"role": more.pop("role", "user"), "content": parts}]
    name = "input" if path == "/v1/responses" else "messages"
    return httpx2.post(f"{served.url}{path}", json={name: messages, **more}, timeout=120)


def test_an_answer_about_a_video_is_that_of_the_library(
    served: Served, nano_model: LoadedModel, clip: bytes
) -> None:
    chat = Chat(nano_model)
    asked = chat.ask("When?", videos=VideoPart(clip, frames=4), max_tokens=6)
    expected = "".join(piece.text for piece in asked)
    assert chat.last is not None
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": [video(clip, frames=4), QUESTION]}]
    first = client.chat.completions.create(model="nano", messages=messages, max_tokens=6)
    said = first.choices[0].message.content
    assert said == expected
    assert first.usage is not None
    assert first.usage.prompt_tokens == chat.last.usage.prompt_tokens
    details: Any = first.usage.prompt_tokens_details
    assert (details.video_tokens, details.image_tokens) == (chat.last.usage.video_tokens, 0)
    assert details.video_tokens > 0
    # The second turn sends the clip again, and computes only what is new.
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Again?"}]
    cached = []
    for settings in ({"frames": 4}, {"frames": 4, "start": 1.0}):
        messages[0]["content"][0] = video(clip, **settings)
        again = client.chat.completions.create(model="nano", messages=messages, max_tokens=1)
        assert again.usage is not None
        assert again.usage.prompt_tokens_details is not None
        cached.append(again.usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[0] > first.usage.prompt_tokens - 10
    assert cached[1] < first.usage.prompt_tokens - details.video_tokens


@pytest.mark.parametrize(
    "part",
    [
        {"video_url": {"url": "data:,clip", "frames": 2, "start": 1}},
        {"video_url": {"url": "data:,clip", "num_frames": 2}, "start": 1},
        {"video_url": {"url": "data:,clip", "frames": 2}, "num_frames": 2, "start": 1.0},
        {"video_url": "data:,clip", "frames": 2, "start": 1, "fps": None},
    ],
)
def test_settings_stand_in_the_part_or_beside_the_address(part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [{"type": "video_url", **part}]}]
    body = read_body(json.dumps({"messages": messages}).encode(), ChatRequest)
    ((found,),) = [one.parts for one in chat_messages(body.request.messages, Attachments(AttachmentLimits()))]
    assert isinstance(found, VideoPart)
    assert found.source == b"clip"
    assert found.sampling == VideoPart(b"", frames=2, start=1).sampling


def test_videos_and_images_keep_their_order_and_times_are_told(
    nano_model: LoadedModel, clip: bytes, gif: bytes
) -> None:
    image = base64.b64encode(INVOICE.read_bytes()).decode()
    parts = [
        video(clip, frames=2),
        {"type": "text", "text": "At "},
        {"type": "image_url", "image_url": f"data:image/png;base64,{image}"},
        video(gif, "image/gif", fps=1),
        {"type": "text", "text": "0:02, 0:19 or 0:59?"},
    ]
    times = [
        {"seconds": 2.0, "text": "0:02", "video": None},
        {"seconds": 19.0, "text": "0:19", "video": None},
    ]
    chat = ScriptedChat(nano_model, {})
    with contextmanager(serving)(chat) as served:
        message = post(served, parts).json()["choices"][0]["message"]
        assert message["content"] == "At 0:02, 0:19 or 0:59?"
        assert message["times"] == times
        sent = chat.asked[0][0].parts
        assert [type(one) for one in sent] == [VideoPart, str, ImagePart, VideoPart, str]
        assert [one.source for one in sent if isinstance(one, VideoPart)] == [clip, gif]
        streamed = post(served, parts, stream=True).text.splitlines()
        deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in streamed if "{" in line]
        assert [delta["times"] for delta in deltas if "times" in delta] == [times]
        assert "times" not in post(served, [QUESTION]).json()["choices"][0]["message"]


def broken(name: str, folder: Path, clip: bytes) -> bytes:
    """A file that is no sound video."""
    if name == "audio":
        return write_audio(folder / "a.m4a").read_bytes()
    if name == "still":
        return write_animation(folder / "a.gif", [100]).read_bytes()
    whole = {"nothing": b"", "text": b"no video" * 100, "cut": clip[:300], "image": INVOICE.read_bytes()}
    return whole[name]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("audio", "0 video streams in 1 streams"),
        ("still", "1 frames, 2 to 100000 are possible"),
        ("nothing", "holds 0 bytes"),
        ("text", "cannot be read as a video"),
        ("cut", "300 bytes: cannot be read as a video"),
        ("image", "is a PNG file, not a video: .*; try: give it as an image: image_url$"),
    ],
)
def test_what_is_no_video_is_refused_with_the_reason(
    served: Served, clip: bytes, tmp_path: Path, name: str, words: str
) -> None:
    part = video(broken(name, tmp_path, clip))
    for stream in (False, True):
        answer = post(served, [part, QUESTION], stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "image_unreadable", "messages")
        assert re.search(words, error["message"])
        assert not re.search(r"/tmp|/home|Traceback", error["message"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"frames": 181}, "frames is 181, 1 to 180 are possible"),
        ({"frames": 2, "fps": 1}, "fps 1.0 with frames 2"),
        ({"frames": 2, "num_frames": 3}, "frames of a video is 2 and 3"),
        ({"fps": -1}, "fps is -1.0, more than 0"),
        ({"start": 2, "end": 1}, "from 2 s to 1 s: .*; try: video_url with start 10 and end 35$"),
        ({"start": 1e308}, "0 to 1e\\+09 are possible: .*; try: video_url with start 10 and end 35$"),
        ({"start": 4}, "no frame from 4 s on, it takes 3.00 s: .* such as video_url with start 0 and end 5$"),
        ({"frames": "two"}, "Expected `int"),
    ],
)
def test_settings_without_a_meaning_are_refused(
    served: Served, clip: bytes, settings: dict[str, Any], words: str
) -> None:
    answer = post(served, [video(clip, **settings), QUESTION])
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"].startswith("messages")
    assert re.search(words, error["message"])


def test_more_frames_than_the_context_holds_are_not_decoded(
    served: Served, nano_model: LoadedModel, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = ImageProcessorConfig(min_pixels=28 * 28 * 400)
    monkeypatch.setattr(nano_model.files, "video_processor", large)
    monkeypatch.setattr(FrameStore, "write", None)
    answer = post(served, [video(clip, frames=24), QUESTION])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    found = re.search(r"24 frames take (\d+) tokens, the context has room for (\d+)", error["message"])
    assert found
    assert int(found[1]) >= 12 * 400
    assert int(found[2]) == nano_model.settings.context_size
    assert "--ctx-size of the server" in error["message"]


def test_an_installation_without_a_decoder_says_what_is_missing(
    served: Served, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    answer = post(served, [video(clip), QUESTION])
    assert answer.status_code == 400
    assert "pip install 'ernie-local[video]'" in answer.json()["error"]["message"]


def test_nothing_of_a_video_is_written_to_disk(
    served: Served, clip: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", None)
    monkeypatch.setattr(os, "pwrite", None)
    assert post(served, [video(clip, frames=2), QUESTION], max_tokens=1).status_code == 200


def test_only_users_and_tools_send_videos(served: Served, clip: bytes) -> None:
    answer = post(served, [video(clip)], role="system")
    assert answer.status_code == 400
    assert "a message from system with 0 images and 1 videos" in answer.json()["error"]["message"]


def test_responses_refuse_videos_by_name(served: Served, clip: bytes) -> None:
    for part in (video(clip), {"type": "input_video", "video_url": "data:,"}):
        error = post(served, [part], "/v1/responses").json()["error"]
        assert error["param"] == "input"
        assert f"{part['type']} is no part of /v1/responses" in error["message"]


def test_the_descriptions_of_the_server_name_videos(served: Served) -> None:
    document = httpx2.get(f"{served.url}/openapi.json").json()["components"]["schemas"]
    assert {"video_url", "fps", "frames", "num_frames", "start", "end"} <= document["VideoUrlPart"][
        "properties"
    ].keys()
    model = httpx2.get(f"{served.url}/v1/models/nano").json()
    assert model["meta"]["modalities"] == ["text", "image", "video"]
