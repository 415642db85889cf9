"""Experts in mapped files: the same numbers, nothing copied, damage found before it is computed with."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ernie_local
from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.mapped_file import MappedFile, fetch_mapped
from ernie_local.config import Bank, read_config
from ernie_local.engine import Engine
from ernie_local.errors import ModelUnusable
from ernie_local.experts import background, mapped
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.mapped import MappedExperts
from ernie_local.model.ernie import ErnieModel
from ernie_local.packing.layout import ForeignLayout, PageLayout
from ernie_local.packing.page import check_page
from tests.plain_export import export_plainly
from tests.runtime.paged_models import answer_logits, build, ids, image, image_ids

CONFIG = read_config(NANO_DIRECTORY)
FILE = "model.safetensors"


@pytest.fixture(scope="module", params=["packed", "mixed"])
def original(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, packed_nano: Path
) -> Path:
    if request.param == "packed":
        return packed_nano
    tables = format_tables(CONFIG, FormatChoice())
    formats = tuple(("w4", "w2-w3", "w2")[expert % 3] for expert in range(CONFIG.text.banks[0].num_experts))
    out = tmp_path_factory.mktemp("mixed")
    export_plainly(
        NANO_DIRECTORY, out, dataclasses.replace(tables, experts=dict.fromkeys(tables.experts, formats))
    )
    return out


@pytest.fixture
def directory(packed_nano: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed_nano, tmp_path / "model"))


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Nothing is read before this is set."""
    opened = threading.Event()

    def fetch_later(part: torch.Tensor) -> bool:
        assert opened.wait(60)
        return fetch_mapped(part)

    monkeypatch.setattr(mapped, "fetch_mapped", fetch_later)
    yield opened
    opened.set()


def experts_of(model: ErnieModel) -> MappedExperts:
    assert isinstance(model.experts, MappedExperts)
    return model.experts


def say(model: ErnieModel) -> torch.Tensor:
    tall = image(model, 6, 4)
    turns = [(ids(23, 1), [], ids(4, 2)), ([*ids(4, 3), *image_ids(model, tall)], [tall], ids(3, 5))]
    return answer_logits(model, turns)


def mappings(path: Path) -> list[dict[str, int]]:
    """Of each mapping of the file in this process, its numbers in /proc, KiB."""
    found: list[dict[str, int]] = []
    is_wanted = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if "-" in name.split()[0]:
            is_wanted = line.endswith(str(path))
            found += [{}] if is_wanted else []
        elif is_wanted and value.endswith("kB"):
            found[-1][name] = int(value.split()[0])
    return found


def test_nothing_is_copied(original: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(original, tmp_path / "model"))
    model = build(directory, None)
    model.experts.wait_until_resident()
    (mapping,) = mappings(directory / FILE)
    assert mapping["Anonymous"] == 0
    matrices = sum(buffer.nbytes for buffer in model.buffers() if buffer.dtype == torch.uint8)
    assert matrices > 0
    assert mapping["Rss"] >= (experts_of(model).num_bytes + matrices) >> 10
    assert model.experts.describe() == []


@pytest.mark.parametrize("way", ["read", "without populate"])
def test_mapped_experts_give_what_read_ones_give(
    original: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    expected = say(build(original, None))

    def refuse(_self: MappedFile, path: Path) -> None:
        raise OSError(f"{path} cannot be mapped into memory: a test")

    if way == "read":
        monkeypatch.setattr(MappedFile, "__init__", refuse)
    else:
        monkeypatch.setattr(mapped, "fetch_mapped", lambda _: False)
    others = len(mappings(original / FILE))  # of models of other tests that are not gone yet
    model = build(original, None)
    assert torch.equal(say(model), expected)
    model.experts.wait_until_resident()
    notes = model.experts.describe()
    if way == "read":
        assert [note.partition(":")[0] for note in notes] == ["experts", "all but experts"]
        for note in notes:
            assert note.endswith("not mapped: " + f"{original / FILE} cannot be mapped into memory: a test")
        assert len(mappings(original / FILE)) <= others
    else:
        assert notes == []


def test_pages_at_odd_places_are_read(directory: Path) -> None:
    """As another program would write the file, with a header of any length."""
    expected = say(build(directory, None))
    path = directory / FILE
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip(b" ") + b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    model = build(directory, None)
    assert torch.equal(say(model), expected)
    assert "pages do not begin at multiples of 4096 bytes" in model.experts.describe()[0]


def damage(directory: Path, bank: str, num_pages: int) -> str:
    """Change a byte of the first pages of a bank in layer 1. Returns the tensor's name."""
    layer_id = CONFIG.text.moe_layers.index(True)
    return damage_tensor(directory, f"experts.{layer_id}.{bank}.", num_pages)


def damage_tensor(directory: Path, prefix: str, num_pages: int) -> str:
    """Change a byte of the first pages of the one tensor whose name begins with this, and return the name."""
    stored = read_stored_tensors(directory)
    (tensor,) = (one for one in stored if one.name.startswith(prefix))
    with (directory / FILE).open("r+b") as file:
        for row in range(num_pages):
            place = tensor.offset + row * tensor.shape[1] + 300
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1]))
    return tensor.name


def test_a_damaged_page_is_named_before_it_is_used(directory: Path) -> None:
    name = damage(directory, "text", CONFIG.text.banks[0].num_experts)
    model = build(directory, None)
    with pytest.raises(ModelUnusable, match=rf"^page \d+ of {name} has the checksum"):
        answer_logits(model, [(ids(1, 1), [], [])])
    with pytest.raises(ModelUnusable, match=rf"^page \d+ of {name} has the checksum"):
        model.experts.wait_until_resident()


def test_layers_are_not_waited_for_before_a_forward(directory: Path, gate: threading.Event) -> None:
    name = damage_tensor(directory, "layers.1.moe.shared_experts.", 1).rpartition(".")[0]
    model = build(directory, None)
    model.encode_images([image(model, 2, 2)])
    model.embed(torch.tensor([20]))
    assert experts_of(model).reader.read_bytes == 0
    gate.set()
    layers_run: list[object] = []
    model.layers[0].register_forward_pre_hook(lambda *_: layers_run.append(0))
    for _ in range(2):
        with pytest.raises(ModelUnusable, match=f"^the page of {name} has the checksum"):
            answer_logits(model, [(ids(20, 1), [], [])])
    assert not layers_run
    with pytest.raises(ModelUnusable, match=f"^the page of {name} has the checksum"):
        model.experts.wait_until_resident()


def test_a_damaged_page_that_no_token_uses_harms_nothing(directory: Path) -> None:
    expected = answer_logits(build(directory, None), [(ids(20, 1), [], [])])
    name = damage(directory, "vision", 1)
    model = build(directory, None)
    assert torch.equal(answer_logits(model, [(ids(20, 1), [], [])]), expected)
    with pytest.raises(ModelUnusable, match=f"^page 0 of {name} has the checksum"):
        model.experts.wait_until_resident()


def test_a_damaged_page_is_named_by_the_turn_that_needs_it(directory: Path) -> None:
    name = damage(directory, "vision", CONFIG.text.bank("vision").num_experts)
    model = build(directory, None)
    answer_logits(model, [(ids(20, 1), [], [])])
    for thread in experts_of(model).reader._threads:
        thread.join(60)
    with pytest.raises(ModelUnusable, match=rf"^page \d+ of {name} has the checksum"):
        say(model)


def test_a_first_answer_checks_only_pages_that_it_uses(
    directory: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[str] = []

    def check(page: torch.Tensor, layout: PageLayout | ForeignLayout, where: str) -> None:
        checked.append(where)
        check_page(page, layout, where)

    monkeypatch.setattr(mapped, "check_page", check)
    model = build(directory, None)
    experts, used = experts_of(model), set[str]()
    names = {key: f"page {page.row} of {page.tensor_name}" for key, page in experts.pages.items()}

    def note_used(layer_id: int, bank: Bank, expert_ids: torch.Tensor, *_: torch.Tensor) -> None:
        used.update(names[ExpertKey(layer_id, bank, expert_id)] for expert_id in expert_ids.unique().tolist())

    def read_all(*_: object) -> None:
        gate.set()
        for thread in experts.reader._threads[: background._FETCHERS]:
            thread.join(60)

    checked_before_tower_ended: list[str] = []
    checked_before_end: list[str] = []
    model.vision.register_forward_pre_hook(read_all)
    model.vision.register_forward_hook(lambda *_: checked_before_tower_ended.extend(checked))
    model.norm.register_forward_hook(lambda *_: checked_before_end.extend(checked))
    small = image(model, 2, 2)
    Engine(model, 64, on_route=note_used).prefill([*image_ids(model, small), *ids(1, 1)], [small])
    assert checked_before_tower_ended == []
    assert 0 < len(used) < len(names)
    assert sorted(checked_before_end) == sorted(used)
    for thread in experts.reader._threads:
        thread.join(60)
    assert sorted(checked) == sorted(names.values())


def test_a_file_cut_short_while_it_is_read_is_an_error(directory: Path, gate: threading.Event) -> None:
    model = build(directory, None)
    os.truncate(directory / FILE, 1 << 16)
    gate.set()
    with pytest.raises(ModelUnusable, match="the file ends at byte 65536"):
        model.experts.wait_until_resident()
    with pytest.raises(ModelUnusable, match="has 65536 bytes and was changed at"):
        say(model)


def test_a_loaded_model_tells_how_much_is_read(directory: Path, gate: threading.Event) -> None:
    model = ernie_local.load(directory)
    assert model.resident_share == 0
    gate.set()
    model.wait_until_resident()
    assert model.resident_share == 1


def test_a_file_that_changes_later_is_an_error(directory: Path) -> None:
    model = build(directory, None)
    model.experts.wait_until_resident()
    damage(directory, "text", 1)
    with pytest.raises(ModelUnusable, match="which was written to in the meantime"):
        say(model)


def test_a_file_may_be_replaced_or_deleted(directory: Path, gate: threading.Event) -> None:
    gate.set()
    expected = say(build(directory, None))
    gate.clear()
    model = build(directory, None)
    (directory / "new").write_bytes(b"something else")
    (directory / "new").replace(directory / FILE)
    gate.set()
    assert torch.equal(say(model), expected)
    (directory / FILE).unlink()
    assert torch.equal(say(model), expected)


def test_a_forward_that_is_interrupted_while_it_waits_can_be_repeated(
    directory: Path, gate: threading.Event
) -> None:
    gate.set()
    expected = say(build(directory, None))
    gate.clear()
    model = build(directory, None)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            say(model)
    finally:
        signal.signal(signal.SIGALRM, previous)
    gate.set()
    assert torch.equal(say(model), expected)


@pytest.mark.parametrize("closes", [True, False])
def test_models_leave_no_threads_and_no_mappings(directory: Path, closes: bool) -> None:
    def left() -> tuple[int, int]:
        gc.collect()
        for thread in threading.enumerate():
            if thread.name.startswith("ernie-read"):
                thread.join(30)
        gc.collect()
        return len(mappings(directory / FILE)), len(list(Path("/proc/self/fd").iterdir()))

    before = left()
    for _ in range(4):
        model = build(directory, None)
        if closes:
            experts_of(model).close()
        del model
        gc.collect()
    assert left() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ernie-read")]


@pytest.mark.slow
def test_a_program_ends_without_reading_the_rest(directory: Path) -> None:
    code = f"""
import atexit, sys, time
from pathlib import Path
from ernie_local.experts import mapped
from tests.runtime.paged_models import build
mapped.fetch_mapped = lambda part: time.sleep(0.2) or False
experts = build(Path({str(directory)!r}), None).experts
atexit.register(lambda: print(experts.reader.read_bytes, experts.reader.total_bytes))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    num_read, total = map(int, run.stdout.split())
    assert num_read < total
    assert not run.stderr
