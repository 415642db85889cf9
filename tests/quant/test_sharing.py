"""Several workers at one quantizing run: whoever makes what, the bytes are those of one worker.

Two threads with a work directory opened twice hold locks against each other as two processes do. Processes
that are killed are in the slow test.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_calibration.sequences import EncodedSample
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, ErnieLocalError, Stopped, UsageError
from ernie_local.machine.random_model import write_random
from ernie_local.strict_json import read_json_object
from ernie_quant import pipeline, rehearsal
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.work import Work

RECIPE = Recipe(sweeps=0)
_SECONDS = 120.0


@pytest.fixture(scope="module", autouse=True)
def short_runs() -> Iterator[None]:
    """Without figures, which take longer than all units of so small a model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_report", lambda *_: None)
        patch.setattr(rehearsal, "_TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer and one with four experts a bank. Not to be written to."""
    directory = tmp_path_factory.mktemp("sharing") / "source"
    raw = read_json_object(NANO_DIRECTORY / "config.json")
    small = {"num_hidden_layers": 2, "moe_num_experts": [4, 4], "moe_k": 2, "vocab_size": 512}
    write_random(directory, {**raw, **small, **_LAYERS}, None, 0)
    return directory


_LAYERS = {"moe_layer_end_index": [1, 1], "pad_token_id": 0}


def sequences(count: int = 10) -> list[EncodedSample]:
    generator = torch.Generator().manual_seed(0)
    return [
        EncodedSample(str(number), (1, *torch.randint(10, 200, (30,), generator=generator).tolist()), (), ())
        for number in range(count)
    ]


def job_of(source: Path, out: Path, **options: Any) -> Job:
    tables = format_tables(read_config(source), FormatChoice("w2", dense="w4"))
    return Job(source, out, tables, RECIPE, sequences(), **options)


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by one worker."""
    out = tmp_path_factory.mktemp("alone") / "model"
    quantize_checkpoint(job_of(source, out))
    return out


@dataclasses.dataclass
class Worker:
    """A thread that runs a job, with what it was told. at: the units at which it waits for `go`."""

    job: Job
    at: str = "never"
    units: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    waits: threading.Event = dataclasses.field(default_factory=threading.Event)
    go: threading.Event = dataclasses.field(default_factory=threading.Event)

    def start(self) -> Worker:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def join(self) -> Worker:
        self._thread.join(_SECONDS)
        assert not self._thread.is_alive()
        return self

    def _run(self) -> None:
        job = dataclasses.replace(
            self.job, on_unit=self._on_unit, on_others=self.others.append, on_note=self.notes.append
        )
        try:
            quantize_checkpoint(job)
        except ErnieLocalError as error:
            self.error = error

    def _on_unit(self, unit: str, _done: float, _all: float) -> None:
        self.units.append(unit)
        if unit.startswith(self.at):
            self.waits.set()
            assert self.go.wait(_SECONDS)


def test_two_workers_make_the_bytes_of_one(source: Path, alone: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path / "model")
    first = Worker(job, at="layers.0").start()  # it began when the other comes
    assert first.waits.wait(_SECONDS)
    second = Worker(job).start()
    first.go.set()
    assert first.join().error is second.join().error is None
    assert hashes(job.out) == hashes(alone)
    assert not job.partial.exists()
    checks = [worker.units.count("checking the new checkpoint") for worker in (first, second)]
    assert sorted(checks) == [0, 1], "the check is made once"
    told = [note for worker in (first, second) for note in worker.notes if "another process" in note]
    assert len(told) == 1
    assert f"named it {job.out}" in told[0]
    assert any("of 9 experts by others" in line for line in first.others + second.others), "with the shared"


def test_a_worker_waits_for_the_unit_of_another(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(source, tmp_path / "model")
    real, is_held, may_go = Work.record, threading.Event(), threading.Event()

    def hold(self: Work, unit: str, report: Any = None) -> None:
        if unit == "expert 1.text.0":
            is_held.set()
            assert may_go.wait(_SECONDS)
        real(self, unit, report)

    monkeypatch.setattr(Work, "record", hold)
    first = Worker(job).start()
    assert is_held.wait(_SECONDS)
    second = Worker(job).start()
    awaited = "waiting for expert 1.text.0 by another process"
    end = time.monotonic() + _SECONDS
    while not any(awaited in line for line in second.others):
        assert time.monotonic() < end, second.others
        time.sleep(0.01)
    assert not any(unit.startswith("outputs 1") for unit in second.units)
    may_go.set()
    assert first.join().error is second.join().error is None
    assert job.out.is_dir()


def test_one_that_stops_lets_the_other_go_on(source: Path, alone: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path / "model")
    first = Worker(job, at="attention 0").start()
    assert first.waits.wait(_SECONDS)
    second = Worker(dataclasses.replace(job, should_stop=lambda: True)).start().join()
    assert isinstance(second.error, Stopped)
    assert "another process goes on with the rest" in str(second.error)
    first.go.set()
    assert first.join().error is None
    assert hashes(job.out) == hashes(alone)


def more_samples(job: Job) -> Job:
    return dataclasses.replace(job, sequences=sequences(11))


def other_recipe(job: Job) -> Job:
    return dataclasses.replace(job, recipe=Recipe(sweeps=1))


def start_again(job: Job) -> Job:
    return dataclasses.replace(job, resume="never")


def test_one_with_other_options_is_refused_and_harms_nobody(source: Path, tmp_path: Path) -> None:
    job = job_of(source, tmp_path / "model")
    first = Worker(job, at="sequence")
    first.job = dataclasses.replace(job, should_stop=first.go.is_set)
    first.start()
    assert first.waits.wait(_SECONDS)
    for change, said in (
        (more_samples, "calibration differ"),
        (other_recipe, "settings differ"),
        (start_again, r"would delete its work[\s\S]*omit"),
    ):
        with pytest.raises(UsageError, match=said):
            quantize_checkpoint(change(job))
    first.go.set()
    assert isinstance(first.join().error, Stopped)
    again = Worker(dataclasses.replace(job, resume="required", should_stop=lambda: True)).start().join()
    assert isinstance(again.error, Stopped)
    assert len(again.units) == 2, "what was there at first, and one more unit"
    assert not set(again.units) & set(first.units[1:]), "what the first one made is kept"


def test_one_that_fetches_its_source_takes_no_other(tmp_path: Path) -> None:
    directory, identity = tmp_path / "model.partial", {"source": "a"}
    fetching = Work(directory, identity, alone=True)
    fetching.prepared()
    with pytest.raises(
        UsageError, match=r"another process is at work[\s\S]*files of the hub that it deletes"
    ):
        Work(directory, identity)
    fetching.close()
    other = Work(directory, identity)
    other.prepared()
    with pytest.raises(UsageError, match=r"fetched one by one[\s\S]*download the model first"):
        Work(directory, identity, alone=True)
    other.close()


def test_a_full_disk_of_one_leaves_the_unit_to_another(
    source: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a line of the journal arrives, too."""
    job = job_of(source, tmp_path / "model")
    real, calls = os.write, iter(range(10**6))

    def write(descriptor: int, data: bytes) -> int:
        if b"expert 1.text" in bytes(data) and next(calls) == 2:
            real(descriptor, bytes(data)[:9])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    full = Worker(job).start().join()
    assert isinstance(full.error, DoesNotFit)
    assert Worker(job).start().join().error is None
    assert hashes(job.out) == hashes(alone)


def test_locks_that_do_not_reach_the_other_machine_are_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network disk that is mounted without them: both take the same unit."""
    work = Work(tmp_path / "model.partial", {})
    work.prepared()
    other = Work(tmp_path / "model.partial", {})
    other.prepared()
    work.record("layer 0")
    with pytest.raises(UsageError, match=r"made layer 0 too[\s\S]*mount that disk with locks"):
        other.record("layer 0")
    work.record("layer 1", {"x": 1})
    assert other.hear() == ["layer 0", "layer 1"]
    assert other.done["layer 1"] == {"x": 1}
    work.close()
    other.close()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(UsageError, match=r"cannot be locked[\s\S]*No locks available[\s\S]*another disk"):
        Work(tmp_path / "model.partial", {})


def test_a_work_folder_that_may_not_be_written_to_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("/lock"):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"lock cannot be opened[\s\S]*Read-only[\s\S]*writable"):
        Work(tmp_path / "model.partial", {})


def test_one_that_waited_for_the_end_finds_that_it_came(tmp_path: Path) -> None:
    """The directory gets its name between the checks and the lock of one that begins."""
    work = Work(tmp_path / "model.partial", {})
    late: list[BaseException] = []

    def begin() -> None:
        with pytest.raises(UsageError) as caught:
            Work(tmp_path / "model.partial", {})
        late.append(caught.value)

    thread = threading.Thread(target=begin)
    thread.start()
    time.sleep(0.2)
    assert not late
    work.finish(tmp_path / "model")
    thread.join(_SECONDS)
    assert "has just been completed" in str(late[0])
    assert list((tmp_path / "model").iterdir()) == []
    assert not (tmp_path / "model.partial").exists()


def run_process(source: Path, out: Path, dies_at: str, made: Any, num_threads: int) -> None:
    """Run the job in a process of its own; it kills itself in the middle of its first unit `dies_at`.

    num_threads: bytes are the same for the same number alone.
    """
    torch.set_num_threads(num_threads)
    pytest.MonkeyPatch().setattr(pipeline, "write_report", lambda *_: None)
    real = Work.record

    def record(self: Work, unit: str, report: Any = None) -> None:
        if dies_at and unit.startswith(dies_at):
            os.kill(os.getpid(), signal.SIGKILL)  # its bytes are written, its line is not
        real(self, unit, report)
        made.put((os.getpid(), unit))
        time.sleep(0.02)  # small units: let the others come to theirs

    Work.record = record  # type: ignore[method-assign]
    quantize_checkpoint(job_of(source, out))


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", ["expert 1.text", "heads 1", "attention 1", "outputs 1"])
def test_four_processes_of_which_one_is_killed_make_the_bytes_of_one(
    dies_at: str, source: Path, alone: Path, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch takes longer to import than each has to do
    out, made = tmp_path / "model", context.Queue()
    threads = torch.get_num_threads()
    processes = [
        context.Process(target=run_process, args=(source, out, dies_at if number == 0 else "", made, threads))
        for number in range(4)
    ]
    processes[0].start()
    units: list[tuple[int, str]] = [made.get(timeout=_SECONDS)]  # the one that dies does not come too late
    for process in processes[1:]:
        process.start()
    end = time.monotonic() + 5 * _SECONDS
    while any(process.is_alive() for process in processes) or not made.empty():
        assert time.monotonic() < end
        while not made.empty():
            units.append(made.get())
        time.sleep(0.05)
    assert [process.exitcode for process in processes] == [-signal.SIGKILL, 0, 0, 0]
    names = [unit for _, unit in units]
    assert len(set(names)) == len(names), "a unit was made twice"
    assert len({process for process, _ in units}) >= 3
    assert hashes(out) == hashes(alone)
    assert not out.with_name("model.partial").exists()
