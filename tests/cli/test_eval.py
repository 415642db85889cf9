"""`ernie-local eval` as a user runs it: one table, one object, and refusals before any weights are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ernie_local
from ernie_calibration.generated import held_out_samples
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_quant.evaluation import observation
from ernie_quant.evaluation.observation import ZoomedAnswer
from tests.cli.running import Command
from tests.plain_export import export_plainly
from tests.rounding import same_figures


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("a_directory_with_a_rather_long_name") / "w2"
    export_plainly(NANO_DIRECTORY, out, format_tables(read_config(NANO_DIRECTORY), FormatChoice("w2")))
    return out


def test_a_line_a_model_and_then_each_in_detail(command: Command, rounded: Path) -> None:
    result = command("eval", "nano", "nano", str(rounded), "--samples", "1")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith(str(rounded))) <= 80
    assert lines[0].split() == ["model", "size", "bits", "KL", "top-1", "exact", "flips", "experts"]
    reference, same, other = (line.split() for line in lines[1:4])
    assert reference[:1] + reference[3:4] == ["nano", "16.00"]
    assert same[4:] == ["0.0000", "100.0%", reference[-1], "-0", "+0", "100.0%"]
    assert other[0].startswith("...")
    assert other[0].endswith("/w2")
    assert float(other[4]) > 0
    details = [line for line in lines if line.startswith(("nano:", f"{rounded}:"))]
    assert len(details) == 2
    assert sum(line.split()[0] == "transcript" for line in lines[4:] if line) == 2  # one a model
    assert result.stderr == ""


def test_the_object_has_every_figure_of_the_table(command: Command, rounded: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    arguments = ("eval", "nano", str(rounded), "--samples", "1", "--reference-cache", str(cache), "--json")
    said = command(*arguments).json()
    assert (said["ok"], said["samples"], said["dtype"]) == (True, 1, "float32")
    assert said["reference"]["routed_bits"] == 16.0
    (found,) = said["checkpoints"]
    assert found["directory"] == str(rounded)
    assert 2.25 < found["routed_bits"] < 2.6
    assert found["divergence"]["mean"]["low"] <= found["divergence"]["mean"]["value"]
    assert found["answers"]["questions"] == 1
    assert {task["kind"] for task in found["tasks"]} >= {"transcript"}
    assert {(each["layer"], each["bank"]) for each in found["routing"]} == {
        (layer, bank) for layer in range(1, 6) for bank in ("text", "vision")
    }
    assert len(found["flips"]) == found["answers"]["right_to_wrong"] + found["answers"]["wrong_to_right"]
    assert cache.is_file()
    assert same_figures(command(*arguments).json(), said)


def test_the_checkpoints_cache_alone_has_the_type_that_is_asked_for(command: Command) -> None:
    said = command("eval", "nano", "nano", "--samples", "1", "--kv-dtype", "int8", "--json").json()
    (found,) = said["checkpoints"]
    assert said["kv_dtype"] == "int8"
    assert 0 < found["divergence"]["mean"]["value"] < 0.01, "it reads keys and values that are rounded"


def rows(lines: list[str]) -> dict[str, list[str]]:
    """The last two columns of each line of the table of tasks, by what begins it."""
    first = next(index for index, line in enumerate(lines) if line.split()[:1] == ["task"])
    return {line[:22].strip(): line.split()[-2:] for line in lines[first:] if line.startswith("  ")}


def test_print_that_is_too_small_is_scored_with_and_without_the_zoom_tool(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample,) = held_out_samples(1, families=("closeups",))
    (turn,) = sample.turns
    given = iter([ZoomedAnswer(turn.answer, True), ZoomedAnswer("7", True)] * 2)
    monkeypatch.setattr(observation, "answer_with_zoom", lambda *_: next(given))
    arguments = ("eval", "nano", "nano", "--samples", "1", "--family", "closeups")
    shown = rows(command(*arguments).stdout.splitlines())
    assert shown["small print"] == ["0.0%", "0.0%"]
    assert shown["with zoom"] == ["100.0%", "0.0%"]
    assert shown["zoom gain"] == ["+100.0%", "+0.0%"]
    assert shown["zoomed"] == ["1", "1"]
    (found,) = command(*arguments, "--json").json()["checkpoints"]
    (task,) = found["tasks"]
    names = ("score", "gain", "zoomed")
    assert task["zoom"] == dict(zip([f"reference_{name}" for name in names], (1.0, 1.0, 1), strict=True)) | (
        dict(zip(names, (0.0, 0.0, 1), strict=True))
    )
    assert task["overlap"] is None


def test_boxes_have_their_mean_overlap(command: Command) -> None:
    arguments = ("eval", "nano", "nano", "--samples", "1", "--family", "fields", "--questions-each", "2")
    tasks = {task["kind"]: task for task in command(*arguments, "--json").json()["checkpoints"][0]["tasks"]}
    place = tasks.pop("place")
    assert 0 <= place["overlap"] == place["reference_overlap"] < 1
    assert {task["overlap"] for task in tasks.values()} == {None}
    shown = rows(command(*arguments).stdout.splitlines())
    assert shown["mean overlap"] == [f"{place['overlap']:.1%}"] * 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nano",), 2, "CHECKPOINT"),
        (("nano", "{tmp}/missing"), 4, "cannot be found"),
        (("{tmp}/missing", "nano"), 4, "cannot be found"),
        (("nano", "{tiny}"), 4, "has vocab_size 96, the reference 503"),
        (("nano", "nano", "--reference-cache", "{tmp}/missing/file"), 2, "cannot be written"),
        (("nano", "nano", "--reference-cache", "{tiny}/config.json"), 2, "config.json"),
        (("nano", "nano", "--samples", "0"), 2, "--samples"),
        (("nano", "nano", "--device", "cuda:99"), 3, "CUDA GPUs"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_weights(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    command: Command,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ernie_local.loading import loader

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loader, "build_model", refuse)
    assert ernie_local.load is loader.load
    words = [
        word.replace("{tmp}", str(tmp_path)).replace("{tiny}", str(tiny_checkpoint)) for word in arguments
    ]
    result = command("eval", *words, "--json")
    assert (result.exit_code, result.json()["ok"]) == (code, False)
    assert message in result.stderr
    assert json.loads(result.stdout)["error"]["exit_code"] == code
