"""Commands on a model of the hub, which a double on loopback serves: what they fetch, and what they say."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from tests.cli.running import Command
from tests.hub_double import Fault, HubDouble

NAME = "hf:org/nano"
NANO_BYTES = sum(path.stat().st_size for path in NANO_DIRECTORY.glob("*.safetensors"))


@pytest.fixture
def nano_on_hub(hub: HubDouble) -> HubDouble:
    hub.add_folder("org/nano", NANO_DIRECTORY)
    return hub


def fetched_weights(hub: HubDouble) -> int:
    return hub.bytes_sent("/cdn/*.safetensors")


def test_inspect_fetches_headers_alone(command: Command, nano_on_hub: HubDouble) -> None:
    local = command("inspect", "nano", "--json").json()
    remote = command("inspect", NAME, "--json").json()
    assert fetched_weights(nano_on_hub) < NANO_BYTES / 2
    assert remote.pop("directory") == NAME
    local.pop("directory")
    assert remote == local
    shown = command("inspect", NAME)
    assert f"the weights of {NAME} are not here" in shown.stderr
    assert shown.stdout == command("inspect", "nano").stdout


def test_vram_fetches_headers_alone(command: Command, nano_on_hub: HubDouble) -> None:
    options = ("--ram", "8GiB", "--json")
    local = command("vram", "nano", *options).json()
    remote = command("vram", NAME, *options).json()
    assert fetched_weights(nano_on_hub) < NANO_BYTES / 2
    assert remote["model"].pop("name") == NAME
    assert local["model"].pop("name") == "nano"
    assert remote["model"] == local["model"]


def test_a_long_header_takes_a_second_range(
    command: Command, nano_on_hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_local.checkpoint.hub_outline._FIRST_BYTES", 64)
    assert command("inspect", NAME, "--json").exit_code == 0
    ranges = [request.range for request in nano_on_hub.asked("/cdn/*.safetensors")]
    assert ranges.count("bytes=0-63") == len(list(NANO_DIRECTORY.glob("*.safetensors")))
    assert len(ranges) == 2 * ranges.count("bytes=0-63")


def test_headers_are_asked_for_again(
    command: Command, nano_on_hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_local.checkpoint.hub_outline.WAITS", (0.0,) * 3)
    nano_on_hub.faults += [
        Fault("/cdn/*.safetensors", status=503, times=2),
        Fault("/cdn/*.safetensors", drop_after=100_000, times=1),
    ]
    assert command("inspect", NAME, "--json").exit_code == 0
    nano_on_hub.faults.append(Fault("/cdn/*.safetensors", drop_after=100_000))
    result = command("inspect", NAME)
    assert result.exit_code == 4
    assert "the hub cannot be reached (RemoteProtocolError" in result.stderr


def test_what_is_here_is_inspected_where_it_lies(command: Command, nano_on_hub: HubDouble) -> None:
    assert command("verify", NAME).exit_code == 0
    fetched = fetched_weights(nano_on_hub)
    directory = command("inspect", NAME, "--json").json()["directory"]
    assert Path(directory).is_dir()
    assert fetched_weights(nano_on_hub) == fetched == NANO_BYTES


def test_a_download_is_announced(command: Command, nano_on_hub: HubDouble) -> None:
    first, second = command("verify", NAME), command("verify", NAME)
    assert f"downloading {NAME}: " in first.stderr
    assert "is whole" in first.stdout
    assert "downloading" not in second.stderr


def test_a_model_that_is_not_there_has_the_exit_code_of_models(command: Command, hub: HubDouble) -> None:
    result = command("verify", "hf:baidu/ERNIE-4.5-VL-28B-A3B", "--json")
    error = result.json()["error"]
    assert result.exit_code == 4
    assert "hf:baidu/ERNIE-4.5-VL-28B-A3B-PT is the nearest published name" in error["hint"]


def test_a_hub_that_is_down_is_named_when_a_copy_is_used(command: Command, nano_on_hub: HubDouble) -> None:
    command("verify", NAME)
    nano_on_hub.faults.append(Fault("/api/*", status=503))
    result = command("verify", NAME)
    assert result.exit_code == 0
    assert "warning: hf:org/nano: the hub answered 503" in result.stderr


def test_ctrl_c_ends_a_download_soon(command: Command, nano_on_hub: HubDouble) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    nano_on_hub.faults += [
        Fault("/cdn/*-00001-*", bytes_per_second=250_000, times=1, before=interrupt),
        Fault("/cdn/*", bytes_per_second=250_000),
    ]
    began = time.monotonic()
    result = command("verify", NAME)
    assert result.exit_code == 130
    assert "what has arrived is kept" in result.stderr
    assert time.monotonic() - began < 30  # all of it would take 60 s
    nano_on_hub.faults.clear()
    assert command("verify", NAME).exit_code == 0
