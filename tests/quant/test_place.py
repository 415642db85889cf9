"""The place of a new checkpoint: what is in the way is named before any work, and again before it is long."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.errors import DoesNotFit, UsageError
from ernie_quant.job import Job, check_job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.place import check_new_file, check_out, rehearse_rename, telling_full_disk
from ernie_quant.recipe import Recipe

CONFIG = read_config(NANO_DIRECTORY)
TABLES = format_tables(CONFIG, FormatChoice("w2"))


def dangling(out: Path) -> None:
    out.symlink_to("nowhere")


def loop(out: Path) -> None:
    out.symlink_to(out.name)


def link_to_an_empty_directory(out: Path) -> None:
    target = out.with_name("target")
    target.mkdir()
    out.symlink_to(target)


def file(out: Path) -> None:
    out.write_text("mine")


def pipe(out: Path) -> None:
    os.mkfifo(out)


def full(out: Path) -> None:
    out.mkdir()
    (out / "note").write_text("mine")


def someones_work_folder(out: Path) -> None:
    (out / "work").mkdir(parents=True)


def partial(make: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda out: make(out.with_name(f"{out.name}.partial"))


IN_THE_WAY = [dangling, loop, link_to_an_empty_directory, file, pipe, full]


@pytest.mark.parametrize("make", [*IN_THE_WAY, someones_work_folder, *map(partial, IN_THE_WAY)])
def test_what_is_in_the_way_is_refused_before_any_work(make: Callable[[Path], None], tmp_path: Path) -> None:
    out = tmp_path / "model"
    make(out)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="model"):
        check_job(Job(NANO_DIRECTORY, out, TABLES, Recipe("rtn")), CONFIG)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("parent", ["file/in", "dangling/in", "loop/in/deeper", "x" * 300, "nul\0"])
def test_a_folder_that_cannot_be_is_refused(parent: str, tmp_path: Path) -> None:
    file(tmp_path / "file")
    dangling(tmp_path / "dangling")
    loop(tmp_path / "loop")
    with pytest.raises(UsageError, match="no checkpoint can be written"):
        check_out(tmp_path / parent / "model", NANO_DIRECTORY)


@pytest.mark.parametrize("name", ["", ".", "..", "/", "x" * 250])
def test_names_without_a_place_beside_them_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no checkpoint can be written"):
        check_out(Path(name), NANO_DIRECTORY)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that nobody may write to")
def test_a_folder_that_nobody_may_write_to_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint can be written"):
        check_out(Path("/proc/model"), NANO_DIRECTORY)
    with pytest.raises(UsageError, match="no file can be written"):
        check_new_file(Path("/proc/statistics.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="no checkpoint can be written"):
        check_out(tmp_path / "model", NANO_DIRECTORY)
    tmp_path.chmod(0o755)


@pytest.mark.parametrize("name", ["model", "deeper/model", "../link/model"])
def test_a_place_inside_the_source_is_refused(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(UsageError, match="the model that is read"):
        check_out(source / name, source)
    check_out(tmp_path / "beside", source)


def test_a_file_of_measurements_is_checked_before_measuring(tmp_path: Path) -> None:
    dangling(tmp_path / "link")
    file(tmp_path / "there")
    for name in ("link", "there", "there/in/statistics.json", "x" * 300):
        with pytest.raises(UsageError, match="no file can be written"):
            check_new_file(tmp_path / name)
    check_new_file(tmp_path / "new" / "statistics.json")
    assert not (tmp_path / "new").exists()


def test_the_last_rename_is_rehearsed(tmp_path: Path) -> None:
    folder, out = tmp_path / "work", tmp_path / "model"
    folder.mkdir()
    rehearse_rename(folder, out)
    assert not out.exists()
    out.mkdir()
    rehearse_rename(folder, out)
    assert list(out.iterdir()) == []
    file(out / "note")
    with pytest.raises(UsageError, match="Directory not empty"):
        rehearse_rename(folder, out)


@pytest.mark.parametrize("make", [dangling, file, full])
def test_what_came_into_the_way_after_the_first_check_is_told_before_the_first_unit(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    """As when samples were drawn for an hour."""
    units: list[str] = []
    job = Job(
        NANO_DIRECTORY, tmp_path / "model", TABLES, Recipe("rtn"), on_unit=lambda *unit: units.append(unit[0])
    )
    check_job(job, CONFIG)
    make(job.out)
    with pytest.raises(UsageError, match="model"):
        quantize_checkpoint(job)
    assert units == []


def test_a_name_taken_during_the_work_leaves_the_work_to_the_same_command(
    small_nano: Path, small_tables: QuantizationConfig, tmp_path: Path
) -> None:
    job = Job(small_nano, tmp_path / "model", small_tables, Recipe("rtn"))

    def take(unit: str, _done: float, _all: float) -> None:
        if unit and not job.out.exists():
            file(job.out)

    with pytest.raises(UsageError, match=r"is complete in .* and cannot be renamed"):
        quantize_checkpoint(dataclasses.replace(job, on_unit=take))
    assert job.out.read_text() == "mine"
    job.out.unlink()
    told: list[str] = []
    quantize_checkpoint(dataclasses.replace(job, on_unit=lambda unit, *_: told.append(unit)))
    assert told[0] == ""
    assert not any("expert" in unit or "layers" in unit for unit in told)
    assert (job.out / "hashes.json").exists()
    shutil.rmtree(job.out)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told_with_what_is_kept(
    number: int, small_nano: Path, small_tables: QuantizationConfig, tmp_path: Path
) -> None:
    """The second unit finds no space; with space again, the run goes on."""
    told: list[str] = []

    def fill(unit: str, *_: object) -> None:
        told.append(unit)
        if len(told) == 2:
            raise OSError(number, os.strerror(number))  # as pwritev does, which names no file

    job = Job(small_nano, tmp_path / "model", small_tables, Recipe("rtn"), on_unit=fill)
    with pytest.raises(DoesNotFit, match="finished units are kept") as caught:
        quantize_checkpoint(job)
    assert caught.value.what.startswith(f"the disk is full: {tmp_path / 'model.partial'} cannot grow, ")
    quantize_checkpoint(job)
    assert (tmp_path / "model" / "config.json").exists()


def test_another_failure_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="broken"), telling_full_disk(tmp_path, "nothing"):
        raise OSError(errno.EIO, "broken")
