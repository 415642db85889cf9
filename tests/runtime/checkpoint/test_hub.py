"""From a model's name to its directory: paths, the hub's cache with and without a network, nano."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_local.checkpoint import hub
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.errors import ModelUnusable, UsageError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(name: str) -> str:
    with pytest.raises(ModelUnusable) as caught:
        resolve_model(name)
    assert caught.value.exit_code == 4
    assert len(str(caught.value).splitlines()) == 3
    return str(caught.value)


def test_a_directory_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert resolve_model("~/models") == tmp_path / "models"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("models") == Path("models")


def test_a_missing_directory_is_named() -> None:
    assert "'/nowhere/at/all' cannot be found" in refused("/nowhere/at/all")
    assert "try: write hf:baidu/ERNIE-4.5-VL-28B-A3B-PT to download it" in refused(
        "baidu/ERNIE-4.5-VL-28B-A3B-PT"
    )
    assert "cannot be found" in refused("x" * 5000)
    assert "cannot be found" in refused("a\0b")
    assert "cannot be found" in refused("/etc/hostname/model")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    assert "it is a file, and a model is the directory" in refused(str(path))


def test_nano_is_the_directory_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(hub.__file__).parents[1] / "nano" == hub.NANO_DIRECTORY
    monkeypatch.setattr(hub, "NANO_DIRECTORY", tmp_path)
    assert resolve_model("nano") == tmp_path
    monkeypatch.setattr(hub, "NANO_DIRECTORY", tmp_path / "gone")
    assert "lacks nano" in refused("nano")


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:ernie", "hf:a/b/c", "hf:a/b@", "hf:a b/c", "hf:../../etc", "hf:a/b@../../x", "hf:a/.."],
)
def test_a_misspelt_hub_name_is_refused_without_asking_the_hub(name: str) -> None:
    message = refused(name)
    assert "hf:org/name@revision" in message or "could not be downloaded" in message


def make_cache(root: Path) -> Path:
    """A hub cache with one downloaded model, as huggingface_hub lays it out."""
    repo = root / "models--org--tiny-ernie"
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "blobs").mkdir()
    (repo / "blobs" / "1").write_text(json.dumps({"model_type": "ernie4_5_vl_moe"}))
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot


RESOLVE = """
import sys
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.errors import ErnieLocalError
try:
    print(resolve_model(sys.argv[1]))
except ErrorType as error:
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
""".replace("ErrorType", "ErnieLocalError")


def resolve_offline(name: str, cache: Path) -> subprocess.CompletedProcess[str]:
    # A process of its own: huggingface_hub reads its environment when it is imported.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-c", RESOLVE, name], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "name", ["hf:org/tiny-ernie", "hf:org/tiny-ernie@main", f"hf:org/tiny-ernie@{COMMIT}"]
)
def test_a_cached_model_is_found_without_a_network(name: str, tmp_path: Path) -> None:
    snapshot = make_cache(tmp_path)
    result = resolve_offline(name, tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == snapshot


@pytest.mark.parametrize("name", ["hf:org/other", "hf:org/tiny-ernie@v2"])
def test_without_a_network_what_is_not_cached_is_refused(name: str, tmp_path: Path) -> None:
    make_cache(tmp_path)
    result = resolve_offline(name, tmp_path)
    assert result.returncode == 4
    assert len(result.stderr.splitlines()) == 3
    assert result.stderr.startswith(f"model {name} could not be downloaded from the Hugging Face hub\n")
    assert "HF_HUB_OFFLINE forbids to ask the hub, and the cache has no copy" in result.stderr
    assert "unset HF_HUB_OFFLINE" in result.stderr.splitlines()[2]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("p/inv.png", 'images="p/inv.png"'),
        ("inv.PDF:1-3", 'images="inv.PDF:1-3"'),
        ("What is the total?", 'text="What is the total?"'),
        ("Total?", 'text="Total?"'),
        ("x " * 500, 'text="TEXT"'),
    ],
)
def test_an_image_or_a_question_in_the_place_of_the_model_is_known(name: str, hint: str) -> None:
    assert hint in refused(name)


def test_a_path_is_not_taken_for_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "my models").mkdir()
    for name in ("models/lost", "./lost", "../lost", "my models/lost one"):
        assert "hf:org/name" in refused(name), name
    (tmp_path / "scan").write_bytes(b"")
    assert 'images="scan"' in refused("scan")


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        resolve_model(name)
