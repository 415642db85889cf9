"""`doctor --bundle`: what is in the zip, and that nothing private is."""

from __future__ import annotations

import getpass
import json
import platform
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import ernie_local.doctor
from ernie_cli.doctor_bundle import without
from ernie_local.doctor import Diagnosis, Subject
from ernie_local.planner.profile import HardwareKey, MachineProfile, Measurement, ModelSpeed, write_profile
from ernie_local.planner.rates import Rates
from tests.cli.running import Command

SECRETS = ("agnes", "agnes-laptop", "agnes-laptop.home.example", "merger", "hunter2", "falcon.exe")


def members(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
        return {name: zipped.read(name).decode() for name in zipped.namelist()}


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Findings, a profile, an environment and a machine full of what nobody else should see."""
    home = tmp_path / "agnes"
    model = home / "secret merger" / "model"
    model.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("TOKEN", "hunter2")
    monkeypatch.setattr(getpass, "getuser", lambda: "agnes")
    monkeypatch.setattr(platform, "node", lambda: "agnes-laptop.home.example")
    processes = [{"name": "falcon.exe", "bytes": 5}]
    found = [
        Diagnosis("kernels", "slow", f"missing: {home}/lib/x.so: cannot open", "see C:\\Users\\agnes\\x", {}),
        Diagnosis("gpu", "ok", "GPU (held by falcon.exe 2 GiB)", None, {"gpus": [{"processes": processes}]}),
        Diagnosis("checkpoint", "ok", f"{model} of agnes on agnes-laptop", None, {"in": [str(model)]}),
        Diagnosis("disk", "ok", "2.5 GB/s at pages, ext4", None, {"bytes_per_second": 2.5e9}),
    ]

    def examine(subject: Subject) -> Iterator[Diagnosis]:
        yield from found

    monkeypatch.setattr(ernie_local.doctor, "examine", examine)
    rates = Rates(1e9, 1e10, 1e11, 1e-3, 1e-4)
    profile = MachineProfile(
        HardwareKey("Processor 9", 2, 1 << 34, None),
        "2026-11-27",
        rates,
        rates,
        {"x": Measurement(1.0, 1.0, 1.0, 1)},
        ModelSpeed("merger", 1, 2.0, 3.0, 4.0, None, None),
    )
    write_profile(home / ".config" / "ernie-local" / "machine.json", profile)
    return model


def test_nothing_private_is_in_any_member(command: Command, private: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.zip"
    result = command("doctor", str(private), "--bundle", str(report))
    assert result.exit_code == 1
    assert f"written to {report}" in result.stderr
    found = members(report)
    assert sorted(found) == ["doctor.json", "machine.json", "packages.json", "platform.json"]
    for name, text in found.items():
        shown = text.lower()
        for secret in (*SECRETS, str(tmp_path), "users\\", "/lib/"):
            assert secret.lower() not in shown, (name, secret)
    # What helps is still there.
    assert "2.5 GB/s at pages, ext4" in found["doctor.json"]
    assert "cannot open" in found["doctor.json"]
    assert json.loads(found["machine.json"])["hardware"]["cpu"] == "Processor 9"
    assert json.loads(found["packages.json"])["torch"]
    assert "hunter2" not in json.dumps(found)


def test_a_path_with_a_blank_takes_the_name_of_it(private: Path) -> None:
    value = [str(private), "agnes", {"falcon": ["~/x", "a/b", "tokens/s"]}]
    assert " merger" in json.dumps(without(value, [])), "a pattern alone does not see where it ends"
    assert without(value, [str(private), "agnes"]) == [
        "<private>",
        "<private>",
        {"falcon": ["<private>", "a/b", "tokens/s"]},
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in /usr/lib/x.so: no", "in <private>: no"),
        ("'/a/b' and \"C:\\x\\y\"", "'<private>' and \"<private>\""),
        ("25 GB/s, 1/2 of it, and/or", "25 GB/s, 1/2 of it, and/or"),
        ("bobby met bob", "bobby met <private>"),
        ("bob/projects/x and ~", "<private> and ~"),
    ],
)
def test_paths_and_whole_names_go(text: str, expected: str) -> None:
    assert without(text, ["bob"]) == expected


def test_this_machine_in_a_bundle(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    report = tmp_path / "report.zip"
    result = command("doctor", "--json", "--bundle", str(report))
    found = members(report)
    told = json.loads(found["doctor.json"])
    shown = result.json()
    assert list(told) == list(shown)
    assert [one["name"] for one in told["checks"]] == [one["name"] for one in shown["checks"]]
    assert (told["verdict"], told["ok"]) == (shown["verdict"], shown["ok"])
    assert json.loads(found["machine.json"]) is None
    assert all(str(tmp_path) not in text for text in found.values())


@pytest.mark.parametrize("kind", ["folder", "other file", "no folder"])
def test_nothing_else_is_written_over(command: Command, tmp_path: Path, kind: str) -> None:
    path = {"folder": tmp_path, "other file": tmp_path / "notes", "no folder": tmp_path / "no" / "x"}[kind]
    (tmp_path / "notes").write_text("mine")
    result = command("doctor", "--bundle", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert (tmp_path / "notes").read_text() == "mine"
