"""Every command line of README.md is run: the two that install by .ci/run, word for word, the others here."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from ernie_cli.main import run
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.server.listening import Listening
from tests.hub_double import HubDouble

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "ernie-local"
INSTALL = "python3 -m venv"
# Questions for a chat that is not given one; it reads them where a terminal would type them.
TYPED = b"What is the total?\n"
# The subcommands that nano answers within a few seconds.
QUICK = ("chat", "extract", "vram", "doctor")
# The same work on fewer samples: with all of them it takes minutes. A server takes any free port.
FEWER = {"quantize": ["--samples", "6"], "eval": ["--samples", "4"], "serve": ["--port", "0"]}
# doctor ends with 1 where this machine is slow, and everything else was run all the same.
EXPECTED_CODES = {"doctor": {0, 1}}


def command_lines() -> list[str]:
    """The lines of README's fenced blocks, without those of a named language."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [line for language, block in blocks if not language for line in block.splitlines()]


def install_lines() -> list[str]:
    return [line for line in command_lines() if line.startswith(INSTALL)]


def program_lines() -> list[str]:
    """The other lines in README's order, without the program's name and the comment."""
    return [
        line.removeprefix(PROGRAM).split("  #")[0].strip()
        for line in command_lines()
        if line not in install_lines()
    ]


def ci_lines() -> list[str]:
    return [line.strip() for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()]


def is_quick(line: str) -> bool:
    words = shlex.split(line, comments=True)
    return words[0] in QUICK and not any(word.startswith("OUT") for word in words)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader: the files that README names, and no stored profile of this machine."""
    invoice = ROOT / "examples" / "invoice.png"
    (tmp_path / "examples").mkdir()
    for target in ("examples/invoice.png", "invoice.png", "photo.png"):
        shutil.copy(invoice, tmp_path / target)
    pages = [Image.open(invoice).convert("RGB") for _ in range(3)]
    pages[0].save(tmp_path / "scan.pdf", save_all=True, append_images=pages[1:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def run_line(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one line with nano as MODEL; folders named OUT are made in the working folder."""
    words = ["nano" if word == "MODEL" else word for word in shlex.split(line, comments=True)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TYPED), encoding="utf-8"))
    words += FEWER.get(words[0], [])
    assert run(words) in EXPECTED_CODES.get(words[0], {0}), line


def test_every_line_is_an_installation_or_the_program() -> None:
    strange = [line for line in command_lines() if not line.startswith((INSTALL, f"{PROGRAM} "))]
    assert strange == []
    assert len(program_lines()) <= 12
    assert any(is_quick(line) for line in program_lines())


def test_readme_has_one_line_that_tests_and_one_that_answers() -> None:
    lines = install_lines()
    assert sum(line.endswith("pytest") for line in lines) == 1, lines
    assert sum(f"{PROGRAM} chat" in line for line in lines) == 1, lines


def test_ci_runs_each_readme_line_word_for_word() -> None:
    missing = [line for line in install_lines() if line not in ci_lines()]
    assert not missing, f".ci/run does not run what README.md says: {missing}"


def test_ci_has_no_install_line_that_readme_lacks() -> None:
    installs = [line for line in ci_lines() if "pip install" in line]
    assert installs
    extra = [line for line in installs if line not in install_lines()]
    assert not extra, f".ci/run installs what README.md does not: {extra}"


@pytest.mark.parametrize("line", [line for line in program_lines() if is_quick(line)])
def test_a_quick_command_works_as_shown(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run_line(line, monkeypatch)
    assert capfd.readouterr().out.strip(), f"{line} in {folder} says nothing"


def test_the_first_command_answers_about_the_invoice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    line = next(line for line in install_lines() if f"{PROGRAM} chat" in line)
    run_line(line.split(f"{PROGRAM} ")[1], monkeypatch)
    assert capfd.readouterr().out.strip() == "£84.84"


def end_servers_when_they_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` has no end of its own."""

    def answers(listening: Listening) -> bool:
        with urllib.request.urlopen(f"{listening.url}/health", timeout=20) as answer:
            assert json.load(answer) == {"status": "ok"}
        return False

    monkeypatch.setattr(Listening, "is_alive", property(answers))


@pytest.mark.slow
def test_all_commands_work_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_servers_when_they_answer(monkeypatch)
    for line in program_lines():
        run_line(line, monkeypatch)
    assert (folder / "OUT" / "quant_report.json").exists()


@pytest.mark.slow
def test_the_way_to_the_real_model_works_with_a_model_of_its_name(
    folder: Path, hub: HubDouble, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """nano stands for the published model: on a hub of its own, with a known answer of its own."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].removeprefix(PROGRAM) for line in block.splitlines()]
    (name,) = {word for line in lines for word in line.split() if word.startswith("hf:")}
    source = Path(shutil.copytree(NANO_DIRECTORY, folder / "source"))
    prompt = {"name": "text", "content": ["What is the total?"], "ids": [300]}
    golden = {"source": "a test", "thinking": False, "prompts": [prompt]}
    (source / "golden.json").write_text(json.dumps(golden))
    hub.add_folder(name.removeprefix("hf:"), source)
    assert len(lines) == 4
    for line in lines:
        run_line(line, monkeypatch)
    said = capfd.readouterr()
    assert "download: " in said.out
    assert "golden text: " in said.out
    assert said.out.splitlines()[-1] == "£84.84"
