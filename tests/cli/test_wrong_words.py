"""Words in the wrong place and unknown commands: what is advised."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.running import Command


@pytest.mark.parametrize(
    ("arguments", "exit_code", "hint"),
    [
        (("chat", "p/inv.png", "-p", "hi"), 4, "--image p/inv.png"),
        (("chat", "p/my inv.png", "-p", "hi"), 4, "--image 'p/my inv.png'"),
        (("vram", "p/inv.png"), 4, "--image p/inv.png"),
        (("inspect", "p/inv.pdf:1-3"), 4, "--image p/inv.pdf:1-3"),
        (("chat", "What is the total?"), 4, "-p 'What is the total?'"),
        (("chat", "", "-p", "hi"), 2, "nano"),
        (("verify", ""), 2, "nano"),
        (("chat", "-p", "hi", "--image", ""), 2, "--image invoice.png"),
        (("vram", "nano", "--image", ""), 2, "--image invoice.png"),
        (("chat", "-p", "hi", "--ram", "8"), 2, "--ram 8GiB?"),
        (("vram", "nano", "--vram", "8.5"), 2, "--vram 8.5GiB?"),
        (("vram", "nano", "--ram", "8192"), 2, "--ram 8192MiB?"),
    ],
)
def test_a_word_in_the_wrong_place_is_told_its_place(
    command: Command, arguments: tuple[str, ...], exit_code: int, hint: str
) -> None:
    result = command(*arguments, stdin=b"hi")
    assert (result.exit_code, result.stdout) == (exit_code, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert hint in lines[2]


def test_a_small_size_may_be_meant(command: Command) -> None:
    result = command("chat", "-p", "hi", "--ram", "8b")
    assert result.exit_code == 3
    assert "8 bytes" in result.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("run", "nano"), "ernie-local chat nano,"),
        (("pull", "org/name"), "ernie-local chat hf:org/name,"),
        (("help",), "ernie-local --help"),
        (("help", "chat"), "ernie-local chat --help"),
        (("chta",), "ernie-local chat,"),
        (("chta", "-p", "how much?"), "ernie-local chat -p 'how much?',"),
        (("Quantise", "nano"), "ernie-local quantize nano,"),
        (("nano",), "ernie-local chat nano,"),
        (("nano", "-p", "hi"), "ernie-local chat nano -p hi,"),
        (("hf:org/name", "--image", "a b.png"), "ernie-local chat hf:org/name --image 'a b.png',"),
        (("-",), "ernie-local chat -p -,"),
        (("What is it?", "--image", "a.png"), "ernie-local chat -p 'What is it?' --image a.png,"),
        (("nano", "-p", "x" * 3000), "ernie-local chat ...,"),
        (("x" * 3000,), "ernie-local --help"),
    ],
)
def test_an_unknown_command_is_told_the_nearest(command: Command, words: tuple[str, ...], hint: str) -> None:
    result = command(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert f"{lines[2]},".startswith(f"try: {hint}")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("-p", "hi"), "chat -p hi"),
        (("-p", "What is it?", "--image", "a b.png"), "chat -p 'What is it?' --image 'a b.png'"),
        (("-phi",), "chat -phi"),
        (("--prompt=hi", "--stats"), "chat --prompt=hi --stats"),
        (("--image", "x.png"), "chat --image x.png"),
        (("--json", "chat", "-p", "verify"), "chat --json -p verify"),
        (("-p", "verify", "--image", "vram"), "chat -p verify --image vram"),
        (("--ram", "8GiB", "vram", "nano"), "vram --ram 8GiB nano"),
        (("--json",), "chat --json"),
        (("--bits", "2", "nano", "out", "--dual"), "quantize --bits 2 nano out --dual"),
        (("-i", "--", "-p"), "chat -i -- -p"),
        (("-p",), "chat -p"),
        (("-x", "hi"), "--help"),
        (("--verson",), "--version"),
        (("-p", "x" * 3000), "chat ..."),
    ],
)
def test_options_without_a_command_are_told_theirs(
    command: Command, words: tuple[str, ...], hint: str
) -> None:
    result = command(*words)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert "comes before any command" in lines[0]
    assert lines[2] == f"try: ernie-local {hint}"


def test_an_image_as_the_command_is_a_question_about_it(command: Command, invoice: Path) -> None:
    assert f"chat --image {invoice}" in command(str(invoice)).stderr
