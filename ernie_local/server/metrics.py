"""Counts what the server does, for Prometheus to read."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ernie_local.server.service import Ended, Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The counters of one server. They tell numbers only, nothing of what was asked."""

    def __init__(self) -> None:
        self.num_answers = 0  #: that were written to their end
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "ernie_local_requests", "Answered requests", ["path", "status"], registry=self._registry
        )
        self._tokens = Counter(
            "ernie_local_tokens", "Tokens, by what they were", ["kind"], registry=self._registry
        )
        self._seconds = Histogram(
            "ernie_local_answer_seconds",
            "Seconds of an answer, by part",
            ["part"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
            registry=self._registry,
        )
        self._running = Gauge("ernie_local_running", "Answers being written", registry=self._registry)
        self._waiting = Gauge("ernie_local_waiting", "Questions that wait", registry=self._registry)

    def count_request(self, path: str, status: int) -> None:
        """path: of the route, not of the request, which may be anything."""
        self._requests.labels(path, str(status)).inc()

    def count_answer(self, ended: Ended) -> None:
        """Tokens and seconds of an answer that has ended."""
        self.num_answers += 1
        usage, timings = ended.answer.usage, ended.answer.timings
        for kind, number in (
            ("prompt", usage.prompt_tokens - usage.cached_tokens),
            ("cached", usage.cached_tokens),
            ("answer", usage.completion_tokens),
        ):
            self._tokens.labels(kind).inc(number)
        for part in ("image", "prefill", "decode"):
            self._seconds.labels(part).observe(getattr(timings, part))

    def text(self, service: Service | None) -> bytes:
        """All of them in Prometheus' text format."""
        self._running.set(0 if service is None else service.num_running)
        self._waiting.set(0 if service is None else service.num_waiting)
        return generate_latest(self._registry)
