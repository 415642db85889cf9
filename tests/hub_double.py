"""A Hugging Face hub on loopback, for tests: repositories in memory or on disk, faults, a record of requests.

    with HubDouble() as hub:
        commit = hub.add("org/name", {"config.json": b"{}", "model.safetensors": Path("weights")})
        hub.faults.append(Fault("*model.safetensors", drop_after=10_000_000))
        ...  # run something with HF_ENDPOINT=hub.endpoint, or variables=hub.environment(cache)
        assert hub.bytes_sent("*model.safetensors") < 2 * size

It answers what huggingface_hub asks of a hub without Xet: the information, the tree and the paths of a
revision, and files by HEAD and GET, of which the large ones are on a "CDN" (another port) behind a redirect.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_BLOCK = 1 << 16


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. `lfs` is whether it is stored as a large file, with its SHA-256."""

    content: bytes | Path
    lfs: bool

    @cached_property
    def size(self) -> int:
        return self.content.stat().st_size if isinstance(self.content, Path) else len(self.content)

    @cached_property
    def sha256(self) -> str:
        if isinstance(self.content, Path):
            with self.content.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        """As git names the blob; of a large file, one that its SHA-256 stands for."""
        if self.lfs:
            return hashlib.sha1(self.sha256.encode(), usedforsecurity=False).hexdigest()
        content = self.read(0, self.size)
        header = f"blob {len(content)}\0".encode()
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()

    def read(self, start: int, length: int) -> bytes:
        if isinstance(self.content, Path):
            with self.content.open("rb") as file:
                file.seek(start)
                return file.read(length)
        return self.content[start : start + length]


@dataclass
class HubRepo:
    """Branches and tags by name, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit_of(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Fault:
    """What goes wrong with requests for a path that fits the shell pattern `path`.

    The path is that of the request, such as /org/name/resolve/main/model.safetensors; for a file on the CDN
    it is /cdn/SHA256/NAME. Without a `status`, the right answer is spoilt.
    """

    path: str = "*"
    methods: tuple[str, ...] = ("GET",)
    times: int | None = None  #: this often, then no more; None: always
    status: int | None = None  #: answered in place of the file, with `headers` and `body`
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    drop_after: int | None = None  #: bytes of an answer's body, then the connection closes
    reset: bool = False  #: the connection is reset (RST) rather than closed
    corrupt: bool = False  #: one byte of each block is another
    bytes_per_second: float | None = None
    length_error: int = 0  #: added to the Content-Length
    ignore_range: bool = False  #: answers a range with the whole file (200)
    before: Callable[[], object] | None = None  #: runs before the answer: moves a branch, say

    def fits(self, method: str, path: str) -> bool:
        return self.times != 0 and method in self.methods and fnmatch(path, self.path)


def proxy_error() -> Fault:
    """What a proxy answers that cannot reach the hub: 502 and a page of HTML."""
    body = b"<html><head><title>502 Bad Gateway</title></head><body>proxy</body></html>"
    headers = {"Content-Type": "text/html", "Via": "1.1 proxy"}
    return Fault(methods=("GET", "HEAD"), status=502, headers=headers, body=body)


@dataclass
class HubRequest:
    """One request as it came, and what was answered. `sent` counts bytes of the body."""

    method: str
    path: str
    range: str | None
    token: str | None
    status: int = 0
    sent: int = 0


class HubDouble:
    """A hub and its CDN, each on a free port of 127.0.0.1, while the context lasts."""

    def __init__(self) -> None:
        self.repos: dict[str, HubRepo] = {}
        self.faults: list[Fault] = []
        self.requests: list[HubRequest] = []
        self.tokens: set[str] = {"hf_good"}  # of users who may read what is private and gated
        self._lock = Lock()
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        self.endpoint, self.cdn = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> HubDouble:
        for server in self._servers:
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, **variables: str) -> dict[str, str]:
        """Variables for a process that asks this hub only, and keeps everything below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
        return {**kept, **ours, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", **variables}

    def add(
        self,
        name: str,
        files: Mapping[str, bytes | Path],
        *,
        branch: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Publish `files` as a new commit of `branch`, and return the commit."""
        repo = self.repos.setdefault(name, HubRepo(private=private, gated=gated))
        tree = {
            path: HubFile(content, lfs=path.endswith((".safetensors", ".model", ".bin")))
            for path, content in files.items()
        }
        listing = json.dumps([name, branch, len(repo.commits), {path: tree[path].git_oid for path in tree}])
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        repo.commits[commit] = tree
        repo.branches[branch] = commit
        return commit

    def add_folder(self, name: str, folder: Path) -> str:
        """Publish the files of `folder` on main, served from where they are."""
        return self.add(name, {path.name: path for path in sorted(folder.iterdir()) if path.is_file()})

    def bytes_sent(self, pattern: str = "*") -> int:
        """Bytes of the bodies that were sent for paths that fit `pattern`, faults included."""
        with self._lock:
            return sum(request.sent for request in self.requests if fnmatch(request.path, pattern))

    def asked(self, pattern: str = "*", method: str = "GET") -> list[HubRequest]:
        """The requests for paths that fit `pattern`, in order."""
        with self._lock:
            return [
                replace(request)
                for request in self.requests
                if fnmatch(request.path, pattern) and request.method == method
            ]

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The first fault that this request meets, counted."""
        with self._lock:
            fault = next((fault for fault in self.faults if fault.fits(method, path)), None)
            if fault is not None and fault.times is not None:
                fault.times -= 1
        if fault is not None and fault.before is not None:
            fault.before()
        return fault

    def record(self, request: HubRequest) -> None:
        with self._lock:
            self.requests.append(request)

    def file_on_cdn(self, sha256: str) -> HubFile | None:
        trees = (tree for repo in self.repos.values() for tree in repo.commits.values())
        return next((file for tree in trees for file in tree.values() if file.sha256 == sha256), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubDouble

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: a client that goes away in the middle of an answer is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    request_seen: HubRequest
    fault: Fault | None

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.request_seen = HubRequest(self.command, path, self.headers.get("Range"), token)
        self.server.hub.record(self.request_seen)
        length = int(self.headers.get("Content-Length") or 0)
        self.form = parse_qs(self.rfile.read(length).decode()) if length else {}
        self.fault = self.server.hub.take_fault(self.command, path)
        if self.fault is not None and self.fault.status is not None:
            self._send(self.fault.status, self.fault.body, self.fault.headers)
        elif token is not None and token not in self.server.hub.tokens and not path.startswith("/cdn/"):
            self._refuse(401, None, "Invalid credentials in Authorization header")
        elif path.startswith("/cdn/"):
            file = self.server.hub.file_on_cdn(path.split("/")[2])
            self._refuse(404, None, "no such object") if file is None else self._send_file(file, {})
        elif path == "/api/whoami-v2":
            self._send_json({"type": "user", "name": "tester"}) if token else self._refuse(
                401, None, "no token"
            )
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._resolve(path.removeprefix("/"))

    def _api(self, path: str) -> None:
        """/api/models/ORG/NAME[/revision/REV | /tree/REV[/FOLDER] | /paths-info/REV]"""
        organisation, name, *rest = path.split("/")
        kind, revision = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        repo = self._repo(f"{organisation}/{name}")
        if repo is None:
            return
        commit = repo.commit_of(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif kind == "revision":
            self._send_json(self._information(f"{organisation}/{name}", repo, commit))
        elif kind == "tree":
            self._send_json([_entry(path, file) for path, file in repo.commits[commit].items()])
        elif kind == "paths-info":
            tree = repo.commits[commit]
            self._send_json([_entry(path, tree[path]) for path in self.form.get("paths", []) if path in tree])
        else:
            self._refuse(404, None, f"this double of the hub does not answer {kind}")

    def _information(self, name: str, repo: HubRepo, commit: str) -> dict[str, Any]:
        with_blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings: list[dict[str, Any]] = []
        for path, file in repo.commits[commit].items():
            sibling: dict[str, Any] = {"rfilename": path}
            if with_blobs:
                sibling |= {"size": file.size, "blobId": file.git_oid}
                if file.lfs:
                    sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": 134}
            siblings.append(sibling)
        return {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "siblings": siblings,
            "tags": [],
        }

    def _repo(self, name: str) -> HubRepo | None:
        """The repository if this request may know of it; else the refusal is sent."""
        repo = self.server.hub.repos.get(name)
        if repo is None or (repo.private and self.request_seen.token is None):
            status = 401 if self.request_seen.token is None else 404
            self._refuse(status, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _resolve(self, path: str) -> None:
        """/ORG/NAME/resolve/REV/FILE; a revision may have slashes, as refs/pr/11 has."""
        name, separator, rest = path.partition("/resolve/")
        if not separator:
            self._refuse(404, None, f"this double of the hub has no page {path}")
            return
        repo = self._repo(name)
        if repo is None:
            return
        if repo.gated and self.request_seen.token is None:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted")
            return
        parts = rest.split("/")
        found = [
            (commit, "/".join(parts[count:]))
            for count in range(1, len(parts))
            if (commit := repo.commit_of("/".join(parts[:count]))) is not None
        ]
        if not found:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[0]}")
            return
        commit, file_path = found[0]
        headers = {"X-Repo-Commit": commit}
        file = repo.commits[commit].get(file_path)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found", headers)
        elif file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
            headers["Location"] = f"{self.server.hub.cdn}/cdn/{file.sha256}/{file_path}"
            self._send(302, b"", {**headers, "ETag": f'"{file.git_oid}"'})
        else:
            self._send_file(file, {**headers, "ETag": f'"{file.git_oid}"'})

    def _send_file(self, file: HubFile, headers: Mapping[str, str]) -> None:
        start, end, status = 0, file.size, 200
        asked = self.request_seen.range
        if asked is not None and not (self.fault is not None and self.fault.ignore_range):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = (
                (int(first), min(int(last or file.size - 1) + 1, file.size))
                if first
                else (
                    max(0, file.size - int(last)),
                    file.size,
                )
            )
            if start >= file.size:
                self._send(416, b"", {"Content-Range": f"bytes */{file.size}"})
                return
            status = 206
            headers = {**headers, "Content-Range": f"bytes {start}-{end - 1}/{file.size}"}
        self._send_head(status, end - start, {"Accept-Ranges": "bytes", **headers})
        if self.command == "HEAD":
            return
        fault = self.fault or Fault()
        limit = end if fault.drop_after is None else min(end, start + fault.drop_after)
        while start < limit:
            block = file.read(start, min(_BLOCK, limit - start))
            if fault.corrupt:
                block = bytes([block[0] ^ 1]) + block[1:]
            self._write(block)
            start += len(block)
            if fault.bytes_per_second is not None:
                time.sleep(len(block) / fault.bytes_per_second)
        if limit < end or fault.length_error:
            self._hang_up(reset=fault.reset)

    def _hang_up(self, *, reset: bool) -> None:
        self.close_connection = True
        self.wfile.flush()
        if reset:
            # Time for the client to read what was sent: a reset throws the rest of it away.
            time.sleep(0.1)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.wfile.close()
            self.connection.close()

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str | None, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        codes = {"X-Error-Code": code} if code is not None else {}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {**(headers or {}), **codes, "X-Error-Message": message})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._send_head(status, len(body), headers)
        if self.command != "HEAD":
            self._write(body)

    def _send_head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.request_seen.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        wrong = self.fault.length_error if self.fault is not None else 0
        self.send_header("Content-Length", str(length + wrong))
        self.end_headers()

    def _write(self, block: bytes) -> None:
        self.wfile.write(block)
        self.request_seen.sent += len(block)


def _entry(path: str, file: HubFile) -> dict[str, Any]:
    """A file as a tree lists it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.git_oid}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 134}
    return entry
