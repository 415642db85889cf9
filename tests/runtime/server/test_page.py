"""The page and what it asks: its files, how images are seen, Markdown that can do nothing."""

from __future__ import annotations

import http.client
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.loading.options import dtype_name
from ernie_local.media.image_size import measure_image
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.planner.terms import PHASES
from ernie_local.server import page
from ernie_local.server.attachments import AttachmentLimits, attached_part
from ernie_local.server.failures import ApiError
from ernie_local.server.memory import ServedMemory
from ernie_local.server.page import GivenFile, looks_of, safe_html, view_of
from ernie_local.session import ChatVideo, open_chat_images, open_chat_video
from tests.runtime.server.conftest import serving
from tests.runtime.server.scripted import ScriptedChat
from tests.runtime.server.serving import INVOICE, Served, data_url
from tests.video_files import gray_of, write_video


def fetch(served: Served, path: str, body: bytes | None = None) -> Any:
    """An answer, to be closed by who reads it."""
    return urllib.request.urlopen(served.url + path, body, timeout=20)


def test_the_page_loads_nothing_from_elsewhere(served: Served) -> None:
    with fetch(served, "/") as answer:
        page, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    names = [name for name in named if not name.startswith("data:")]
    assert set(names) == {"page/layout.css", "page/content.css", "page/main.js"}
    unread, read = list(names), set()
    while unread:
        name = unread.pop()
        with fetch(served, f"/{name}") as answer:
            text = answer.read().decode()
        assert "http://" not in text
        assert "https://" not in text
        read.add(name)
        unread += [
            f"page/{one}" for one in re.findall(r'from "\./([^"]+)"', text) if f"page/{one}" not in read
        ]
    assert "page/store.js" in read


def test_no_style_or_script_is_in_the_page_itself(served: Served) -> None:
    """The policy has no exception for them, so that none could come from an answer."""
    with fetch(served, "/") as answer:
        page = answer.read().decode()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! type=\"module\" src=)", page)


@pytest.mark.parametrize("name", ["none.js", "index.py", "..%2fpage.py", ".", "%00.js"])
def test_other_files_are_not_there(served: Served, name: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(served, f"/page/{name}")
    with refused.value as answer:
        assert answer.code == 404


def test_an_image_is_shown_as_the_model_sees_it(served: Served) -> None:
    with fetch(served, "/page/look", INVOICE.read_bytes()) as answer:
        (look,) = json.load(answer)
    assert (look["size"], look["seen_size"], look["tokens"]) == ([1001, 700], [308, 196], 77)
    assert look["thumbnail"].startswith("data:image/jpeg;base64,")
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(served, "/page/look", b"no image")
    with refused.value as answer:
        assert json.load(answer)["error"]["code"] == "image_unreadable"


def test_an_image_is_shown_as_the_server_lets_it_be_seen(nano_model: LoadedModel) -> None:
    """Trimmed, where the server trims: in the look, in the view, and in a question."""
    sheet = Image.new("RGB", (600, 600), "white")
    sheet.paste(Image.open(INVOICE).resize((300, 200)), (150, 300))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    for limits in (
        AttachmentLimits(),
        AttachmentLimits(trim=True),
        AttachmentLimits(trim=True, detail="low"),
    ):
        given = GivenFile(file.getvalue(), nano_model.files, 4096, limits)
        part = attached_part(file.getvalue(), None, limits)
        (seen,) = open_chat_images([part], nano_model.image_processor, 4096)
        (look,) = looks_of(given)
        assert (look["seen_size"], look["tokens"]) == (seen.report.resized_size, seen.num_tokens)
        view = Image.open(io.BytesIO(view_of(1, given)))
        assert view.size == seen.view.cropped_size
        with pytest.raises(ApiError, match="page 2 of a file with 1"):
            view_of(2, given)


def test_a_video_is_shown_as_a_sheet_of_its_frames(
    served: Served, nano_model: LoadedModel, tmp_path: Path
) -> None:
    clip = write_video(tmp_path / "clip.mp4", num_frames=24, fps=10).read_bytes()
    with fetch(served, "/page/look", clip) as answer:
        (look,) = json.load(answer)
    video = open_chat_video(clip, nano_model.files.video_processor)
    sheet_size = video.sheet(32).size
    assert (look["frames"], look["seconds"]) == (16, 2.4)
    assert (look["size"], look["seen_size"]) == ([64, 48], list(video.report.resized_size))
    assert look["tokens"] == video.report.tokens
    with fetch(served, "/page/view/1", clip) as answer:
        sheet = Image.open(io.BytesIO(answer.read()))
    assert sheet.size == tuple(round(side * 1600 / max(sheet_size)) for side in sheet_size)
    grays = np.asarray(sheet.convert("L").resize(sheet_size))
    assert abs(int(grays[12 + 180, 12 + 240]) - gray_of(0)) < 12  # in the first frame
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(served, "/page/look", clip[:200])
    with refused.value as answer:
        assert json.load(answer)["error"]["code"] == "image_unreadable"


@pytest.mark.parametrize("path", ["/page/look", "/page/view/1"])
def test_a_video_is_decoded_no_further_for_a_client_that_has_gone(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    clip = write_video(tmp_path / "clip.mp4", num_frames=24, fps=10).read_bytes()
    decoding, has_ended, errors = threading.Event(), threading.Event(), list[str]()

    def open_slowly(data: bytes, processor: Any, most_tokens: int, pause: Any) -> ChatVideo:
        def pause_for_long() -> None:
            decoding.set()
            for _ in range(1000):
                pause()
                time.sleep(0.01)

        try:
            return open_chat_video(data, processor, most_tokens, pause_for_long)
        except ApiError as error:
            errors.append(error.message)
            raise
        finally:
            has_ended.set()

    monkeypatch.setattr(page, "open_chat_video", open_slowly)
    counter = f'ernie_local_requests_total{{path="{path.replace("/1", "/{page:int}")}",status="499"}}'
    before = number(served, counter)
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("POST", path, clip)
    assert decoding.wait(20)
    connection.close()
    assert has_ended.wait(5)
    assert errors == ["the client has gone"]
    assert number(served, counter) == before + 1


def test_a_view_of_a_page_is_served(served: Served) -> None:
    with fetch(served, "/page/view/1", INVOICE.read_bytes()) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert Image.open(io.BytesIO(answer.read())).size == (1001, 700)


def test_the_state_tells_the_model_its_limits_and_what_it_is_at(served: Served) -> None:
    with fetch(served, "/page/state") as answer:
        state = json.load(answer)
    assert (state["model"], state["is_ready"], state["phase"], state["running"]) == ("nano", True, None, 0)
    assert state["context_size"] == 4096
    assert state["limits"] == {"file_bytes": 64 << 20, "request_bytes": 256 << 20, "images": 32}


def test_pieces_that_are_written_are_counted(served: Served) -> None:
    def pieces() -> int:
        with fetch(served, "/page/state") as answer:
            return int(json.load(answer)["pieces"])

    before = pieces()
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}).encode()
    with fetch(served, "/v1/chat/completions", body):
        pass
    assert 1 <= pieces() - before <= 6


def test_the_memory_is_the_one_that_vram_predicts(nano_model: LoadedModel) -> None:
    options = LoadOptions(context_size=4096, ram="2GiB")
    memory = ServedMemory(options)
    assert memory.as_json() == []
    memory.plan(nano_model)
    (ram,) = memory.as_json()
    # With the image of a page that does not come from a file.
    page = measure_image("a page", (1654, 2339), nano_model.image_processor)
    size, dtype = read_model(nano_model.directory), dtype_name(nano_model.network.dtype)
    plan = plan_cpu(size, ChatPlan(4096, dtype, dtype, (page,)), Budget(2 << 30)).memory
    assert ram["limit_bytes"] == 2 << 30
    assert {name: amount["best"] for name, amount in ram["phases"].items()} == {
        name: plan.phase(name).best for name in PHASES
    }
    assert 0 < ram["used_bytes"] <= ram["peak_bytes"]


def test_boxes_are_told_in_the_answer(nano_model: LoadedModel) -> None:
    text = 'It is there: [{"bbox_2d": [100, 200, 500, 900], "label": "total"}]'
    body = {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": data_url(INVOICE)}]}]
    }
    boxes = [
        {
            "label": "total",
            "image": 1,
            "box": [100.0, 200.0, 500.0, 900.0],
            "original": pytest.approx([100.1, 140.0, 500.5, 630.0]),
        }
    ]
    with contextmanager(serving)(ScriptedChat(nano_model, {"": text})) as served:
        with fetch(served, "/v1/chat/completions", json.dumps(body).encode()) as answer:
            assert json.load(answer)["choices"][0]["message"]["boxes"] == boxes
        with fetch(served, "/v1/chat/completions", json.dumps(body | {"stream": True}).encode()) as answer:
            lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
        deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
        assert [delta["boxes"] for delta in deltas if "boxes" in delta] == [boxes]
        asked = {
            "input": [{"role": "user", "content": [{"type": "input_image", "image_url": data_url(INVOICE)}]}]
        }
        with fetch(served, "/v1/responses", json.dumps(asked).encode()) as answer:
            (message,) = json.load(answer)["output"]
        with fetch(served, "/v1/responses", json.dumps(asked | {"stream": True}).encode()) as answer:
            lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
        (done,) = [one["item"] for one in events if one["type"] == "response.output_item.done"]
        (last,) = events[-1]["response"]["output"]
        assert message["boxes"] == done["boxes"] == last["boxes"] == boxes
        plain = json.dumps({"messages": [{"role": "user", "content": "no box"}]}).encode()
        with fetch(served, "/v1/chat/completions", plain) as answer:
            assert "boxes" not in json.load(answer)["choices"][0]["message"]


def test_boxes_behind_a_stop_text_are_not_told(nano_model: LoadedModel) -> None:
    """Those that the same token brings, as those after it."""
    first = '[{"bbox_2d":[10,20,30,40],"label":"date"}]'
    second = first.replace("date", "total")
    question = {"type": "text", "text": "Where?"}
    image = {"type": "image_url", "image_url": data_url(INVOICE)}
    body = {"messages": [{"role": "user", "content": [image, question]}]}
    script = ScriptedChat(nano_model, {"Where?": f"{first} STOP{second}"})
    with contextmanager(serving)(script) as served:
        for stop, labels in (("STOP", ["date"]), ("none", ["date", "total"])):
            with fetch(served, "/v1/chat/completions", json.dumps(body | {"stop": stop}).encode()) as answer:
                message = json.load(answer)["choices"][0]["message"]
            assert [box["label"] for box in message["boxes"]] == labels


@pytest.mark.parametrize(
    "markdown",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](data:text/html;base64,AAAA)",
        "![a](https://elsewhere.example/pixel.png)",
        "<iframe src=https://elsewhere.example></iframe>",
        '<a href="x" onclick="alert(1)">a</a>',
        "<style>body{display:none}</style>",
        "`<b onmouseover=alert(1)>`",
    ],
)
def test_markdown_can_only_be_read(markdown: str) -> None:
    html = safe_html(markdown)
    assert not re.search(r"<(script|img|iframe|style|object|form)", html)
    assert not re.search(r"<[^>]*\son\w+\s*=", html)
    assert not re.search(r'(href|src)="(javascript|data|https?://elsewhere)', html)


def test_markdown_is_shown() -> None:
    html = safe_html("# A\n\n| a | b |\n|---|---|\n| 1 | **2** |\n\n[x](https://example.org)\n\n- one")
    for tag in ("<h1>", "<table>", "<td>", "<strong>", "<li>", 'href="https://example.org"', "noopener"):
        assert tag in html


def test_metrics_count_what_was_answered(served: Served) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "odd": 1}).encode()
    before = number(served, 'ernie_local_tokens_total{kind="answer"}')
    with fetch(served, "/v1/chat/completions", body) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 2
    assert number(served, 'ernie_local_tokens_total{kind="answer"}') == before + 2
    assert number(served, 'ernie_local_requests_total{path="/v1/chat/completions",status="200"}') >= 1


def number(served: Served, name: str) -> float:
    """The value of a counter."""
    with fetch(served, "/metrics") as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_openapi_page_describes_each_endpoint(served: Served) -> None:
    with fetch(served, "/openapi.json") as answer:
        document = json.load(answer)
    assert {"/v1/chat/completions", "/v1/responses", "/v1/models", "/health"} <= document["paths"].keys()
    request = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"messages", "temperature", "seed", "response_format", "tools"} <= request.keys()
    references = re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document))
    assert set(references) <= document["components"]["schemas"].keys()
