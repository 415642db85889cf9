"""The stored profile of a machine: what is written is read again, and nothing else is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_local.errors import ErnieLocalError, InputUnreadable
from ernie_local.planner.profile import (
    EFFICIENCY_CORE_MEASUREMENTS,
    PROFILE_SCHEMA,
    HardwareKey,
    MachineProfile,
    Measurement,
    ModelSpeed,
    profile_to_json,
    read_profile,
    write_profile,
)
from ernie_local.planner.rates import GpuRates, PagingCosts, Rates

RATES = Rates(
    2.5e9, 2e10, 6e11, 1e-3, 1e-4, GpuRates(3e11, 2.4e10, 1e13), PagingCosts(1e-5, 3e-4), {"w2": 1.5e10}
)
PROFILE = MachineProfile(
    hardware=HardwareKey("Processor 9", 8, 32 << 30, "GPU 9000"),
    date="2026-11-27",
    rates=RATES,
    plain_rates=Rates(2.5e9, 1e10, 8e10, 2e-3, 0.0),
    measurements={"disk_bytes_per_second": Measurement(2.5e9, 1e9, 3e9, 80)},
    model=ModelSpeed("nano", 59_000_000, 4000.0, 240.5, 239.0, 8 << 20, 0.75),
)


@pytest.mark.parametrize(
    ("with_all", "without", "helps"),
    [((20.0, 300.0), (25.0, 200.0), True), ((20.0, 210.0), (25.0, 200.0), False), ((), (25.0, 200.0), None)],
)
def test_efficiency_cores_help_where_a_token_and_a_prompt_together_are_faster(
    with_all: tuple[float, ...], without: tuple[float, ...], helps: bool | None
) -> None:
    measured = {
        name: Measurement(value, value, value, 1)
        for names, values in zip(
            zip(*EFFICIENCY_CORE_MEASUREMENTS, strict=True), (with_all, without), strict=True
        )
        for name, value in zip(names, values, strict=False)
    }
    assert dataclasses.replace(PROFILE, measurements=measured).efficiency_cores is helps


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "folder" / "machine.json"


@pytest.mark.parametrize(
    "profile",
    [
        PROFILE,
        dataclasses.replace(PROFILE, model=None, measurements={}),
        dataclasses.replace(
            PROFILE,
            hardware=HardwareKey("x", 1, 1, None),
            model=ModelSpeed("é", 1, 1.0, 1.0, 1.0, None, None),
        ),
    ],
    ids=["full", "no model", "no GPU"],
)
def test_what_is_written_is_read(path: Path, profile: MachineProfile) -> None:
    write_profile(path, profile)
    assert read_profile(path) == profile
    write_profile(path, profile)  # over the old one
    assert [each.name for each in path.parent.iterdir()] == ["machine.json"]


def test_no_file_is_no_profile(path: Path) -> None:
    assert read_profile(path) is None


def test_whole_numbers_pass_for_rates(path: Path) -> None:
    path.parent.mkdir(parents=True)
    raw = json.loads(json.dumps(profile_to_json(PROFILE)))
    raw["rates"]["token_seconds"] = 0
    path.write_text(json.dumps(raw))
    read = read_profile(path)
    assert read is not None
    assert (read.rates.token_seconds, type(read.rates.token_seconds)) == (0.0, float)


def set_value(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return change


def remove(*keys: str) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            set_value("schema", value="ernie-local.machine/2"),
            f"machine/2', not {PROFILE_SCHEMA}",
        ),
        (remove("schema"), "schema is null"),
        (set_value("extra", value=1), "unknown key 'extra' - at `$`"),
        (set_value("rates", "_note", value=1), "unknown key '_note' - at `$.rates`"),
        (set_value("rates", "dtype", value=1), "unknown key 'dtype' - at `$.rates`"),
        (remove("plain_rates"), "missing required field `plain_rates`"),
        (remove("model"), "missing key `model` - at `$`"),
        (remove("rates", "gpu"), "missing key `gpu` - at `$.rates`"),
        (remove("rates", "gpu", "link_bytes_per_second"), "`link_bytes_per_second` - at `$.rates.gpu`"),
        (set_value("rates", value=None), "`null` - at `$.rates`"),
        (set_value("rates", "paging", value=3), "`int` - at `$.rates.paging`"),
        (set_value("rates", "memory_bytes_per_second", value=0), "$.rates.memory_bytes_per_second"),
        (set_value("rates", "format_rates", "w2", value=0.0), "$.rates.format_rates"),
        (set_value("rates", "layer_seconds", value=-1e-9), "$.rates.layer_seconds"),
        (set_value("rates", "layer_seconds", value="1"), "`str` - at `$.rates.layer_seconds`"),
        (set_value("rates", "layer_seconds", value=True), "`bool` - at `$.rates.layer_seconds`"),
        (set_value("rates", "layer_seconds", value=10**400), "$.rates.layer_seconds"),
        (set_value("rates", "layer_seconds", value=1e300), "$.rates.layer_seconds"),
        (set_value("hardware", "cores", value=2.5), "`float` - at `$.hardware.cores`"),
        (set_value("hardware", "cpu", value=""), "$.hardware.cpu"),
        (set_value("hardware", "cpu", value="a\x1b[31m"), "$.hardware.cpu"),
        (set_value("hardware", "cpu", value="a\u202eb"), "$.hardware.cpu"),
        (set_value("date", value="x" * 201), "$.date"),
        (set_value("measurements", value=[]), "`array` - at `$.measurements`"),
        (set_value("measurements", "x", value={"median": 1}), "missing required field `low`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_file_is_refused_by_name(
    path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    raw = json.loads(json.dumps(profile_to_json(PROFILE)))
    change(raw)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(raw))
    with pytest.raises(InputUnreadable) as caught:
        read_profile(path)
    assert str(path) in caught.value.what
    assert reason in caught.value.why
    assert "ernie-local bench" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": NaN}', '{"a": 1, "a": 2}', "\xff"])
def test_what_is_no_json_object_is_refused(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputUnreadable):
        read_profile(path)


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(InputUnreadable, match="no profile"):
        read_profile(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ErnieLocalError, match="--no-save"):
        write_profile(tmp_path / "file" / "machine.json", PROFILE)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({}, None),
        ({"ram_bytes": (32 << 30) - (400 << 20)}, None),  # what firmware takes varies
        ({"ram_bytes": 16 << 30}, "GiB of memory 32, here 16"),
        ({"gpu": None}, "GPU GPU 9000, here none"),
        ({"cpu": "B", "cores": 2}, "processor Processor 9, here B; cores 8, here 2"),
    ],
)
def test_other_hardware_is_named(changes: dict[str, Any], difference: str | None) -> None:
    key = PROFILE.hardware
    assert key.difference(dataclasses.replace(key, **changes)) == difference


def test_the_summary_is_one_line_with_the_rates() -> None:
    assert PROFILE.summary == (
        "measured 2026-11-27: disk 2.50 GB/s, packed weights 20.0 GB/s, prompts 600 G operations/s, "
        "GPU 9000 300 GB/s behind 24.0 GB/s"
    )
    assert PROFILE.rates_for(is_packed=False) is PROFILE.plain_rates
    assert PROFILE.rates_for(is_packed=True) is PROFILE.rates
