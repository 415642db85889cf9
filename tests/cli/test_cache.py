"""`chat --cache` and `cache`: what a second run finds, what is told, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import Command, run_python


def asked(folder: Path, model: Path, image: Path, question: str = "What is the total?") -> tuple[str, ...]:
    given = ("--image", str(image), "--max-tokens", "4", "--cache", str(folder))
    return ("chat", str(model), "-p", question, *given)


def test_a_second_run_finds_the_first(
    command: Command, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    first = command(*asked(folder, small_model, invoice), "--json").json()
    assert (first["usage"]["restored_tokens"], first["usage"]["reused_images"]) == (0, 0)
    again = command(*asked(folder, small_model, invoice, "Who wrote it?"), "--stats")
    prompt = [line for line in again.stderr.splitlines() if line.startswith("from the cache: ")]
    assert len(prompt) == 1
    assert prompt[0].endswith("tokens of the prompt")
    value = command(*asked(folder, small_model, invoice, "Which bank?"), "--json").json()
    usage = value["usage"]
    assert usage["restored_tokens"] == usage["cached_tokens"] > usage["image_tokens"]
    other = command(*asked(folder, small_model, invoice), "--system", "Be brief.", "--json").json()
    assert (other["usage"]["restored_tokens"], other["usage"]["reused_images"]) == (0, 1)


def test_the_folder_is_shown_and_cleared(
    command: Command, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    command(*asked(folder, small_model, invoice))
    (folder / "mine.txt").write_text("mine")
    shown = command("cache", str(folder), "--json").json()
    assert shown["entries"] >= 3
    assert shown["removed"] is None
    assert f"{shown['entries']} entries" in command("cache", str(folder)).stdout
    cleared = command("cache", "clear", str(folder), "--json").json()
    assert (cleared["removed"], cleared["freed"]) == (shown["entries"], shown["bytes"])
    assert (cleared["entries"], cleared["bytes"]) == (0, 0)
    assert sorted(path.name for path in folder.iterdir()) == ["CACHEDIR.TAG", "mine.txt"]
    assert "removed 0 entries" in command("cache", "clear", str(folder)).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clear",), "`cache` with 0 folders"),
        (("a", "b"), "`cache` with 2 folders"),
        (("clear", "a", "b"), "`cache` with 2 folders"),
        (("missing",), "missing cannot be the folder of --cache"),
        (("clear", "missing"), "there is no such folder"),
        (("foreign",), "it has no CACHEDIR.TAG of ernie-local"),
        (("clear", "foreign"), "it has no CACHEDIR.TAG of ernie-local"),
    ],
)
def test_what_is_no_cache_is_refused(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "features-1").write_text("mine")
    result = command("cache", *words)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3
    assert message in result.stderr
    assert (tmp_path / "foreign" / "features-1").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cache-size", "1GiB"), "--cache-size 1GiB without --cache"),
        (("--cache", "kept", "--cache-size", "12"), "--cache-size 12 is 12 bytes"),
        (("--cache", "foreign"), "foreign cannot be the folder of --cache"),
        (("--cache", "foreign/file"), "foreign/file cannot be the folder of --cache"),
    ],
)
def test_a_chat_is_refused_before_weights_are_read(
    command: Command,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    message: str,
) -> None:
    from ernie_local.loading import loader

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loader, "build_model", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").write_text("mine")
    result = command("chat", str(small_model), "-p", "hi", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "kept").exists()


def test_a_damaged_entry_is_one_line_and_the_answer_is_the_same(
    command: Command, small_model: Path, invoice: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    before = command(*asked(folder, small_model, invoice))
    for path in folder.iterdir():
        if path.name.startswith(("prefix", "features")):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    again = command(*asked(folder, small_model, invoice))
    assert (again.exit_code, again.stdout) == (before.exit_code, before.stdout)
    told = [line for line in again.stderr.splitlines() if "it is computed again" in line]
    assert told
    assert all(line.startswith(f"warning: the cache {folder}: ") for line in told)
    assert "from the cache" not in again.stderr
    assert "from the cache" in command(*asked(folder, small_model, invoice)).stderr


def test_showing_a_folder_loads_no_torch(tmp_path: Path) -> None:
    code = (
        "import json, sys\n"
        "from ernie_local.reuse.cache_folder import CacheFolder\n"
        "CacheFolder.open(sys.argv[1], 1 << 20)\n"
        "from ernie_cli.main import run\n"
        "code = run(['cache', sys.argv[1]])\n"
        "print(json.dumps([code, 'torch' in sys.modules]))"
    )
    finished = run_python(code, str(tmp_path / "kept"))
    assert json.loads(finished.stdout.splitlines()[-1]) == [0, False]
