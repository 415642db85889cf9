"""Checkpoints made from a hub on loopback: the bytes of one made from a directory, few files on the disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import SampleEncoder
from ernie_local.checkpoint import hub_fetch
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub_download import download, weight_files
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import read_config
from ernie_local.errors import DoesNotFit, ModelUnusable, Stopped, UsageError
from ernie_quant.hub_source import HubSource, hub_source
from ernie_quant.job import Job
from ernie_quant.pipeline import plan_checkpoint, quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.shard_store import ShardStore
from ernie_quant.shard_uses import MOST_SHARDS, ShardUses
from ernie_quant.stages import make_stages, source_files
from ernie_quant.work import Work
from tests.hub_double import Fault, HubDouble, HubRequest
from tests.sharded import write_deep_nano

NAME, REPO = "hf:org/deep", "org/deep"
NUM_LAYERS, NUM_FILES = 7, 9
CHOICE = FormatChoice("w4")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_fetch, "WAITS", (0.0,) * 2)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven layers in nine files. Not to be written to."""
    return write_deep_nano(tmp_path_factory.mktemp("source") / "deep", NUM_LAYERS, NUM_FILES)


def job_of(source: HubSource | Path, out: Path, recipe: Recipe | None = None, **options: Any) -> Job:
    directory, hub = (source, None) if isinstance(source, Path) else (source.directory, source)
    tables = format_tables(read_config(directory), CHOICE)
    return Job(directory, out, tables, recipe or Recipe("rtn"), hub=hub, **options)


def quantize(out: Path, *, keeps: bool = False, name: str = NAME, **options: Any) -> HubSource:
    """Make `out` from the hub, resuming what is there."""
    works = () if options.get("resume") == "never" else (out, out.with_name(f"{out.name}.partial"))
    with hub_source(name, works, keeps=keeps) as source:
        quantize_checkpoint(job_of(source, out, **options))
    return source


def shard(number: int) -> str:
    return f"model-{number:05}-of-{NUM_FILES:05}.safetensors"


def contents(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def fetched(requests: list[HubRequest]) -> Counter[str]:
    """How often each file of weights was asked for; headers are asked for with an end, and do not count."""
    asked = (request for request in requests if request.path.endswith(".safetensors"))
    return Counter(
        Path(request.path).name
        for request in asked
        if request.path.startswith("/cdn/") and (request.range or "bytes=0-").endswith("-")
    )


def weight_bytes(requests: list[HubRequest]) -> int:
    return sum(
        request.sent
        for request in requests
        if request.path.startswith("/cdn/")
        and request.path.endswith(".safetensors")
        and (request.range or "bytes=0-").endswith("-")
    )


def sizes_in(folder: Path) -> Iterator[int]:
    """Of the files there, while another thread renames and deletes some."""
    for path in folder.iterdir() if folder.exists() else ():
        with suppress(FileNotFoundError):
            yield path.stat().st_size


def open_files() -> Iterator[str]:
    """What the descriptors of this process lead to, while another thread closes some."""
    for path in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            yield str(path.readlink())


def test_out_is_the_same_from_the_hub_its_cache_and_a_directory(
    hub: HubDouble, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.add_folder(REPO, deep)
    sizes = {path.name: path.stat().st_size for path in deep.glob("*.safetensors")}
    shards = tmp_path / "streamed.partial" / "work" / "shards"
    seen: list[list[int]] = []

    def look(*_: object) -> None:
        seen.append(list(sizes_in(shards)))

    def look_at_open_files(*_: object) -> None:
        """A deleted file takes its place on the disk while it is open."""
        look()
        assert not [
            link for link in open_files() if link.startswith(str(shards)) and link.endswith("(deleted)")
        ]

    with hub_source(NAME) as source:
        download = plan_checkpoint(job_of(source, tmp_path / "streamed")).download
    assert download is not None
    assert (download.num_files, download.num_fetches) == (NUM_FILES, NUM_FILES)
    assert (download.num_bytes, download.most_files) == (sum(sizes.values()), MOST_SHARDS)
    assert download.seconds is not None
    assert download.seconds > 0
    told: list[tuple[int, int]] = []

    def on_download(done: int, of_all: int) -> None:
        told.append((done, of_all))
        look()

    hub.requests.clear()
    source = quantize(tmp_path / "streamed", on_unit=look_at_open_files, on_download=on_download)
    assert source.identity == f"hf:{REPO}@{commit}"
    assert fetched(hub.requests) == dict.fromkeys(sizes, 1)
    assert max(map(len, seen)) == MOST_SHARDS
    assert download.disk_bytes // 2 < max(map(sum, seen)) <= download.disk_bytes
    assert told[-1] == (sum(sizes.values()), sum(sizes.values()))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    hub.requests.clear()
    quantize(tmp_path / "kept", keeps=True)
    assert fetched(hub.requests) == dict.fromkeys(sizes, 1)
    hub.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert quantize(tmp_path / "cached").commit == commit
    assert hub.requests == []
    assert len(list((tmp_path / "cache").rglob("snapshots/*/*.safetensors"))) == NUM_FILES
    quantize_checkpoint(job_of(deep, tmp_path / "local"))
    streamed, local = contents(tmp_path / "streamed"), contents(tmp_path / "local")
    assert streamed == contents(tmp_path / "kept") == contents(tmp_path / "cached")
    # A directory has another identity and name, which stand in the config and in what is made of it.
    named = ("README.md", "config.json", "hashes.json", "quant_report.html", "quant_report.json")
    assert streamed.keys() == local.keys()
    assert {name for name in streamed if streamed[name] != local[name]} == set(named)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("streamed", "local")]
    sources = [config["quantization_config"].pop("source") for config in configs]
    assert configs[0] == configs[1]
    assert sources[0] == {"identity": source.identity, "name": REPO}


def test_files_in_the_cache_are_used_and_stay(hub: HubDouble, deep: Path, tmp_path: Path) -> None:
    """As after a download that was stopped."""
    commit = hub.add_folder(REPO, deep)
    with hub_source(NAME) as source:
        assert source.model is not None
        some = weight_files(source.model.files)[2:5]
        config = [file for file in source.model.files if file.path == "config.json"]
        snapshot = download(dataclasses.replace(source.model, files=(*config, *some)), commit)
    hub.requests.clear()
    quantize(tmp_path / "out")
    names = {path.name for path in deep.glob("*.safetensors")}
    assert fetched(hub.requests) == dict.fromkeys(names - {file.path for file in some}, 1)
    assert {path.name for path in snapshot.glob("*.safetensors")} == {file.path for file in some}


def test_a_stop_while_a_file_is_waited_for_keeps_what_arrived(
    hub: HubDouble, deep: Path, tmp_path: Path
) -> None:
    hub.add_folder(REPO, deep)
    slow = Fault("/cdn/*/model-00004*", bytes_per_second=1e5)
    hub.faults.append(slow)
    is_asked = threading.Event()

    def stop_later(*_: object) -> None:
        if any(request.path.endswith(shard(4)) for request in hub.requests[-1:]):
            threading.Timer(0.9, is_asked.set).start()

    began = time.monotonic()
    hub.requests.clear()
    with pytest.raises(Stopped, match="finished units are in"):
        quantize(tmp_path / "out", on_download=stop_later, should_stop=is_asked.is_set)
    assert time.monotonic() - began < 60
    left = {path.name: path.stat().st_size for path in (tmp_path / "out.partial/work/shards").iterdir()}
    partial = left[f"{shard(4)}.partial"]
    assert partial > 50_000
    hub.faults.clear()
    hub.requests.clear()
    quantize(tmp_path / "out")
    again = hub.asked("/cdn/*/model-00004*")
    assert f"bytes={partial}-" in [request.range for request in again]
    assert not fetched(hub.requests).keys() & left.keys()


def test_wrong_bytes_are_refused_with_both_hashes_and_fetched_again_later(
    hub: HubDouble, deep: Path, tmp_path: Path
) -> None:
    hub.add_folder(REPO, deep)
    # Headers are asked for on the same path, and come first.
    with hub_source(NAME) as source:
        hub.faults.append(Fault("/cdn/*/model-00006*", corrupt=True))
        with pytest.raises(ModelUnusable) as caught:
            quantize_checkpoint(job_of(source, tmp_path / "out"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert shard(6) in lines[0]
    right = hashlib.sha256((deep / shard(6)).read_bytes()).hexdigest()
    assert f"the hub names {right[:16]}" in lines[0]
    left = {path.name for path in (tmp_path / "out.partial/work/shards").iterdir()}
    assert not any(name.startswith("model-00006") for name in left)
    hub.faults.clear()
    hub.requests.clear()
    quantize(tmp_path / "out")
    again = fetched(hub.requests)
    assert again[shard(6)] == 1
    assert not again.keys() & {shard(number) for number in (1, 2, 3)}


def test_an_outage_that_ends_before_the_file_is_needed_is_no_error(
    hub: HubDouble, deep: Path, tmp_path: Path
) -> None:
    """The thread that fetches ahead gives up, and goes on when the file is waited for."""
    hub.add_folder(REPO, deep)
    with hub_source(NAME) as source:
        assert source.model is not None
        outage = Fault(f"*resolve*{shard(2)}", status=503)
        hub.faults.append(outage)
        uses = ShardUses([[shard(1)], [shard(2)]])
        with closing(ShardStore(source.model, uses, tmp_path / "shards")) as store:
            os.close(store.open(Path(shard(1))))
            store.finish_stage()
            assert not (tmp_path / "shards" / shard(1)).exists()
            while len(hub.asked(f"*resolve*{shard(2)}")) < 1 + len(hub_fetch.WAITS) + 1:  # one for the header
                time.sleep(0.01)
            with pytest.raises(ModelUnusable, match="could not be downloaded"):
                store.open(Path(shard(2)))
            hub.faults.clear()
            descriptor = store.open(Path(shard(2)))
            assert os.fstat(descriptor).st_size == (deep / shard(2)).stat().st_size
            os.close(descriptor)


def test_what_an_earlier_run_left_is_used_continued_or_deleted(
    hub: HubDouble, deep: Path, tmp_path: Path
) -> None:
    hub.add_folder(REPO, deep)
    folder = tmp_path / "shards"
    folder.mkdir()
    shutil.copy(deep / shard(3), folder)
    shutil.copy(deep / shard(4), folder)  # of a finished stage
    for number in (5, 6):
        begun = (deep / shard(number)).read_bytes()[:70_000]
        (folder / f"{shard(number)}.partial").write_bytes(begun)
    with hub_source(NAME) as source:
        assert source.model is not None
        hub.requests.clear()
        uses = ShardUses([[], [shard(3), shard(5)], [shard(6)]])
        with closing(ShardStore(source.model, uses, folder)) as store:
            # The second of two partial files would be one more than is allowed.
            assert not (folder / shard(4)).exists()
            assert not (folder / f"{shard(6)}.partial").exists() or fetched(hub.requests)[shard(6)]
            store.finish_stage()
            for number in (3, 5):
                os.close(store.open(Path(shard(number))))
            assert (folder / shard(5)).read_bytes() == (deep / shard(5)).read_bytes()
            store.finish_stage()
            os.close(store.open(Path(shard(6))))
            assert {path.name for path in folder.iterdir()} == {shard(6)}
    assert fetched(hub.requests) == {shard(5): 1, shard(6): 1}
    ranges = [request.range for request in hub.asked("/cdn/*")]
    assert ranges == ["bytes=70000-", None]


def test_without_the_hub_three_lines_say_why(
    hub: HubDouble, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder(REPO, deep)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnusable) as caught, hub_source(NAME):
        pass
    assert len(str(caught.value).splitlines()) == 3
    assert "HF_HUB_OFFLINE" in str(caught.value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with hub_source(NAME) as source:
        hub.faults.append(Fault("*resolve*safetensors", status=502))
        with pytest.raises(ModelUnusable) as caught:
            quantize_checkpoint(job_of(source, tmp_path / "out"))
    assert len(str(caught.value).splitlines()) == 3
    assert "the hub answered 502" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_room_for_files_of_the_source_is_told_before_they_come(
    hub: HubDouble, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder(REPO, deep)
    largest = sorted(path.stat().st_size for path in deep.glob("*.safetensors"))[-MOST_SHARDS:]
    with hub_source(NAME) as source:
        hub.requests.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
        with pytest.raises(DoesNotFit, match=f"{sum(largest)} bytes are needed beside the weights"):
            quantize_checkpoint(job_of(source, tmp_path / "out"))
    assert hub.requests == []


def test_resumed_work_stays_with_the_commit_that_it_was_begun_with(
    hub: HubDouble, deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = hub.add_folder(REPO, deep)
    files = {path.name: path for path in deep.iterdir()}
    finished: list[str] = []

    def stop(unit: str, *_: object) -> None:
        finished.append(unit)

    with pytest.raises(Stopped):
        quantize(tmp_path / "out", on_unit=stop, should_stop=lambda: len(finished) > 60)
    second = hub.add(REPO, {**files, "generation_config.json": b'{"top_p": 0.5}'})
    assert first != second
    hub.add(REPO, {**files, "generation_config.json": b'{"top_p": 0.6}'}, branch="v2")
    with pytest.raises(UsageError, match="holds other work: source differ"):
        quantize(tmp_path / "out", name=f"{NAME}@v2")

    def be_killed(_work: Work) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Work, "remove", be_killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(tmp_path / "out")
    notes: list[str] = []
    source = quantize(tmp_path / "out", on_note=notes.append)
    assert "was complete" in notes[0]
    assert not (tmp_path / "out" / "work").exists()
    assert (source.commit, source.is_pinned) == (first, True)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["source"]["identity"] == f"hf:{REPO}@{first}"
    with hub_source(NAME, (tmp_path / "new", tmp_path / "new.partial")) as anew:
        assert (anew.commit, anew.is_pinned) == (second, False)


KILLED = """
import json, os, random, signal, sys, time, traceback, urllib.request
from pathlib import Path
from ernie_calibration.generated import generated_samples
from ernie_calibration.sequences import SampleEncoder
from tests.quant.test_streamed_source import calibrated_job
from ernie_quant import rehearsal
from ernie_quant.hub_source import hub_source
from ernie_quant.pipeline import quantize_checkpoint
from tests.report_contents import plots_left_out

rehearsal._TIMED_SECONDS = 0.0  # of seconds in every round, and of no units
out, name, (kills, num_units) = Path(sys.argv[1]), sys.argv[2], map(int, sys.argv[3:])
partial, generator = out.with_name(out.name + ".partial"), random.Random(0)
journal, shards = partial / "work" / "journal.jsonl", partial / "work" / "shards"
most = 0

def lines():
    return journal.read_text().count(chr(10)) if journal.exists() else 0

def run():
    with hub_source(name, (out, partial)) as source:
        quantize_checkpoint(calibrated_job(source, out))

for round_number in range(kills + 1):
    done = [json.loads(line)["unit"] for line in journal.open() if line.endswith(chr(10))] if lines() else []
    print(json.dumps(done), flush=True)
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + f"/round/{round_number}")
    except OSError:
        pass
    child = os.fork()
    if child == 0:
        try:
            with plots_left_out():
                run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if round_number < kills:
        # Spread over the run, so that the last one comes before its end, however fast the machine is.
        goal = int(num_units * (round_number + generator.random()) / (kills + 2))
        while lines() < goal:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before it was killed"
            most = max(most, len(list(shards.iterdir())) if shards.exists() else 0)
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.2))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, "it ended before it was killed"
    else:
        assert os.waitpid(child, 0)[1] == 0
print(most)
"""


def calibrated_job(source: HubSource | Path, out: Path) -> Job:
    directory = source if isinstance(source, Path) else source.directory
    encoder = SampleEncoder.of_model(directory)
    sequences = [encoder.encode(sample) for sample in generated_samples(1, families=("images",))]
    return job_of(source, out, Recipe(sweeps=0), sequences=sequences)


@pytest.mark.slow
@pytest.mark.usefixtures("short_jobs")
def test_twenty_kills_change_no_byte_and_fetch_nothing_of_finished_layers_again(
    tmp_path: Path, hub: HubDouble
) -> None:
    deep = write_deep_nano(tmp_path / "deep")
    commit = hub.add_folder(REPO, deep)
    hub.faults.append(Fault("/cdn/*.safetensors", bytes_per_second=8e6))
    # Sums depend on the number of threads.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    units: list[str] = []
    job = calibrated_job(deep, tmp_path / "local")
    quantize_checkpoint(dataclasses.replace(job, on_unit=lambda unit, *_: units.append(unit)))
    torch.set_num_threads(num_threads)
    kills = 20
    environment = hub.environment(tmp_path / "home", TMPDIR=str(tmp_path), OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = ":".join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "out"), NAME, str(kills), str(len(units))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    streamed, local = contents(tmp_path / "out"), contents(tmp_path / "local")
    assert streamed["model.safetensors"] == local["model.safetensors"]
    named = {"README.md", "config.json", "hashes.json", "quant_report.html", "quant_report.json"}
    assert {name for name in streamed if streamed[name] != local.get(name)} == named
    text = (tmp_path / "out" / "quant_report.json").read_text()
    local_source = json.loads((tmp_path / "local" / "quant_report.json").read_text())["source"]
    for ours, theirs in ((f"hf:{REPO}@{commit}", local_source["identity"]), (REPO, local_source["name"])):
        text = text.replace(f'"{ours}"', f'"{theirs}"')
    assert text == (tmp_path / "local" / "quant_report.json").read_text()
    *rounds, most = [json.loads(line) for line in done.stdout.splitlines()]
    assert most == MOST_SHARDS
    assert len(rounds) == kills + 1
    needed = list(_needed(deep, rounds))
    per_round = list(_rounds(hub.requests))
    assert len(per_round) == kills + 1
    for files, requests in zip(needed, per_round, strict=True):
        assert fetched(requests).keys() <= files
    total = sum(path.stat().st_size for path in deep.glob("*.safetensors"))
    assert total <= weight_bytes(hub.requests) < total + kills * 600_000
    assert any(
        (request.range or "").endswith("-") for request in hub.requests
    )  # a partial file was continued


def _needed(deep: Path, rounds: list[list[str]]) -> Iterator[set[str]]:
    """The files of stages that were not finished when each round began."""
    config = read_config(deep)
    with open_checkpoint(deep, config) as checkpoint:
        fixed = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name))
            for name in checkpoint.names()
            if not name.startswith("experts.")
        ]
        stages = make_stages(fixed, config.text)
        for done in rounds:
            # A layer that is done has all of its tensors; of the first stage none is looked at by name.
            is_begun = any(unit.startswith("sequence") for unit in done)
            names = [entry.name for entry in stages[0].fixed] if is_begun else []
            for stage in stages[1:]:
                if f"layer {stage.layer_id}" in done:
                    names += [entry.name for entry in stage.fixed]
            files = source_files(stages, checkpoint.accounts, [*done, *names], calibrates=True)
            yield {name for of_stage in files for name in of_stage}


def _rounds(requests: list[HubRequest]) -> Iterator[list[HubRequest]]:
    current: list[HubRequest] | None = None
    for request in requests:
        if request.path.startswith("/round/"):
            if current is not None:
                yield current
            current = []
        elif current is not None:
            current.append(request)
    assert current is not None
    yield current
