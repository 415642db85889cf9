"""Images from the web: a host on this machine stands for the internet, and plays tricks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ernie_local.server import remote
from ernie_local.server.failures import ApiError
from ernie_local.server.remote import fetch_media


class _Host(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer by the path."""
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"image")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"0" * 65536)
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"0")
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the host, which counts as public; other addresses of this machine do not."""
    is_public = remote.is_public
    monkeypatch.setattr(remote, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Host)
    server.daemon_threads = True
    # Who is cut off while it sends says nothing of it.
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_image_is_fetched_also_where_it_has_moved(host: str) -> None:
    assert fetch_media(f"{host}/image", "image", 100, 5) == b"image"
    assert fetch_media(f"{host}/to/{host}/to//image", "video", 100, 5) == b"image"


@pytest.mark.parametrize(
    ("path", "words", "status"),
    [
        ("/to/http://127.0.0.2/image", "not public", 400),
        ("/to/http://169.254.169.254/", "not public", 400),
        ("/to/file:///etc/passwd", "only http", 400),
        ("/to//to//to//to//image", "more than 3 times", 400),
        ("/none", "status 404", 400),
        ("/endless", "more than 1.0 MiB|more than 1 MiB", 413),
        ("/slow", "too long", 400),
    ],
)
def test_what_is_not_fetched_is_refused_with_the_reason(
    host: str, path: str, words: str, status: int
) -> None:
    with pytest.raises(ApiError, match=words) as refused:
        fetch_media(host + path, "video", 1 << 20, 0.3)
    assert refused.value.status == status
