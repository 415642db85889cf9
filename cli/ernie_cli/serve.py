"""The command `ernie-local serve`: a model for other programs, and a page for a browser."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import TYPE_CHECKING

import ernie_local
from ernie_cli.console import Console
from ernie_cli.options import (
    CommonOptions,
    ImageOptions,
    MemoryOptions,
    file_option,
    load_options,
    model_argument,
    option,
    parallel_option,
    parse_parallel,
    size_option,
    template_option,
)
from ernie_cli.settings import API_KEY_VARIABLE
from ernie_cli.signals import stop_requests
from ernie_cli.status import counted
from ernie_local.errors import UsageError
from ernie_local.sizes import parse_bytes

if TYPE_CHECKING:
    from ernie_local.loading import LoadOptions
    from ernie_local.server.attachments import AttachmentLimits
    from ernie_local.server.guard import GuardSettings

_SECONDS_BETWEEN_LOOKS = 0.5


@dataclass(frozen=True, kw_only=True)
class ServeOptions(MemoryOptions, ImageOptions, CommonOptions):
    """What was said on the command line; None means that the model or the runtime decides."""

    model: str = model_argument(default="nano")
    host: str = option(
        default="127.0.0.1",
        metavar="ADDRESS",
        help="Address to listen on. With another than 127.0.0.1, other machines can ask: set --api-key then.",
    )
    port: int = option(default=8080, metavar="N", min=0, max=65535, help="Port; 0 takes one that is free.")
    parallel: str = parallel_option(
        default="auto",
        help="Answers that are written at once, each with a context of its own, so that the model's weights "
        "are read once for all of their tokens; others wait. auto: as many as leave experts most of the "
        "memory, up to 8, and 1 on a GPU.",
    )
    max_waiting: int = option(
        default=32, metavar="N", min=0, max=10_000, help="Questions that may wait; more are refused (503)."
    )
    api_key: str | None = option(
        metavar="KEY",
        envvar=API_KEY_VARIABLE,
        help=f"Ask clients for this key (or {API_KEY_VARIABLE}, as other users see the command line).",
    )
    allow_hosts: tuple[str, ...] = option(
        "--allow-host",
        default=(),
        metavar="NAME",
        help="A name that browsers may call this server by, besides localhost; * for any. Repeatable.",
    )
    allow_origins: tuple[str, ...] = option(
        "--allow-origin",
        default=(),
        metavar="ORIGIN",
        help="A page, such as https://app.example, that may use this server from a browser; * for any. "
        "Repeatable.",
    )
    allow_remote_images: bool = option(
        "--allow-remote-images",
        default=False,
        help="Fetch http and https images and videos of questions, from public hosts only.",
    )
    media_path: Path | None = file_option(
        metavar="DIR", help="Let questions name files below DIR, as file:// addresses."
    )
    max_request: str = size_option(default="256MiB", help="Refuse requests with more bytes.")
    system: str | None = option(
        "-s", "--system", metavar="TEXT", help="System text of conversations that have none of their own."
    )
    variant: str | None = template_option()

    def load_options(self) -> LoadOptions:
        """How the model is loaded: with memory for so many answers at once."""
        return load_options(self, context_size=self.context_tokens(), parallel=parse_parallel(self.parallel))


@dataclass
class ServeResult:
    """One object, when the server has ended."""

    model: str | None = None
    url: str | None = None  #: Where clients of this machine found it.
    answers: int = 0  #: Answers that were written to their end.


def serve(options: ServeOptions, result: ServeResult) -> None:
    """Answer other programs over OpenAI's HTTP interface, and people with a page for a browser.

    Listens at once, and says "loading" until the model is there. Nothing that is asked is written to disk.
    Ends with Ctrl-C or SIGTERM.
    """
    from ernie_cli.chat.conversation import load_for_chat
    from ernie_cli.progress import downloaded
    from ernie_local import model_files
    from ernie_local.server.app import Server
    from ernie_local.server.listening import Listening
    from ernie_local.server.memory import ServedMemory
    from ernie_local.server.service import Service
    from ernie_local.session import Chat

    result.model = options.model
    options.check_memory()
    console = Console(quiet=options.as_json)
    server = Server(
        model_name=Path(options.model).name,
        version=ernie_local.__version__,
        guard=_guard_settings(options),
        attachments=_attachment_limits(options),
    )
    with _logs_shown(console), Listening(server, options.host, options.port) as listening:
        result.url = listening.url
        files = model_files.find_model_files(
            downloaded(options.model, console),
            max_pixels=options.max_pixels_count(),
            image_tokens=options.image_tokens_count(),
        )
        memory = ServedMemory(options.load_options())
        model = load_for_chat(options, files, console)
        memory.plan(model)
        server.memory = memory
        chats = [Chat(model, options.system, variant=options.variant) for _ in range(model.settings.parallel)]
        server.service = Service(chats, options.max_waiting)
        console.say(
            f"ernie-local serves {server.model_name} at {listening.url} (a page; for clients "
            f"{listening.url}/v1), {counted(len(chats), 'answer')} at once"
        )
        stopped = threading.Event()
        with stop_requests(stopped.set, SIGINT, SIGTERM):
            while listening.is_alive and not stopped.wait(_SECONDS_BETWEEN_LOOKS):
                pass
        if server.service.num_running:
            console.note("ending the answers that are being written")
    result.answers = server.metrics.num_answers


def _guard_settings(options: ServeOptions) -> GuardSettings:
    from ernie_local.server.guard import GuardSettings

    return GuardSettings(
        hosts=options.allow_hosts,
        origins=options.allow_origins,
        api_key=options.api_key,
        max_body_bytes=parse_bytes(options.max_request, "max_request"),
    )


def _attachment_limits(options: ServeOptions) -> AttachmentLimits:
    from ernie_local.server.attachments import AttachmentLimits

    if options.media_path is not None and not options.media_path.is_dir():
        raise UsageError(
            f"--media-path {options.media_path} is not a folder",
            "files of questions are looked for below it",
            "the path of a folder",
        )
    return AttachmentLimits(
        detail=options.detail,
        trim=options.trim,
        media_path=options.media_path,
        allow_remote=options.allow_remote_images,
    )


@contextmanager
def _logs_shown(console: Console) -> Iterator[None]:
    """Inside, what the server logs is shown."""
    handler, logger = _ConsoleHandler(console), logging.getLogger("ernie_local")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _ConsoleHandler(logging.Handler):
    """Shows what the server logs among the lines of the command."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """A line; of a defect the traceback as well."""
        for line in self.format(record).splitlines():
            self._console.warn(line)
