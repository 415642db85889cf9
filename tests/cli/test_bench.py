"""`chat --trace` and `bench --replay` on nano: what is recorded, printed, and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_cli.main import run
from ernie_local.sizes import format_bytes
from tests.cli.running import Command, run_python


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "chat.trace"
    arguments = ["chat", "nano", "-p", "What is 3 plus 4?", "--max-tokens", "4", "--trace", str(path)]
    assert run(arguments) in (0, 7)
    return path


def test_one_question_is_recorded_and_replayed(command: Command, trace: Path) -> None:
    value = command("bench", "--replay", str(trace), "--json").json()
    assert (value["ok"], value["model"], value["trace"]) == (True, "nano", str(trace))
    assert value["prompt_tokens"] > 10
    assert value["decoded_tokens"] >= 1
    # Of 5 layers with 16 experts: 3 matrices of 192 x 320 and 192 x 128 in bfloat16.
    assert value["expert_bytes"] == {"text": 80 * 3 * 192 * 320 * 2, "vision": 80 * 3 * 192 * 128 * 2}
    assert [budget["share"] for budget in value["budgets"]] == [0.25, 0.5, 0.75, 1.0]
    for budget in value["budgets"]:
        assert [policy["policy"] for policy in budget["policies"]] == ["ours", "lru", "lfu", "belady"]
        for policy in budget["policies"]:
            text = policy["banks"]["text"]
            assert text["decode_hits"] + text["decode_misses"] == value["decoded_tokens"] * 5 * 4
            assert policy["banks"]["vision"]["decode_hit_rate"] is None
        best = budget["policies"][-1]["banks"]["text"]["decode_hit_rate"]
        if budget["share"] < 1:  # where all have room, ours reads the rest beforehand
            assert all(policy["banks"]["text"]["decode_hit_rate"] <= best for policy in budget["policies"])


def test_the_table_has_a_line_for_each_policy_and_budget(command: Command, trace: Path) -> None:
    result = command(
        "bench", "--replay", str(trace), "--ram", "4MiB", "--ram", "9MiB", "--decay", "0", "--decay", "0.9"
    )
    assert result.exit_code == 0
    head, columns, *lines = result.stdout.splitlines()
    assert head.startswith("nano: ")
    assert "28.1 MiB of text experts" in head
    assert columns.split() == "memory policy text hits vision hits read per token".split()
    assert [line[:11].strip() for line in lines] == ["4.0 MiB", *[""] * 4, "9.0 MiB", *[""] * 4]
    assert [line[13:22].strip() for line in lines] == ["ours 0", "ours 0.9", "lru", "lfu", "belady"] * 2
    assert all("%" in line for line in lines)


def test_an_interactive_chat_is_recorded_also_after_slash_system(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "chat.trace"
    said = b"What is 3 plus 4?\n/system Be brief.\nWhat is 4 plus 4?\n"
    assert command("chat", "-i", "--max-tokens", "3", "--trace", str(path), stdin=said).exit_code == 0
    one = command("bench", "--replay", str(path), "--json").json()["prompt_tokens"]
    said = b"What is 3 plus 4?\n"
    assert command("chat", "-i", "--max-tokens", "3", "--trace", str(path), stdin=said).exit_code == 0
    assert one > command("bench", "--replay", str(path), "--json").json()["prompt_tokens"]


def test_too_little_memory_is_refused_with_both_numbers(command: Command, trace: Path) -> None:
    result = command("bench", "--replay", str(trace), "--ram", "1MiB", "--json")
    assert result.exit_code == 3
    error = result.json()["error"]
    least = int(error["hint"].split()[1])
    assert error["what"].startswith("1.0 MiB for experts of nano, ")
    assert format_bytes(least) in error["what"]
    assert command("bench", "--replay", str(trace), "--ram", str(least - 1)).exit_code == 3
    assert command("bench", "--replay", str(trace), "--ram", str(least)).exit_code == 0
    assert result.json()["budgets"] == []


def test_a_file_that_is_no_trace_ends_with_5(command: Command, invoice: Path) -> None:
    result = command("bench", "--replay", str(invoice))
    assert (result.exit_code, result.stdout) == (5, "")
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("--decay", "1.5"),
        ("--decay", "nan"),
        ("--vram", "1GiB"),
        ("--ram", "much"),
        ("nano",),
        ("--image", "x.png"),
        ("--ctx-size", "1k"),
        ("--no-save",),
    ],
    ids=" ".join,
)
def test_wrong_options_are_usage_errors(command: Command, trace: Path, arguments: tuple[str, ...]) -> None:
    result = command("bench", "--replay", str(trace), *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.usefixtures("no_weights")
def test_a_trace_is_not_written_over_something_else(command: Command, invoice: Path, tmp_path: Path) -> None:
    for path, reason in (
        (invoice, "something else"),
        (tmp_path, "a directory"),
        (tmp_path / "no" / "t", "is not a directory"),
    ):
        result = command("chat", "-p", "hi", "--trace", str(path))
        assert result.exit_code == 2
        assert reason in result.stderr


def test_a_replay_needs_no_torch(trace: Path) -> None:
    code = (
        "import sys; from ernie_cli.main import run; code = run(['bench', '--replay', sys.argv[1]]);"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert run_python(code, str(trace)).returncode == 0


def test_a_gpu_is_predicted_and_says_so(command: Command, trace: Path) -> None:
    of_gpu = ("bench", "--replay", str(trace), "--gpu", "rtx3060-12gb", "--vram", "6MiB")
    value = command(*of_gpu, "--ram", "9MiB", "--ram", "12MiB", "--json").json()
    found = value["predictions"]
    assert [(one["ram_bytes"] >> 20, one["misses"]) for one in found] == [
        (ram, misses) for ram in (9, 12) for misses in ("fetch", "compute", "split")
    ]
    for one in found:
        assert one["gpu"] == "rtx3060-12gb"
        assert one["gpu_bytes"] == 6 << 20
        assert 0 < one["gpu_hit_rate"] < 1
        for wait in ("link", "disk"):
            seconds = one[f"predicted_{wait}_wait_seconds_per_token"]
            assert 0 <= seconds < one["predicted_seconds_per_token"] < 1
        assert (one["predicted_link_wait_seconds_per_token"] > 0) == (one["misses"] != "compute")
    assert value["budgets"] == []
    result = command(*of_gpu)
    assert result.exit_code == 0
    head, _, *lines = result.stdout.splitlines()
    assert head.startswith("predicted, not measured: 6.0 MiB of GeForce RTX 3060")
    assert [line.split()[2] for line in lines] == ["fetch", "compute", "split"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gpu", "rtx3060-12gb"),
        ("--replay", "t", "--gpu", "rtx3060-12gb"),
        ("--replay", "t", "--vram", "6GiB"),
        ("--replay", "t", "--vram", "6GiB", "--gpu", "rtx3060-12gb", "--decay", "0.5"),
    ],
)
def test_half_a_gpu_is_refused(command: Command, arguments: tuple[str, ...]) -> None:
    assert command("bench", *arguments).exit_code == 2
