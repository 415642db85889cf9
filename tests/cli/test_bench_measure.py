"""`ernie-local bench [MODEL]`: lines, the object of docs/json.md, the stored profile, and refusals.

The machine itself is not measured here, its numbers are made up; nano is, for the shape of what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ernie_cli.chat import conversation
from ernie_cli.settings import profile_path
from ernie_local.machine import model_speed
from ernie_local.machine.survey import Survey
from ernie_local.planner.profile import Measurement, read_profile
from ernie_local.planner.rates import PagingCosts, Rates
from tests.cli.running import DOCS, Command

FORMATS = ("w4", "w2", "w8", "float32", "bfloat16")
NAMES = (
    *("disk_bytes_per_second", "disk_4096_bytes_per_second"),
    *(f"{name}_bytes_per_second" for name in FORMATS),
    *("prompt_operations_per_second", "plain_prompt_operations_per_second"),
    *(
        f"{prefix}{name}_seconds"
        for prefix in ("", "plain_")
        for name in ("token", "layer", "paged_layer", "page")
    ),
)
RATES = Rates(2.5e9, 2e10, 6e11, 1e-3, 1e-4, paging=PagingCosts(1e-5, 2e-4), format_rates={"w2": 1.5e10})
PLAIN = Rates(2.5e9, 1e10, 8e10, 2e-3, 1e-3, paging=PagingCosts(1e-5, 2e-4))


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where the profile is stored, and a machine that takes no time."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(model_speed, "measure_model", partial(model_speed.measure_model, prompt_rounds=1))
    yield tmp_path / "settings" / "ernie-local" / "machine.json"
    torch.set_num_threads(threads)


@pytest.fixture
def surveyed(monkeypatch: pytest.MonkeyPatch, native_kernels: object) -> list[tuple[Any, ...]]:
    """What was measured of the machine: nothing, but each call of it is noted."""
    calls: list[tuple[Any, ...]] = []

    def survey(tell: Callable[[str], None], shard: Path | None, page_bytes: int) -> Survey:
        calls.append((shard, page_bytes))
        tell("disk")
        return Survey(RATES, PLAIN, {name: Measurement(2.5, 1.5, 3.5, 7) for name in NAMES})

    monkeypatch.setattr("ernie_local.machine.survey.survey_machine", survey)
    return calls


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is neither loaded nor measured."""
    number = Measurement(40.0, 30.0, 50.0, 7)
    found = model_speed.ModelRun(512, number, number, number, 44.0, None, None, None, None, None)
    model = SimpleNamespace(directory=Path("nano"), weight_bytes=1 << 20, paging_notes=list)
    monkeypatch.setattr(conversation, "load_for_chat", lambda *_: model)
    monkeypatch.setattr(model_speed, "measure_model", lambda *_: found)


def test_the_machine_alone(command: Command, surveyed: list[Any], settings: Path) -> None:
    result = command("bench")
    assert result.exit_code == 0
    assert result.stderr.splitlines() == ["measuring: disk", f"profile stored as {settings}"]
    assert surveyed == [(None, 6 << 20)]
    assert len(result.stdout.splitlines()) == len(NAMES) - 4  # plain models' fixed costs are left out
    assert "one token, w2 weights" in result.stdout
    profile = read_profile(settings)
    assert profile is not None
    assert (profile.rates, profile.plain_rates, profile.model) == (RATES, PLAIN, None)
    assert set(profile.measurements) == set(NAMES)
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", profile.date)


def test_nano_is_measured_next_to_its_prediction(
    command: Command, surveyed: list[Any], settings: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (112, 56), "white").save(tmp_path / "page.png")
    result = command("bench", "nano", "--image", str(tmp_path / "page.png"))
    assert result.exit_code == 0
    named = dict(re.split(r" {2,}|: ", line, maxsplit=1) for line in result.stdout.splitlines())
    assert named["nano"].endswith("all in memory")
    assert {"prefill", "decode", "image of 8 tokens, encoder"} <= set(named)
    assert re.search(r" tokens/s  [+-]\d+%$", named["decode, predicted"])
    profile = read_profile(settings)
    assert profile is not None
    assert profile.model is not None
    assert (profile.model.name, profile.model.hit_rate) == ("nano", None)
    assert profile.model.decode_tokens_per_second > 0


@pytest.mark.usefixtures("measured")
def test_the_object_has_all_measurements(command: Command, surveyed: list[Any], settings: Path) -> None:
    value = command("bench", "nano", "--json").json()
    assert (value["ok"], value["model"], value["saved"]) == (True, "nano", str(settings))
    assert set(value["machine"]["measurements"]) == set(NAMES)
    assert value["speed"]["decode_tokens_per_second"]["median"] > 0
    page = (DOCS / "json.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"`{name}`" in page, name


def test_what_was_measured_before_an_error_is_in_the_object(
    command: Command, surveyed: list[Any], settings: Path
) -> None:
    result = command("bench", "nano", "--ram", "64MiB", "--json")
    value = result.json()
    assert result.exit_code == value["error"]["exit_code"] == 3
    assert (value["ok"], value["speed"], value["saved"]) == (False, None, None)
    assert value["machine"]["rates"]["layer_seconds"] == 1e-4
    assert not settings.exists()


def test_no_save_stores_nothing(command: Command, surveyed: list[Any], settings: Path) -> None:
    assert command("bench", "--no-save").exit_code == 0
    assert not settings.exists()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "what"),
    [
        (("--ram", "6GiB"), 2, "--ram without MODEL"),
        (("--image", "x.png", "--ctx-size", "1k"), 2, "--image, --ctx-size without MODEL"),
        (("nano", "--decay", "0.5"), 2, "--decay without --replay"),
        (("nano", "--ram", "6GiB", "--ram", "7GiB"), 2, "2 times --ram"),
        (("nano", "--ctx-size", "200k"), 3, "--ctx-size 204800 is more than the 4096 tokens"),
        (("nano", "--ctx-size", "many"), 2, "--ctx-size 'many' is not a size"),
        (("nano", "--image", "missing.png"), 5, "missing.png"),
        (("missing-model",), 4, "missing-model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    command: Command, surveyed: list[Any], arguments: tuple[str, ...], exit_code: int, what: str
) -> None:
    result = command("bench", *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert what in result.stderr.splitlines()[0]
    assert len(result.stderr.splitlines()) == 3
    assert surveyed == []


def test_without_the_kernels_nothing_is_measured(command: Command, no_native_kernels: None) -> None:
    result = command("bench")
    assert result.exit_code == 3
    assert "kernels" in result.stderr


@pytest.mark.usefixtures("measured")
def test_the_model_s_own_disk_is_read_where_its_files_are_large(
    command: Command, surveyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_local.machine.disk.holds_pages", lambda path, page_bytes: True)
    assert command("bench", "nano").exit_code == 0
    ((shard, page_bytes),) = surveyed
    assert shard.name.startswith("model-0000")
    assert page_bytes == 1 << 20  # nano's own are smaller than any that matter


def test_a_folder_in_memory_is_no_disk(
    command: Command, surveyed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ernie_local.machine.disk import Storage

    monkeypatch.setattr("ernie_local.machine.disk.find_storage", lambda path: Storage("memory", "tmpfs"))
    assert "TMPDIR" in command("bench").stderr


@pytest.mark.parametrize(
    ("environment", "platform", "expected"),
    [
        ({"XDG_CONFIG_HOME": "/x/y", "APPDATA": "/z"}, "linux", "/x/y/ernie-local/machine.json"),
        ({"XDG_CONFIG_HOME": "relative"}, "linux", "~/.config/ernie-local/machine.json"),
        ({"XDG_CONFIG_HOME": ""}, "darwin", "~/.config/ernie-local/machine.json"),
        ({}, "linux", "~/.config/ernie-local/machine.json"),
        ({"XDG_CONFIG_HOME": "/x", "APPDATA": "/z"}, "win32", "/z/ernie-local/machine.json"),
        ({}, "win32", "~/AppData/Roaming/ernie-local/machine.json"),
    ],
)
def test_where_the_profile_lies(
    environment: dict[str, str], platform: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CONFIG_HOME", "APPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert profile_path(platform) == Path(expected).expanduser()


@pytest.mark.usefixtures("measured", "surveyed")
def test_the_fastest_rule_for_misses_is_stored_and_kept(
    command: Command, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {"fetch": 3.0, "compute": 5.0, "split": 4.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("ernie_local.machine.model_speed.measure_miss_rules", lambda model: speeds)
    result = command("bench", "nano", "--vram", "6GiB")
    assert re.search(r"decode, misses compute +5\.00 tokens/s  fastest\n", result.stdout)
    assert command("bench", "nano", "--vram", "6GiB", "--json", "--no-save").json()["miss_rules"] == speeds
    assert command("bench").exit_code == 0  # measures the machine again, and no rule
    profile = read_profile(settings)
    assert profile is not None
    assert (profile.miss_rules, profile.best_miss_rule) == (speeds, "compute")


def test_rules_are_not_measured_without_a_gpu(command: Command, surveyed: list[Any]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = command("bench", "nano", "--vram", "2GiB", "--ctx-size", "1k", "--json", "--no-save")
    assert result.exit_code == 3
    assert "0 CUDA GPUs" in result.json()["error"]["what"]
    assert not surveyed
