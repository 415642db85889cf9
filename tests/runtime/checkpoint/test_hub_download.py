"""Downloads from a hub on loopback that fails in every way: what arrives is whole, or the error says why."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import snapshot_download

from ernie_local.checkpoint import hub_fetch
from ernie_local.checkpoint.hub import NANO_DIRECTORY, resolve_model
from ernie_local.errors import DoesNotFit, ErnieLocalError, ModelUnusable
from tests.hub_double import Fault, HubDouble

CONFIG = (NANO_DIRECTORY / "config.json").read_bytes()
WEIGHTS = random.Random(0).randbytes(1_000_000)
NAME, ON_CDN = "org/tiny-ernie", "/cdn/*"
FILES: dict[str, bytes | Path] = {
    "config.json": CONFIG,
    "tokenizer.model": b"tokens",
    "model.safetensors": WEIGHTS,
    "modeling_ernie4_5_vl.py": b"raise SystemExit",
    "README.md": b"# Ernie",
}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_fetch, "WAITS", (0.0,) * 5)


def refusal(name: str = f"hf:{NAME}") -> ErnieLocalError:
    with pytest.raises(ErnieLocalError) as caught:
        resolve_model(name)
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


def left_in(cache: Path) -> list[Path]:
    """All files in the cache except locks, which hold nothing."""
    return [path for path in cache.rglob("*") if path.is_file() and ".locks" not in path.parts]


def test_a_model_is_downloaded_once_and_other_programs_find_it(hub: HubDouble) -> None:
    commit = hub.add(NAME, FILES)
    progress: list[tuple[str, int, int]] = []
    directory = resolve_model(f"hf:{NAME}", lambda *state: progress.append(state))
    assert directory.name == commit
    wanted = {"config.json", "tokenizer.model", "model.safetensors"}
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        name: FILES[name] for name in wanted
    }
    num_bytes = sum(path.stat().st_size for path in directory.iterdir())
    assert progress[0] == (f"hf:{NAME}", 0, num_bytes)
    assert progress[-1] == (f"hf:{NAME}", num_bytes, num_bytes)
    assert [done for _, done, _ in progress] == sorted(done for _, done, _ in progress)
    assert snapshot_download(NAME, local_files_only=True) == str(directory)
    sent = hub.bytes_sent("*resolve*") + hub.bytes_sent(ON_CDN)
    assert sent == num_bytes
    progress.clear()
    assert resolve_model(f"hf:{NAME}", lambda *state: progress.append(state)) == directory
    assert hub.bytes_sent("*resolve*") + hub.bytes_sent(ON_CDN) == sent
    assert progress == []


def test_what_huggingface_hub_has_downloaded_is_used(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    theirs = snapshot_download(NAME)
    sent = hub.bytes_sent(ON_CDN)
    assert resolve_model(f"hf:{NAME}") == Path(theirs)
    assert hub.bytes_sent(ON_CDN) == sent


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_drops_again_and_again_is_taken_up_where_it_stopped(
    hub: HubDouble, reset: bool
) -> None:
    hub.add(NAME, FILES)
    # More often than it is asked again while nothing arrives.
    hub.faults.append(Fault("/cdn/*/model.safetensors", drop_after=100_000, reset=reset))
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS
    asked = hub.asked("/cdn/*/model.safetensors")
    assert [request.range for request in asked] == [None, *(f"bytes={n}00000-" for n in range(1, 10))]
    assert hub.bytes_sent("/cdn/*/model.safetensors") == len(WEIGHTS)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ON_CDN, status=503, times=3),
        Fault("/org/*", status=500, times=3),
        Fault("/api/*", status=502, times=2),
        Fault(ON_CDN, length_error=5),
        Fault("/cdn/*/model.safetensors", length_error=-400_000, times=1),
        Fault(ON_CDN, status=200, body=b"", times=2),
    ],
    ids=lambda fault: f"{fault.path} {fault.status} {fault.length_error}",
)
def test_a_failing_server_is_asked_again(hub: HubDouble, fault: Fault) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(fault)
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS


def test_a_busy_server_says_how_long_to_wait(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("/cdn/*/model.safetensors", status=429, headers={"Retry-After": "1"}, times=1))
    began = time.monotonic()
    resolve_model(f"hf:{NAME}")
    assert time.monotonic() - began > 1


def test_a_server_that_stalls_is_asked_anew(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.faults.append(Fault("/cdn/*/model.safetensors", bytes_per_second=30_000, times=2))
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS
    assert [request.range for request in hub.asked("/cdn/*/model.safetensors")][1:] == [
        "bytes=65536-",
        "bytes=131072-",
    ]


def test_a_proxy_that_gives_no_connection_is_named(hub: HubDouble, tmp_path: Path) -> None:
    # The double knows no CONNECT. A process of its own: the client reads the variables when it is made.
    variables = {"HF_ENDPOINT": "https://hub.invalid", "HTTPS_PROXY": hub.endpoint, "NO_PROXY": ""}
    variables["PYTHONPATH"] = os.pathsep.join(sys.path)
    code = f"from ernie_local.checkpoint.hub import resolve_model; resolve_model('hf:{NAME}')"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path, **variables),
        capture_output=True,
        text=True,
        check=False,
    )
    *_, reason, hint = ran.stderr.splitlines()
    assert "the proxy that HTTPS_PROXY or ALL_PROXY names gives no connection" in reason
    assert "NO_PROXY" in hint


def test_a_server_without_ranges_sends_all_again(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    hub.faults += [
        Fault("/cdn/*/model.safetensors", drop_after=300_000, times=1),
        Fault("/cdn/*/model.safetensors", ignore_range=True),
    ]
    done: list[int] = []
    directory = resolve_model(f"hf:{NAME}", lambda _, bytes_here, __: done.append(bytes_here))
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert done[-1] == len(CONFIG) + len(b"tokens") + len(WEIGHTS)


def test_a_damaged_file_is_named_and_removed(hub: HubDouble, tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("/cdn/*/model.safetensors", corrupt=True, times=1))
    error = refusal()
    assert isinstance(error, ModelUnusable)
    assert error.what.startswith(f"model.safetensors of hf:{NAME}@")
    assert "the hash of the 1000000 bytes that arrived is" in error.what
    assert not any(path.stat().st_size == len(WEIGHTS) for path in left_in(tmp_path / "cache"))
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS
    # What was right the first time is not fetched again.
    assert len(hub.asked("*/config.json")) == len(hub.asked("/cdn/*/tokenizer.model")) == 1


def test_a_damaged_small_file_is_named_too(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("*/config.json", corrupt=True, times=1))
    assert refusal().what.startswith("config.json of")


def test_a_file_that_was_cut_off_on_the_disk_is_fetched_again(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    path = (resolve_model(f"hf:{NAME}") / "model.safetensors").resolve()
    path.write_bytes(WEIGHTS[:1000])
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS


def test_what_has_arrived_is_kept_when_the_server_goes_away(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    broken = Fault("/cdn/*/model.safetensors", status=503)
    hub.faults += [Fault("/cdn/*/model.safetensors", drop_after=300_000, times=2), broken]
    error = refusal()
    assert "the hub answered 503" in error.why
    assert "where it stopped" in error.hint
    hub.faults.remove(broken)
    assert (resolve_model(f"hf:{NAME}") / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bytes_sent("/cdn/*/model.safetensors") == len(WEIGHTS)


def test_a_killed_download_goes_on(hub: HubDouble, tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("/cdn/*/model.safetensors", bytes_per_second=400_000))
    code = f"from ernie_local.checkpoint.hub import resolve_model; print(resolve_model('hf:{NAME}'))"
    variables = hub.environment(
        tmp_path, HF_HUB_CACHE=str(tmp_path / "cache"), PYTHONPATH=os.pathsep.join(sys.path)
    )
    first = subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE)
    while hub.bytes_sent("/cdn/*/model.safetensors") < 500_000:
        assert first.poll() is None, "it ended before it was killed"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    hub.faults.clear()
    resolve_model(f"hf:{NAME}")
    second = hub.asked("/cdn/*/model.safetensors")[-1]
    assert second.range is not None
    assert second.sent < 700_000


def test_all_files_come_from_the_commit_that_was_there_first(hub: HubDouble) -> None:
    first = hub.add(NAME, FILES)
    other = random.Random(1).randbytes(500_000)

    def move() -> None:
        hub.add(NAME, FILES | {"model.safetensors": other, "config.json": CONFIG + b"\n"})

    hub.faults.append(Fault("*/tokenizer.model", times=1, before=move))
    directory = resolve_model(f"hf:{NAME}")
    assert directory.name == first
    assert (directory / "model.safetensors").read_bytes() == WEIGHTS
    assert (directory / "config.json").read_bytes() == CONFIG
    later = resolve_model(f"hf:{NAME}")
    assert (later / "model.safetensors").read_bytes() == other
    # A file of both commits is there already.
    assert len(hub.asked("/cdn/*/tokenizer.model")) == 1
    assert (resolve_model(f"hf:{NAME}@{first}") / "model.safetensors").read_bytes() == WEIGHTS


def test_another_commit_than_that_of_the_list_is_refused(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(
        Fault("/org/*/config.json", status=200, headers={"X-Repo-Commit": "f" * 40}, body=b"{}")
    )
    error = refusal()
    assert f"comes from commit {'f' * 12}" in error.what


def test_a_revision_may_be_a_pull_request(hub: HubDouble) -> None:
    hub.add(NAME, {"config.json": b"{}"})
    commit = hub.add(NAME, FILES, branch="refs/pr/11")
    assert resolve_model(f"hf:{NAME}@refs/pr/11").name == commit
    assert snapshot_download(NAME, revision="refs/pr/11", local_files_only=True).endswith(commit)


def test_a_full_disk_is_seen_before_the_first_byte(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=500_000))
    error = refusal()
    assert isinstance(error, DoesNotFit)
    assert error.what.startswith(f"hf:{NAME} needs 978.1 KiB more on the disk of ")
    assert error.what.endswith("488.3 KiB are free")
    assert hub.bytes_sent("*resolve*") == hub.bytes_sent(ON_CDN) == 0


def test_a_disk_that_others_fill_meanwhile(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)

    def fill(response: object, file: hub_fetch.RemoteFile, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_fetch, "_append", fill)
    error = refusal()
    assert isinstance(error, DoesNotFit)
    assert " are free" in error.what


def test_a_cache_that_cannot_be_written(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/sys/hub")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    error = refusal()
    assert "the cache cannot be written: /sys/hub" in error.why
    assert "HF_HOME" in error.hint


def test_a_whole_model_needs_no_cache_that_can_be_written(hub: HubDouble, tmp_path: Path) -> None:
    hub.add(NAME, FILES)
    directory = resolve_model(f"hf:{NAME}")
    refs = directory.parents[1] / "refs"
    shutil.rmtree(refs)
    refs.write_bytes(b"")  # nothing can be made in it
    shutil.rmtree(tmp_path / "cache" / ".locks")
    (tmp_path / "cache" / ".locks").write_bytes(b"")
    assert resolve_model(f"hf:{NAME}") == directory


def test_without_links_files_lie_where_they_are_used(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, FILES)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    directory = resolve_model(f"hf:{NAME}")
    assert not any(path.is_symlink() for path in directory.iterdir())
    # Once, not a copy beside each.
    sizes = [path.stat().st_size for path in left_in(tmp_path / "cache")]
    assert sizes.count(len(WEIGHTS)) == 1
    assert resolve_model(f"hf:{NAME}") == directory
    assert len(hub.asked("/cdn/*/model.safetensors")) == 1


def test_a_model_that_cannot_run_is_refused_before_its_weights_come(hub: HubDouble) -> None:
    hub.add(NAME, FILES | {"config.json": json.dumps({"model_type": "llama"}).encode()})
    assert "model_type is 'llama'" in refusal().what
    hub.add("org/empty", {"model.safetensors": WEIGHTS})
    assert refusal("hf:org/empty").what == "hf:org/empty has no config.json among its 1 files"
    assert hub.asked("/cdn/*/model.safetensors") == []


def test_two_programs_share_one_download(hub: HubDouble) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("/cdn/*/model.safetensors", bytes_per_second=2_000_000))
    with ThreadPoolExecutor(2) as pool:
        found = {task.result() for task in [pool.submit(resolve_model, f"hf:{NAME}") for _ in range(2)]}
    assert len(found) == 1
    assert hub.bytes_sent("/cdn/*/model.safetensors") == len(WEIGHTS)


@pytest.mark.parametrize("path", ["../../evil.json", "/etc/evil.json"])
def test_a_file_outside_of_the_model_is_refused(hub: HubDouble, path: str) -> None:
    hub.add(NAME, {**FILES, path: b"{}"})
    assert "outside of the model" in refusal().why
    assert hub.asked("*resolve*") == []


LISTED = {"rfilename": "config.json", "size": 3, "blobId": "0" * 40}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "another form"),
        ([], "another form"),
        ({}, "another form"),
        ({"id": NAME, "sha": "0" * 40, "siblings": "files"}, "another form"),
        *(
            ({"id": NAME, "sha": "0" * 40, "siblings": [file]}, why)
            for file, why in (
                (1, "another form"),
                ({}, "another form"),
                ({**LISTED, "rfilename": 3}, "another form"),
                ({**LISTED, "blobId": 3}, "another form"),
                ({**LISTED, "lfs": {"size": 3}}, "another form"),
                ({**LISTED, "size": "3"}, "'config.json' of '3' bytes"),
                ({**LISTED, "size": 1.5}, "'config.json' of 1.5 bytes"),
                ({**LISTED, "size": -1}, "'config.json' of -1 bytes"),
                ({**LISTED, "size": None}, "'config.json' of null bytes"),
            )
        ),
    ],
)
def test_an_answer_that_no_hub_gives_is_refused(hub: HubDouble, answer: object, why: str) -> None:
    hub.add(NAME, FILES)
    hub.faults.append(Fault("/api/models/*", status=200, body=json.dumps(answer).encode()))
    assert why in refusal().why
    assert hub.asked("*resolve*") == []


def test_the_token_goes_to_the_hub_alone(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    resolve_model(f"hf:{NAME}")
    assert {request.token for request in hub.asked("/org/*")} == {"hf_good"}
    assert {request.token for request in hub.asked(ON_CDN)} == {None}


def test_the_first_failure_stops_the_other_files(hub: HubDouble) -> None:
    shards = {f"model-{n}.safetensors": random.Random(n).randbytes(400_000) for n in range(8)}
    hub.add(NAME, {"config.json": CONFIG, **shards})
    hub.faults += [
        Fault("*/model-0.safetensors", status=403),
        Fault("/cdn/*", bytes_per_second=100_000),
    ]
    began = time.monotonic()
    assert "403" in refusal().why
    assert time.monotonic() - began < 3
    assert len(hub.asked("/cdn/*")) < 6


Scene = Callable[[HubDouble], object]
REFUSALS: list[tuple[str, Scene, str, str]] = [
    (
        "hf:org/gated",
        lambda hub: hub.add("org/gated", FILES, gated=True),
        "terms have to be accepted",
        "org/gated",
    ),
    ("hf:org/nowhere", lambda hub: None, "the hub has no model org/nowhere", "check the spelling"),
    (
        "hf:baidu/ERNIE-4.5-VL-28B-A3B-Thinkin",
        lambda hub: None,
        "the hub has no model",
        "hf:baidu/ERNIE-4.5-VL-28B-A3B-Thinking is the nearest published name",
    ),
    (f"hf:{NAME}@v2", lambda hub: hub.add(NAME, FILES), "but no revision v2", "leave out @v2"),
    (
        f"hf:{NAME}",
        lambda hub: hub.faults.append(
            Fault("/api/*", status=502, headers={"Content-Type": "text/html"}, body=b"<html>")
        ),
        "a proxy answered in place of the hub (502 Bad Gateway)",
        "HTTPS_PROXY",
    ),
    (
        f"hf:{NAME}",
        lambda hub: hub.faults.append(Fault("/api/*", status=200, body=b"<html>Log in</html>")),
        "what answered is not the hub",
        "log-in in a browser",
    ),
    (
        f"hf:{NAME}",
        lambda hub: hub.faults.append(Fault("/api/*", status=429, headers={"Retry-After": "60"})),
        "no more answers for now (429",
        "wait some minutes",
    ),
    (
        f"hf:{NAME}",
        lambda hub: hub.__exit__(),
        "the hub cannot be reached (ConnectError",
        "check the network",
    ),
]


@pytest.mark.parametrize(("name", "scene", "reason", "hint"), REFUSALS)
def test_each_refusal_says_why_and_what_to_try(
    hub: HubDouble, name: str, scene: Scene, reason: str, hint: str
) -> None:
    scene(hub)
    error = refusal(name)
    assert error.exit_code == 4
    assert error.what == f"model {name} could not be downloaded from the Hugging Face hub"
    assert reason in error.why
    assert hint in error.hint


def test_a_wrong_token_is_told_from_a_missing_model(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    error = refusal()
    assert "does not know the token" in error.why
    assert "HF_TOKEN" in error.hint


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_copy_in_the_cache_is_used_when_the_hub_is_down(hub: HubDouble, is_whole: bool) -> None:
    hub.add(NAME, FILES)
    if is_whole:
        directory = resolve_model(f"hf:{NAME}")
    hub.faults.append(Fault(methods=("GET", "HEAD"), status=503))
    if not is_whole:
        assert "the hub answered 503" in refusal().why
        return
    with pytest.warns(UserWarning, match=r"the hub answered 503.*; its copy of commit .* is used"):
        assert resolve_model(f"hf:{NAME}") == directory


@pytest.mark.parametrize("answer", [b"", b"xx"])
def test_a_server_that_gives_next_to_nothing_is_asked_some_times_only(hub: HubDouble, answer: bytes) -> None:
    hub.add(NAME, FILES)
    fault = Fault("/cdn/*/model.safetensors", status=206, body=answer)
    hub.faults.append(fault)
    assert f"had {len(answer)} bytes" in refusal().why
    assert len(hub.asked("/cdn/*/model.safetensors")) == 1 + len(hub_fetch.WAITS)
