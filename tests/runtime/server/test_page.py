"""The page and what it asks: its files, how images are seen, Markdown that can do nothing."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any

import pytest

from ernie_local.server.page import safe_html
from tests.runtime.server.serving import INVOICE, Served


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
    assert set(names) == {"page/style.css", "page/main.js"}
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


def test_the_state_names_the_model(served: Served) -> None:
    with fetch(served, "/page/state") as answer:
        state = json.load(answer)
    assert state["model"] == "nano"
    assert state["line"].startswith("idle")


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
