"""Streams that are closed, full, or pipes whose reader has gone, for commands in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.draws import rest_slow

COMMAND = f"{sys.executable} -m ernie_cli.main"
VRAM = f"{COMMAND} vram nano --ram 4GiB"
CHAT = f"{COMMAND} chat nano -p Hello --max-tokens 3"


def run_shell(line: str) -> subprocess.CompletedProcess[str]:
    """`line` in bash; its exit code is that of the first command of a pipe that fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("broken", rest_slow(["2>&-", "2>/dev/full", "2> >(exec true)"], 1))
def test_the_answer_comes_where_stderr_is_broken(broken: str) -> None:
    done = run_shell(f"{CHAT} --stats {broken}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize("arguments", ["--json", ""])
@pytest.mark.parametrize("command", rest_slow([VRAM, CHAT], 1))
def test_a_full_stdout_is_named_in_three_lines(command: str, arguments: str) -> None:
    done = run_shell(f"{command} {arguments} > /dev/full")
    assert done.returncode == 1
    lines = done.stderr.splitlines()[-3:]
    assert lines[0] == "error: stdout: No space left on device"
    assert lines[2].startswith("try: ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", rest_slow([VRAM, f"{VRAM} --json", f"{COMMAND} --help", CHAT], 3))
def test_a_closed_stdout_is_named(command: str) -> None:
    done = run_shell(f"{command} >&-")
    assert done.returncode == 1
    assert "error: stdout: it is closed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", ["", "--json"])
def test_a_reader_that_ends_early_is_no_error(arguments: str) -> None:
    done = run_shell(f"{VRAM} {arguments} | head -c 1")
    assert done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("where", ["| cat", "> {file}", "> /dev/null", ">&-"])
def test_a_chat_is_not_saved_into_stdout(where: str, tmp_path: Path) -> None:
    done = run_shell(f"{CHAT} --save /dev/stdout {where.format(file=tmp_path / 'out')}")
    assert done.returncode == 2
    assert [line[:7] for line in done.stderr.splitlines()][::2] == ["error: ", "try: gi"]
    assert Path("/dev/stdout").is_symlink()


def test_with_all_streams_closed_a_command_ends() -> None:
    assert run_shell(f"{VRAM} <&- >&- 2>&-").returncode == 1


def test_a_closed_stdin_is_an_empty_one() -> None:
    done = run_shell(f"{COMMAND} chat nano <&-")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
