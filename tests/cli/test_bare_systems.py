"""Systems that lack /dev, /proc or /sys, or limit addresses: three lines and a fitting exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import run_python
from tests.draws import rest_slow

LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv.pop(1)),) * 2);"
    "from ernie_cli.main import main; main()"
)


@pytest.mark.parametrize("mebibytes", rest_slow([500, 250, 630], 1))
@pytest.mark.parametrize("command", ["chat", "quantize", "verify", "doctor", "bench"])
def test_too_few_addresses_for_pytorch(command: str, mebibytes: int, tmp_path: Path) -> None:
    arguments = {"chat": ["-p", "hi"], "quantize": ["nano", str(tmp_path / "out")], "verify": ["nano"]}
    result = run_python(LIMITED, str(mebibytes << 20), command, *arguments.get(command, []))
    assert result.returncode == 3
    what, why, hint = result.stderr.splitlines()
    assert "ulimit -v" in why
    assert f"{mebibytes}.0 MiB" in why
    assert "PyTorch cannot be loaded" in what + why
    assert hint.startswith("try: raise that limit")


@pytest.mark.parametrize("command", ["inspect", "vram"])
def test_what_needs_no_pytorch_runs_with_few_addresses(command: str) -> None:
    result = run_python(LIMITED, str(630 << 20), command, "nano")
    assert result.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "arguments", "exit_code", "word"),
    [
        ("/dev", ("chat", "-p", "hi"), 3, "/dev/urandom"),
        ("/dev", ("verify", "nano"), 3, "/dev/urandom"),
        ("/dev", ("doctor",), 3, "/dev/urandom"),
        ("/proc", ("chat", "-p", "hi"), 3, "/proc"),
        ("/proc", ("doctor",), 3, "/proc"),
        ("/proc", ("bench", "nano"), 3, "/proc"),
        ("/sys", ("chat", "-p", "hi", "--max-tokens", "2"), 0, ""),
    ],
)
def test_a_folder_of_the_system_that_is_empty(
    folder: str, arguments: tuple[str, ...], exit_code: int, word: str
) -> None:
    code = "import sys; from ernie_cli.main import main; main()"
    line = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if subprocess.run([*line, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*line, sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        input="",
        check=False,
    )
    assert result.returncode == exit_code, result.stderr
    if exit_code:
        what, why, hint = result.stderr.splitlines()[-3:]
        assert word in what + why
        assert "is mounted" in hint
