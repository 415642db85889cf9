"""What the HTTP server adds to an answer, what a second turn spares, and how it stands a crowd.

    python benchmarks/serve.py overhead [MODEL] [--rounds 20] [--tokens 32]
    python benchmarks/serve.py second-turn [MODEL] [--image examples/invoice.png] [--rounds 5]
    python benchmarks/serve.py load [MODEL] [--clients 50] [--requests 20] [--minutes 0]

MODEL is nano, or a directory. All of it is in one process: server, clients, and the chat that is compared.
overhead: the time from the first to the last piece of an answer, by `Chat.ask` and over HTTP, turn about.
second-turn: the time to the first byte of an answer about an image never seen before, and of the next answer.
load: of each ten requests one is cut off in the middle and one is malformed, of twenty one is over a limit;
every finished answer is compared to the one asked alone. With --minutes clients go on until then, and memory
and descriptors are printed every minute. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from ernie_local import session
from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.server.app import Server
from ernie_local.server.listening import Listening
from ernie_local.server.service import Service
from ernie_local.session import Chat

INVOICE = Path(__file__).parents[1] / "examples" / "invoice.png"
QUESTION = "What is the total?"
QUESTIONS = (QUESTION, "Who are you?", "What is an invoice?", "Hello", "What is the date?", "Read the text.")
LOAD_TOKENS = 8
_PATH = "/v1/chat/completions"


@contextmanager
def serving(model: LoadedModel, num_slots: int, max_waiting: int) -> Iterator[int]:
    """The port of a server with this model."""
    server = Server(model_name="model")
    server.service = Service([Chat(model) for _ in range(num_slots)], max_waiting)
    with Listening(server, "127.0.0.1", 0) as listening:
        yield listening.port


def post(port: int, body: dict[str, Any] | bytes) -> http.client.HTTPResponse:
    """The answer of which only the head has been read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", _PATH, sent, {"Content-Type": "application/json"})
    return connection.getresponse()


def pieces_of(response: http.client.HTTPResponse) -> Iterator[str]:
    """The texts of a stream, as they come."""
    for line in response:
        if line.startswith(b"data: {"):
            choices = json.loads(line[6:]).get("choices") or [{}]
            delta = choices[0].get("delta", {})
            text = delta.get("content") or delta.get("reasoning_content")
            if text:
                yield text


def timed(pieces: Iterator[object], started: float) -> tuple[float, float, int]:
    """Seconds to the first piece, from there to the last, and how many came."""
    times = [time.perf_counter() - started for _ in pieces]
    return times[0], times[-1] - times[0], len(times)


def messages(text: str, image: bytes | None = None, *more: dict[str, str]) -> list[dict[str, Any]]:
    """A conversation that begins with a question."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if image is not None:
        url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": content}, *more]


def overhead(model: LoadedModel, rounds: int, tokens: int) -> dict[str, float]:
    chat, added, first_added, alone_ms = Chat(model), list[float](), list[float](), list[float]()
    with serving(model, 1, 1) as port:
        for number in range(rounds + 1):
            question = QUESTIONS[number % len(QUESTIONS)]
            started = time.perf_counter()
            first, between, count = timed(iter(chat.send(alone(question), max_tokens=tokens)), started)
            started = time.perf_counter()
            response = post(port, {"messages": messages(question), "stream": True, "max_tokens": tokens})
            served_first, served_between, served_count = timed(pieces_of(response), started)
            assert served_count == count, "not the same answer"
            if number and count > 1:  # the first warms up
                added.append(1000 * (served_between - between) / (count - 1))
                alone_ms.append(1000 * between / (count - 1))
                first_added.append(1000 * (served_first - first))
    return {
        "token_alone_ms": statistics.median(alone_ms),
        "token_added_ms": statistics.median(added),
        "first_piece_added_ms": statistics.median(first_added),
        "rounds": len(added),
    }


def alone(question: str) -> list[session.ChatMessage]:
    """The same conversation for the library."""
    return [session.ChatMessage("user", question)]


def second_turn(model: LoadedModel, path: Path, rounds: int) -> dict[str, float]:
    firsts, seconds = list[float](), list[float]()
    with serving(model, 1, 1) as port:
        for number in range(rounds):
            image = changed(path, number)
            body: dict[str, Any] = {"messages": messages(QUESTION, image), "stream": True, "max_tokens": 16}
            started = time.perf_counter()
            response = post(port, body)
            texts: list[str] = []
            for text in pieces_of(response):
                if not texts:
                    firsts.append(time.perf_counter() - started)
                texts.append(text)
            said = {"role": "assistant", "content": "".join(texts)}
            body["messages"] = messages(QUESTION, image, said, {"role": "user", "content": "And the date?"})
            started = time.perf_counter()
            seconds.append(timed(pieces_of(post(port, body)), started)[0])
            print(f"first turn {firsts[-1]:.3f} s, second {seconds[-1]:.3f} s", flush=True)
    return {
        "first_s": statistics.median(firsts),
        "second_s": statistics.median(seconds),
        "ratio": statistics.median(two / one for one, two in zip(firsts, seconds, strict=True)),
    }


def changed(path: Path, number: int) -> bytes:
    """The image with one other pixel, so that nothing of it is known."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    image.putpixel((0, 0), (number % 256, number // 256 % 256, 7))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Crowd:
    """What clients share. expected: the answer to each question, asked alone."""

    port: int
    expected: list[str]
    bodies: list[dict[str, Any]]
    until: float
    counts: Counter[str] = field(default_factory=Counter)

    def client(self, number: int, num_requests: int) -> None:
        draw = random.Random(number)
        done = 0
        while done < num_requests or time.monotonic() < self.until:
            kind = draw.random()
            which = draw.randrange(len(self.bodies))
            try:
                if kind < 0.1:
                    self.leave(which)
                elif kind < 0.2:
                    self.refused("malformed", (b'{"messages": [', 400), draw)
                elif kind < 0.25:
                    self.refused("over a limit", (too_long(), 400), draw)
                else:
                    self.ask(which, is_stream=draw.random() < 0.5)
            except (OSError, http.client.HTTPException) as error:
                self.counts[f"broken: {type(error).__name__}"] += 1
            done += 1

    def ask(self, which: int, *, is_stream: bool) -> None:
        response = post(self.port, {**self.bodies[which], "stream": is_stream})
        if response.status == 503:
            response.read()
            self.counts["busy"] += 1
            time.sleep(0.2)
            return
        if is_stream:
            said = "".join(pieces_of(response))
        else:
            said = json.loads(response.read())["choices"][0]["message"]["content"]
        self.counts["finished" if said == self.expected[which] else "WRONG"] += 1

    def leave(self, which: int) -> None:
        response = post(self.port, {**self.bodies[which], "stream": True, "max_tokens": 500})
        response.read(20)
        response.close()
        self.counts["left"] += 1

    def refused(self, kind: str, sent: tuple[bytes, int], draw: random.Random) -> None:
        response = post(self.port, sent[0])
        response.read()
        self.counts[kind if response.status in (sent[1], 503) else f"{kind}: {response.status}"] += 1


def too_long() -> bytes:
    return json.dumps({"messages": messages("word " * 200_000)}).encode()


def load(model: LoadedModel, clients: int, requests: int, minutes: float) -> dict[str, Any]:
    image = INVOICE.read_bytes()
    asked = [*map(messages, QUESTIONS), messages(QUESTION, image)]
    bodies: list[dict[str, Any]] = [{"messages": one, "max_tokens": LOAD_TOKENS} for one in asked]
    process, began = psutil.Process(), time.monotonic()
    with serving(model, model.settings.parallel, clients) as port:
        expected = [
            json.loads(post(port, body).read())["choices"][0]["message"]["content"] for body in bodies
        ]
        crowd = Crowd(port, expected, bodies, time.monotonic() + 60 * minutes)
        threads = [
            threading.Thread(target=crowd.client, args=(number, requests)) for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        use = watch(process, threads)
    seconds = time.monotonic() - began
    return {"seconds": seconds, "counts": dict(crowd.counts), "use": use}


def watch(process: psutil.Process, threads: Sequence[threading.Thread]) -> list[tuple[float, int]]:
    """MiB resident and descriptors, at the beginning, every minute, and when all clients have gone."""
    use = list[tuple[float, int]]()
    while True:
        mib = process.memory_info().rss / (1 << 20)
        use.append((round(mib, 1), process.num_fds()))
        print(f"minute {len(use) - 1}: {mib:.1f} MiB, {use[-1][1]} descriptors", flush=True)
        if not any(thread.is_alive() for thread in threads):
            return use
        ends = time.monotonic() + 60
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("what", choices=("overhead", "second-turn", "load"))
    parser.add_argument("model", nargs="?", default="nano")
    parser.add_argument("--ram", default="auto")
    parser.add_argument("--ctx-size", type=int, default=4096)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--image", type=Path, default=INVOICE)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=0.0)
    options = parser.parse_args()
    parallel = options.parallel if options.what == "load" else 2
    loading = LoadOptions(ram=options.ram, context_size=options.ctx_size, parallel=parallel)
    model = session.open_model(find_model_files(options.model), loading)
    result: dict[str, Any]
    if options.what == "overhead":
        result = overhead(model, options.rounds or 20, options.tokens)
    elif options.what == "second-turn":
        result = second_turn(model, options.image, options.rounds or 5)
    else:
        result = load(model, options.clients, options.requests, options.minutes)
    print(json.dumps({"what": options.what, "model": options.model, **result}))


if __name__ == "__main__":
    main()
