"""What tests of the server share: its address, and the shipped invoice as clients send it."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from ernie_local.server.app import Server

INVOICE = Path(__file__).parents[3] / "examples" / "invoice.png"


@dataclass(frozen=True, slots=True)
class Served:
    """A server that listens."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


def data_url(path: Path, kind: str = "image/png") -> str:
    """A file as a data: address."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
