"""`ernie-local models`: what is listed, and that nothing is removed but a model that was named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.published import published_models
from ernie_local.planner.model_size import published_model
from tests.cli.running import Command, Result
from tests.hub_double import Fault, HubDouble

NAME = "hf:org/nano"


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of nano in the folder models below the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "models" / "nano"))


def test_what_is_published_is_known_by_its_sizes(command: Command, hub: HubDouble) -> None:
    result = command("models", "--json").json()
    listed = {model["name"]: model for model in result["published"]}
    runs = [name for name, model in listed.items() if model["refusal"] is None]
    assert runs == [
        *(f"baidu/ERNIE-4.5-VL-28B-A3B-{kind}" for kind in ("PT", "Thinking", "Base-PT")),
        "baidu/ERNIE-4.5-21B-A3B-Thinking",
        *(f"baidu/ERNIE-4.5-VL-424B-A47B-{kind}" for kind in ("PT", "Base-PT")),
    ]
    for name in ("28B-A3B", "424B-A47B"):
        size = published_model(f"ernie-4.5-vl-{name}".lower())
        weights = sum(part.weights for part in size.parts)
        plain = listed[f"baidu/ERNIE-4.5-VL-{name}-PT"]
        assert plain["parameters"] == weights
        # Headers and padding are not counted.
        assert 0 <= size.file_bytes - plain["bytes"] < 4_000_000
    size = published_model()
    weights = sum(part.weights for part in size.parts)
    head = size.config.text.vocab_size * size.config.text.hidden_size
    assert listed["baidu/ERNIE-4.5-VL-28B-A3B-Thinking"]["parameters"] == weights + head
    assert len(listed) == len(published_models())
    assert hub.requests == []


def test_models_on_disk_are_listed_with_what_they_lack(command: Command, hub: HubDouble, copy: Path) -> None:
    broken = Path(shutil.copytree(copy, copy.with_name("a model whose name is longer than its column is")))
    (broken / "model-00002-of-00002.safetensors").unlink()
    (copy.with_name("other")).mkdir()
    (copy.with_name("other") / "config.json").write_text('{"model_type": "llama"}')
    found = command("models", "models", "--json").json()["on_disk"]
    assert [model["name"] for model in found] == ["nano", f"models/{broken.name}", "models/nano"]
    assert [model["fault"] is None for model in found] == [True, False, True]
    assert found[1]["fault"].startswith("model-00002-of-00002.safetensors is missing, with ")
    assert found[2]["bits_per_weight"] == pytest.approx(16, abs=0.1)
    assert found[2]["bytes"] == sum(path.stat().st_size for path in NANO_DIRECTORY.iterdir())
    shown = command("models", "models").stdout
    assert max(len(line) for line in shown.splitlines() if "/cache" not in line) <= 80
    assert "not whole" in shown
    assert [model["name"] for model in command("models", str(copy), "--json").json()["on_disk"]][1] == str(
        copy
    )


def test_a_folder_in_the_current_one_is_named_as_a_path(
    command: Command, hub: HubDouble, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    assert [model["name"] for model in command("models", "--json").json()["on_disk"]] == ["nano", "./nano"]


def test_a_folder_that_is_not_there(command: Command, hub: HubDouble) -> None:
    result = command("models", "nowhere")
    assert result.exit_code == 1
    assert "nowhere cannot be read" in result.stderr


def test_the_cache_is_listed_by_revision(command: Command, hub: HubDouble) -> None:
    hub.add_folder("org/nano", NANO_DIRECTORY)
    hub.add("org/llama", {"config.json": b'{"model_type": "llama"}'})
    assert command("verify", NAME).exit_code == 0
    assert command("verify", "hf:org/llama").exit_code == 4
    first = command("models", "--json").json()["cached"]
    assert [(model["name"], model["fault"], model["refs"]) for model in first] == [(NAME, None, ["main"])]
    assert Path(first[0]["directory"]).is_dir()
    commit = Path(first[0]["directory"]).name
    later = hub.add_folder("org/nano", NANO_DIRECTORY)
    assert command("inspect", NAME).exit_code == 0  # fetches the small files alone
    models = command("models", "--json").json()["cached"]
    assert {model["name"]: model["fault"] is None for model in models} == {
        NAME: True,
        f"{NAME}@{later}": False,
    }
    # Without the hub, what is whole is used.
    hub.faults.append(Fault("/api/*", status=404, headers={"X-Error-Code": "RepoNotFound"}))
    found = command("verify", NAME, "--json")
    assert Path(found.json()["directory"]).name == commit
    assert "its copy of commit" in found.stderr


def test_a_download_that_was_stopped_is_listed_with_what_has_arrived(
    command: Command, hub: HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ernie_local.checkpoint.hub_fetch.WAITS", (0.0,))
    hub.add_folder("org/nano", NANO_DIRECTORY)
    hub.faults += [
        Fault("/cdn/*-00002-*", drop_after=5_000_000, times=1),
        Fault("/cdn/*-00002-*", status=500),
    ]
    assert command("verify", NAME).exit_code == 4
    (model,) = command("models", "--json").json()["cached"]
    assert "model-0000" in model["fault"]
    assert model["bytes"] > 5_000_000
    removed = command("models", "remove", model["name"], "--yes", "--json").json()
    assert removed["freed"] == model["bytes"]
    assert command("models", "--json").json()["cached"] == []
    assert not Path(removed["removed"][0]).parents[1].exists()


def test_a_revision_is_removed_and_the_other_one_stays(command: Command, hub: HubDouble) -> None:
    hub.add_folder("org/nano", NANO_DIRECTORY)
    command("verify", NAME)
    (old,) = command("models", "--json").json()["cached"]
    files = {path.name: path for path in NANO_DIRECTORY.iterdir()}
    hub.add("org/nano", files | {"generation_config.json": b"{}"})
    command("verify", NAME)
    commit = Path(old["directory"]).name
    result = command("models", "remove", f"{NAME}@{commit[:8]}", "--yes", "--json").json()
    assert result["removed"] == [old["directory"]]
    # The weights belong to both.
    assert result["freed"] == (NANO_DIRECTORY / "generation_config.json").stat().st_size
    assert [model["fault"] for model in command("models", "--json").json()["cached"]] == [None]
    assert command("models", "remove", NAME, "--yes").exit_code == 0
    assert command("models", "--json").json()["cached"] == []


def answered(command: Command, monkeypatch: pytest.MonkeyPatch, text: bytes, *words: str) -> Result:
    monkeypatch.setattr("ernie_cli.models.is_terminal", lambda stream: True)
    return command("models", "remove", *words, stdin=text)


@pytest.mark.parametrize(("answer", "is_removed"), [(b"y\n", True), (b"n\n", False), (b"", False)])
def test_it_asks_first(
    command: Command, copy: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, is_removed: bool
) -> None:
    result = answered(command, monkeypatch, answer, "models/nano")
    assert result.exit_code == 0
    assert f"remove 46.2 MiB: {Path('models/nano')}? [y/N]" in result.stderr
    assert copy.exists() is not is_removed
    assert ("nothing was removed" in result.stderr) is not is_removed


def test_without_a_terminal_nobody_is_asked(command: Command, copy: Path) -> None:
    result = command("models", "remove", "models/nano", stdin=b"y\n")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert copy.exists()


def refused(command: Command, name: str, exit_code: int = 1) -> str:
    result = command("models", "remove", name, "--yes")
    assert result.exit_code == exit_code
    assert len(result.stderr.splitlines()) == 3
    return result.stderr


def test_what_is_no_model_is_not_removed(command: Command, hub: HubDouble, copy: Path) -> None:
    folder = copy.parent
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "is not a model" in refused(command, str(folder), 4)
    assert "is not a model" in refused(command, str(folder / "nowhere"), 4)
    assert "is not in the cache of the hub" in refused(command, "hf:org/nowhere", 4)
    assert "part of this program" in refused(command, "nano")
    assert "part of this program" in refused(command, str(NANO_DIRECTORY))
    assert copy.exists()


def test_a_model_with_other_things_in_it_is_not_removed(
    command: Command, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(copy)
    assert "it is a link to" in refused(command, str(link))
    (copy / "thesis").mkdir()
    assert "it also holds thesis" in refused(command, str(copy))
    (copy / "thesis").rmdir()
    weights = tmp_path / "weights.safetensors"
    (copy / "model-00001-of-00002.safetensors").rename(weights)
    (copy / "model-00001-of-00002.safetensors").symlink_to(weights)
    assert "is a link to" in refused(command, str(copy))
    (copy / "model-00001-of-00002.safetensors").unlink()
    monkeypatch.chdir(copy)
    assert "the current directory" in refused(command, ".")
    assert "the current directory" in refused(command, str(copy))
    assert len(list(copy.iterdir())) == len(list(NANO_DIRECTORY.iterdir())) - 1


def test_words_that_mean_nothing(command: Command) -> None:
    assert command("models", "--yes").exit_code == 2
    assert command("models", "remove").exit_code == 2
    assert command("models", "remove", "a", "b").exit_code == 2


def test_a_published_model_in_another_layout_is_told_by_name(command: Command, hub: HubDouble) -> None:
    hub.add("baidu/ERNIE-4.5-VL-28B-A3B-Paddle", {"config.json": b'{"model_type": "ernie4_5_moe_vl"}'})
    assert "in Paddle's layout" in command("inspect", "hf:baidu/ERNIE-4.5-VL-28B-A3B-Paddle").stderr
