"""Who gets in: the name of the host, the key, the size and the time of a body."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from ernie_local.server.failures import ApiError
from tests.runtime.server.serving import Served

CHAT = "/v1/chat/completions"


@pytest.fixture
def guarded(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    """Changes settings of the guard for one test."""

    def change(**settings: object) -> Served:
        for name, value in settings.items():
            monkeypatch.setattr(served.server.guard, name, value)
        return served

    return change


def ask(served: Served, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """Status and object of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"null")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("[::1]:1", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8080", 403),
        ("", 403),
    ],
)
def test_only_names_of_this_machine_are_answered(served: Served, host: str, expected: int) -> None:
    assert ask(served, "GET", "/v1/models", Host=host)[0] == expected


def test_more_names_may_be_allowed(guarded: Callable[..., Served]) -> None:
    served = guarded(hosts=("model.lan",))
    assert ask(served, "GET", "/v1/models", Host="model.lan:80")[0] == 200
    assert ask(served, "GET", "/v1/models", Host="other.lan")[0] == 403
    assert ask(guarded(hosts=("*",)), "GET", "/v1/models", Host="other.lan")[0] == 200


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Bearer secret", 200),
        ("bearer secret ", 200),
        ("Bearer", 401),
        ("Bearer secre", 401),
        ("secret", 401),
        ("", 401),
    ],
)
def test_a_key_is_asked_for_where_there_is_one(
    guarded: Callable[..., Served], header: str, expected: int
) -> None:
    served = guarded(api_key="secret")
    status, answer = ask(served, "GET", "/v1/models", Authorization=header)
    assert status == expected
    assert status == 200 or answer["error"]["code"] == "invalid_api_key"
    assert ask(served, "GET", "/health")[0] == 200


@pytest.mark.parametrize("path", ["/v1/models/other.js", "/v1/models/nano.css", "/metrics.js"])
def test_only_the_files_of_the_page_need_no_key(guarded: Callable[..., Served], path: str) -> None:
    assert ask(guarded(api_key="secret"), "GET", path)[0] == 401


def test_who_leaves_before_the_body_has_come_is_no_defect(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    def num_gone() -> float:
        text = served.server.metrics.text(None).decode()
        name = f'ernie_local_requests_total{{path="{CHAT}",status="499"}} '
        return next((float(line[len(name) :]) for line in text.splitlines() if line.startswith(name)), 0)

    before = num_gone()
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
    for _ in range(200):
        if num_gone() > before or caplog.records:
            break
        time.sleep(0.02)
    assert num_gone() == before + 1
    assert not caplog.records


def test_a_body_that_says_to_be_too_large_is_not_read(guarded: Callable[..., Served]) -> None:
    status, answer = ask(guarded(max_body_bytes=1000), "POST", CHAT, Content_Length="1001")
    assert status == 413
    assert "1000 bytes" in answer["error"]["message"]


def test_a_body_in_pieces_is_not_read_beyond_the_limit(guarded: Callable[..., Served]) -> None:
    served = guarded(max_body_bytes=1000)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"258\r\n"
            + b"0" * 600
            + b"\r\n258\r\n"
            + b"0" * 600
            + b"\r\n0\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_slow_body_is_not_waited_for(guarded: Callable[..., Served]) -> None:
    served = guarded(body_seconds=0.2)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        started = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 5


def test_a_flood_of_headers_is_refused(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        try:
            for number in range(3000):
                connection.sendall(f"X-{number}: {'0' * 100}\r\n".encode())
            answer = connection.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            return
        assert answer.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:80", 400),
        ("https://app.example", 400),
    ],
)
def test_pages_of_other_sites_may_not_ask(guarded: Callable[..., Served], origin: str, expected: int) -> None:
    # 400: it was let in, and has no body.
    served = guarded(origins=("https://app.example",))
    status, _ = ask(served, "POST", CHAT, Host="localhost:80", Origin=origin, Content_Length="0")
    assert status == expected
    assert ask(served, "GET", "/v1/models", Host="localhost:80", Origin=origin)[0] == 200


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 499, 500, 503])
def test_every_refusal_can_be_written(status: int) -> None:
    """Also 499, which is no status of the standard: the client has gone."""
    error: Any = ApiError(status, "why").as_json()["error"]
    assert error["message"] == "why"
    assert error["type"].endswith("_error")
