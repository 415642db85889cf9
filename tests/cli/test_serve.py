"""`ernie-local serve` as a process: it listens while it loads, says where, answers, and ends on a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Command, validator_of
from tests.draws import rest_slow

_SECONDS = 60.0


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """`serve nano --json` on a free port."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-m", "ernie_cli.main", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that run in the background ignore Ctrl-C, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as started:
        yield started
        started.kill()


@pytest.mark.parametrize("number", rest_slow([signal.SIGTERM, signal.SIGINT], 1))
def test_it_says_where_it_listens_answers_and_ends(
    process: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert process.stderr is not None
    line = process.stderr.readline()
    url = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert url, line
    body = json.dumps({"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}).encode()
    with urllib.request.urlopen(f"{url[0]}/v1/chat/completions", body, timeout=_SECONDS) as response:
        assert json.load(response)["usage"]["completion_tokens"] == 3
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=_SECONDS)
    assert (process.returncode, stderr) == (0, "")
    result = json.loads(stdout)
    validator_of("serve").validate(result)
    assert (result["model"], result["url"], result["answers"]) == ("nano", url[0], 1)


def test_a_port_that_is_taken_is_refused_before_the_model_is_read(command: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = command("serve", "no-such-model", "--port", str(port))
    assert result.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in result.stderr
    assert "--port 80" in result.stderr


def test_what_cannot_be_served_is_refused(command: Command, tmp_path: Path) -> None:
    assert command("serve", "--host", "no.such.host.invalid").exit_code == 2
    assert command("serve", "--media-path", str(tmp_path / "none")).exit_code == 2
    assert command("serve", "--max-request", "lots").exit_code == 2
    assert command("serve", "no-such-model", "--port", "0").exit_code == 4
