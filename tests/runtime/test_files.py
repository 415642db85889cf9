"""Only plain files are opened, whoever reads them; a new file takes the place of a plain file alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.config import read_config
from ernie_local.errors import ErnieLocalError
from ernie_local.files import read_plain, replaced, written_whole
from ernie_local.media.open_image import open_images
from ernie_local.media.processor_config import read_processor_config
from ernie_local.model_files import ModelFiles
from ernie_local.planner.profile import read_profile
from ernie_local.replay.trace import read_trace
from ernie_local.session import read_saved_chat
from ernie_local.strict_json import read_json_object
from ernie_local.text.template_file import detect_template
from ernie_local.text.tokenizer import ErnieTokenizer
from ernie_quant.evaluation.reference import load_observations
from ernie_quant.measurements import read_measurements
from tests.special_files import SPECIAL_FILES, within_seconds

NANO = Path(__file__).parents[2] / "ernie_local" / "nano"
# The name of a file, and who reads it.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "config": ("config.json", lambda path: read_config(path.parent)),
    "settings of images": (
        "preprocessor_config.json",
        lambda path: read_processor_config(path.parent, read_config(NANO).vision),
    ),
    "sampling": (
        "generation_config.json",
        lambda path: ModelFiles(path.parent, read_config(NANO)).generation_config,
    ),
    "tokenizer": ("tokenizer.model", lambda path: ErnieTokenizer.from_directory(path.parent)),
    "declared tokens": ("tokenizer_config.json", lambda path: detect_template(path.parent)),
    "template": ("chat_template.jinja", lambda path: detect_template(path.parent)),
    "JSON": ("x.json", read_json_object),
    "header": ("model.safetensors", read_safetensors_header),
    "pages": ("model.safetensors", UncachedFile),
    "image": ("page.png", open_images),
    "chat": ("chat.json", lambda path: read_saved_chat(path, cast("ModelFiles", None))),
    "trace": ("chat.trace", read_trace),
    "profile": ("machine.json", read_profile),
    "statistics": ("statistics.json", lambda path: read_measurements(path, {})),
    "results of a reference": ("cache", lambda path: load_observations(path, {})),
}


@pytest.mark.parametrize("kind", SPECIAL_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_a_special_file_is_refused_at_once(reader: str, kind: str, tmp_path: Path) -> None:
    name, read = READERS[reader]
    SPECIAL_FILES[kind](tmp_path / name)
    with within_seconds(20), pytest.raises(ErnieLocalError) as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 3
    assert caught.value.exit_code in (2, 4, 5)


def test_a_file_over_its_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match="1099511627776 bytes, over the limit of 1000"):
        read_plain(path, 1000)
    os.truncate(path, 1000)
    assert read_plain(path, 1000) == bytes(1000)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc here")
def test_a_file_that_tells_no_size_is_read_up_to_the_limit() -> None:
    assert read_plain("/proc/self/maps", 1 << 24).endswith(b"\n")
    with pytest.raises(OSError, match="101 bytes, over the limit of 100"):
        read_plain("/proc/self/maps", 100)


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_a_special_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    SPECIAL_FILES[kind](path)
    before = path.stat()
    with (
        pytest.raises(ErnieLocalError, match=r"cannot write the chat to .*\n.*not a plain file"),
        written_whole(path, "the chat") as file,
    ):
        file.write(b"x")
    with pytest.raises(OSError, match="not a plain file"), replaced(path) as new:
        new.write_bytes(b"x")
    assert os.path.samestat(path.stat(), before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_leads_to_the_new_file(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    link.symlink_to(target)
    if is_there:
        target.write_bytes(b"old")
    with written_whole(link, "the chat") as file:
        file.write(b"new")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"new")
    with replaced(link) as new:
        new.write_bytes(b"newer")
    assert (link.is_symlink(), target.read_bytes()) == (True, b"newer")


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ErnieLocalError, match="cannot write"), written_whole(tmp_path / "a", "the chat"):
        pass


def replace(path: Path) -> None:
    with replaced(path) as new:
        new.write_bytes(b"new")


def write_whole(path: Path) -> None:
    with written_whole(path, "it") as file:
        file.write(b"new")


@pytest.mark.parametrize("write", [replace, write_whole])
def test_a_power_loss_leaves_the_old_content_or_the_new(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    synced: list[tuple[bool, bytes, bytes]] = []

    def sync(descriptor: int) -> None:
        flushed = Path(f"/proc/self/fd/{descriptor}").readlink()
        is_folder = flushed == tmp_path
        synced.append((is_folder, b"" if is_folder else flushed.read_bytes(), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", sync)
    write(path)
    assert synced == [(False, b"new", b"old"), (True, b"", b"new")]


@pytest.mark.parametrize("write", [replace, write_whole])
def test_what_cannot_reach_the_disk_replaces_nothing(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Exception, match="Input/output error"):
        write(path)
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("file", b"old")]
