"""Listens on an address and runs the application in a thread of its own."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import uvicorn

from ernie_local.errors import UsageError, parameter
from ernie_local.server.app import Server

_SHUTDOWN_SECONDS = 5
_LARGEST_HEADERS = 64 << 10
_BACKLOG = 256


class Listening:
    """A server that listens from the beginning of a `with` block to its end."""

    def __init__(self, server: Server, host: str, port: int) -> None:
        """Take the address; UsageError where that is not possible. port: 0 for any that is free."""
        self.server = server
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise UsageError(
                f"cannot listen on {host} port {port}",
                getattr(error, "strerror", None) or str(error),
                f"another port, such as {parameter('port', 8081 if port == 8080 else 8080)}",
            ) from error
        self.host, self.port = host, self._socket.getsockname()[1]
        config = uvicorn.Config(
            server.app(),
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=_LARGEST_HEADERS,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            http="h11",
            loop="asyncio",
            ws="none",
        )
        self._runner = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._runner.run, kwargs={"sockets": [self._socket]}, name="server"
        )

    @property
    def url(self) -> str:
        """Where a client of this machine finds it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended by itself."""
        return self._thread.is_alive()

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the answers that are being written, and wait until all have gone."""
        self._runner.should_exit = True
        self._thread.join()
        self._socket.close()
