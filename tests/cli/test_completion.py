"""Shell completion: commands, options, values, models and files, without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.running import Command, run_python

Complete = Callable[[str], list[str]]


@pytest.fixture
def complete(
    command: Command, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Complete:
    """What bash is offered for the last word of a command line, in a folder with some files."""
    for name in ("invoice.png", "invoice.pdf", ".hidden"):
        (tmp_path / name).touch()
    (tmp_path / "models" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_ERNIE_LOCAL_COMPLETE", "complete_bash")

    def invoke(line: str) -> list[str]:
        words = f"ernie-local {line}".split(" ")
        monkeypatch.setenv("COMP_WORDS", " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit) as ended:
            command()
        assert ended.value.code == 0
        return capfd.readouterr().out.split()

    return invoke


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("insp", ["inspect"]),
        ("inspect --js", ["--json"]),
        ("chat na", ["nano"]),
        ("chat h", ["hf:"]),
        ("chat mo", ["models/"]),
        ("chat models/", ["models/large/"]),
        ("chat ", ["nano", "hf:", "invoice.pdf", "invoice.png", "models/"]),
        ("chat nowhere/", []),
        ("eval nano na", ["nano"]),
        ("quantize nano mod", ["models/"]),
        ("chat nano --image inv", ["invoice.pdf", "invoice.png"]),
        ("chat nano --image .h", [".hidden"]),
        ("chat nano --save invoice.pn", ["invoice.png"]),
        ("chat nano --think ", ["on", "off", "auto"]),
        ("quantize nano out --method quanto", ["quanto", "quanto-hqq"]),
        ("vram --gpu al", ["all"]),
        ("bench --gpu rtx3060-12", ["rtx3060-12gb"]),
        ("doctor --bundle ./models/l", ["./models/large/"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bash_is_offered(complete: Complete, line: str, offered: list[str]) -> None:
    assert complete(line) == offered


def test_completing_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from ernie_cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'numpy', 'rich', 'PIL'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = run_python(
        code, _ERNIE_LOCAL_COMPLETE="complete_bash", COMP_WORDS="ernie-local vram n", COMP_CWORD="2"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "nano\n", "[]\n")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_is_found_and_set_up(tmp_path: Path) -> None:
    """`--show-completion` and `--install-completion` look at the shell that started them."""
    variables = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    program = f"'{sys.executable}' -c 'from ernie_cli.main import main; main()'"
    script = f"{program} --show-completion && {program} --install-completion; exit $?"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert "_ERNIE_LOCAL_COMPLETE=complete_bash" in done.stdout
    (installed,) = (tmp_path / ".bash_completions").iterdir()
    assert "_ERNIE_LOCAL_COMPLETE=complete_bash" in installed.read_text()
