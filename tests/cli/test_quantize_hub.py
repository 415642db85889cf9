"""`ernie-local quantize hf:...` as a user runs it: what is said beforehand, what is refused, what is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from ernie_cli import progress
from ernie_cli.console import Console
from ernie_cli.progress import UnitProgress
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.sizes import format_bytes
from ernie_quant.hub_source import hub_identity, hub_source
from tests.cli.running import Command
from tests.hub_double import HubDouble
from tests.sharded import write_deep_nano

NAME, REPO, NUM_FILES = "hf:org/deep", "org/deep", 6
PLAIN = ("--method", "rtn")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deep_nano(tmp_path_factory.mktemp("source") / "deep", num_layers=4, num_files=NUM_FILES)


@pytest.fixture
def published(hub: HubDouble, deep: Path) -> HubDouble:
    hub.add_folder(REPO, deep)
    return hub


def test_a_dry_run_says_what_is_downloaded_and_lies_on_the_disk(
    published: HubDouble, deep: Path, command: Command, tmp_path: Path
) -> None:
    sizes = sorted(path.stat().st_size for path in deep.glob("*.safetensors"))
    out = tmp_path / "out"
    said = command("quantize", NAME, str(out), *PLAIN, "--dry-run")
    assert said.exit_code == 0, said.stderr
    lines = dict(line.split(":", 1) for line in said.stdout.splitlines())
    assert lines["download"].startswith(f" {format_bytes(sum(sizes))} in {NUM_FILES} files, about ")
    assert lines["source"].endswith(f"of them on the disk at any time, {format_bytes(sum(sizes[-4:]))}")
    plan = command("quantize", NAME, str(out), *PLAIN, "--dry-run", "--json").json()["plan"]
    download = plan["download"]
    seconds = download.pop("seconds")
    assert 0 < seconds < 600
    assert download == {
        "num_files": NUM_FILES,
        "num_fetches": NUM_FILES,
        "num_bytes": sum(sizes),
        "most_files": 4,
        "disk_bytes": sum(sizes[-4:]),
    }
    disk = plan["weight_bytes"] + plan["scratch_bytes"] + download["disk_bytes"]
    assert lines["disk"].startswith(f"     {format_bytes(disk)} while it runs")
    kept = command("quantize", NAME, str(out), *PLAIN, "--dry-run", "--keep-source")
    assert "source:   all of them stay in the cache of the hub" in kept.stdout.splitlines()
    assert not list(tmp_path.rglob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_model_of_the_hub_is_quantized_and_its_weights_do_not_stay(
    published: HubDouble, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    said = command("quantize", NAME, str(out), *PLAIN, "--json").json()
    assert said["ok"]
    assert command("verify", str(out)).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "out"}
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    # Nothing of it is in the way, and nothing is fetched, when it is there.
    assert command("quantize", NAME, str(out), *PLAIN).exit_code == 2


def test_notes_call_the_source_by_its_name(
    hub: HubDouble, deep: Path, command: Command, tmp_path: Path
) -> None:
    """Its headers are in a temporary directory, whose name says nothing."""
    files = {path.name: path for path in deep.iterdir() if path.name != "preprocessor_config.json"}
    commit = hub.add("org/bare", {**files, "more.json": b"{}"})
    notes = command("quantize", "hf:org/bare", str(tmp_path / "out"), *PLAIN, "--json").json()["notes"]
    name = f"hf:org/bare@{commit}"
    assert any(f"{name} has no preprocessor_config.json" in note for note in notes)
    assert any(note.startswith(f"left in {name}, not copied: 'more.json'") for note in notes)
    assert not any("/ernie-local-" in note for note in notes)


def test_mixed_bits_would_be_downloaded_twice(published: HubDouble, command: Command, tmp_path: Path) -> None:
    published.requests.clear()
    said = command("quantize", NAME, str(tmp_path / "out"), "--bits", "mixed", "--samples", "2")
    assert said.exit_code == 2
    assert "mixed bits of hf:org/deep" in said.stderr
    assert "--keep-source" in said.stderr.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}


def test_a_directory_is_kept_anyway(deep: Path, command: Command, tmp_path: Path) -> None:
    said = command("quantize", str(deep), str(tmp_path / "out"), *PLAIN, "--keep-source")
    assert said.exit_code == 2
    assert f"--keep-source with {deep}" in said.stderr


def test_measurements_of_a_download_fit_the_model_on_the_hub(published: HubDouble) -> None:
    """`calibrate` reads a whole download, `quantize` may fetch the files."""
    with hub_source(NAME) as source:
        assert source.model is not None
        assert hub_identity(NAME, resolve_model(NAME)) == source.identity
    assert hub_identity("nano", resolve_model("nano")) is None


def test_progress_shows_what_has_arrived_beside_the_unit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with UnitProgress(Console()) as shown:
        shown.show_download(0, 4 << 20)
        shown.show("layers.0.mlp.w8", 1.0, 4.0)
        shown.show_download(1 << 20, 4 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("starting; fetched 0 bytes of 4.0 MiB at ")
    assert lines[1].startswith("25%: layers.0.mlp.w8; fetched 0 bytes of 4.0 MiB at ")
    assert lines[2].startswith("25%: layers.0.mlp.w8; fetched 1.0 MiB of 4.0 MiB at ")
