"""Vision tower and resampler leave memory between images where experts are paged, and nobody can tell."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.parts import is_for_images
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, Interrupted, ModelUnusable
from ernie_local.experts.build import PagingSetup
from ernie_local.experts.device import PageMemory
from ernie_local.loading import LoadedModel, LoadOptions, load_model, loader
from ernie_local.loading.build import build_model, checkpoint_weights
from ernie_local.loading.image_weights import ImageWeights
from ernie_local.media.image_size import measure_image
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.memory_use import image_prompt_bytes
from ernie_local.model_files import find_model_files
from ernie_local.planner import fit
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.sizes import MIB
from tests.runtime.paged_models import (
    ids,
    image_prompt,
    num_frames,
    plan_of,
    talk_of_images,
)


@pytest.fixture(scope="module", params=["packed", "plain"])
def directory(request: pytest.FixtureRequest, packed_nano: Path) -> Path:
    return packed_nano if request.param == "packed" else NANO_DIRECTORY


def build(directory: Path, *, swaps: bool, spare_bytes: int = 24 * MIB) -> ErnieModel:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        setup = PagingSetup(plan_of(directory).least_bytes + spare_bytes, swaps_image_weights=swaps)
        return build_model(checkpoint, config, torch.float32, torch.device("cpu"), setup)


@pytest.fixture(scope="module")
def kept(directory: Path) -> ErnieModel:
    return build(directory, swaps=False)


@pytest.fixture
def swapped(directory: Path) -> ErnieModel:
    return build(directory, swaps=True)


def weights_of(model: ErnieModel) -> ImageWeights:
    assert isinstance(model.image_weights, ImageWeights)
    return model.image_weights


def bytes_read(model: ErnieModel) -> list[int]:
    """The numbers of bytes that are read for images from now on."""
    seen: list[int] = []
    weights_of(model)._checkpoint.on_read = seen.append
    return seen


def is_gone(model: ErnieModel) -> bool:
    return not any(tensor.any() for tensor in model.vision.parameters())


# An image, text, a late image, text, a step back, and two images at once: logits of all.
talk = partial(talk_of_images, text_tokens=30, answer_tokens=4)


def test_answers_are_those_of_a_model_that_keeps_its_tower(kept: ErnieModel, swapped: ErnieModel) -> None:
    assert is_gone(swapped)
    assert torch.equal(talk(swapped), talk(kept))
    assert is_gone(swapped)


def test_all_weights_are_the_same_while_they_are_there(
    directory: Path, kept: ErnieModel, swapped: ErnieModel
) -> None:
    weights_of(swapped).read()
    found, expected = swapped.state_dict(), kept.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype, name
    weights_of(swapped).drop()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]) != is_for_images(name), name
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        counted = checkpoint_weights(checkpoint, config, torch.float32)
    assert weights_of(swapped).num_bytes == counted.for_images > 0


def test_each_prompt_with_images_reads_them_once_and_others_never(swapped: ErnieModel) -> None:
    seen, sources = bytes_read(swapped), weights_of(swapped)._checkpoint
    plain = sum(one.num_bytes for name, one in sources.accounts.sources.items() if is_for_images(name))
    packed = sum(one.num_bytes for name, one in sources.packed.items() if is_for_images(name))
    engine = Engine(swapped, 400)
    engine.prefill(ids(20, 1))
    engine.decode(5)
    assert sum(seen) == 0
    engine.prefill(*image_prompt(swapped, 2, 3), should_stop=lambda: False)  # one after the other
    assert sum(seen) == plain + packed
    engine.decode(5)
    Engine(swapped, 400).prefill(ids(20, 3))
    assert sum(seen) == plain + packed
    Engine(swapped, 400).prefill(*image_prompt(swapped, 4))
    assert sum(seen) == 2 * (plain + packed)


def test_experts_have_the_memory_between_images(directory: Path, kept: ErnieModel) -> None:
    """While an image is encoded in the least memory, experts have their least."""
    plan, (tokens, images) = plan_of(directory), image_prompt(kept, 2)
    beside = kept.encoding_bytes(images) + image_prompt_bytes(kept.config, 48, 12, len(tokens), 4)
    num_bytes = weights_of(build(directory, swaps=True)).num_bytes

    def frames(spare_bytes: int) -> tuple[int, int]:
        """While an image is encoded, and in decode after it."""
        model, during = build(directory, swaps=True, spare_bytes=spare_bytes), []
        model.vision.register_forward_pre_hook(lambda *_: during.append(num_frames(model)))
        engine = Engine(model, 100)
        engine.prefill(tokens, images)
        engine.decode(5)
        return during[0], num_frames(model)

    while_encoded, in_decode = frames(num_bytes + beside)
    assert while_encoded == plan.least_frames + 1
    assert in_decode - while_encoded > num_bytes // plan.frame_bytes
    with pytest.raises(DoesNotFit, match="besides experts"):
        frames(num_bytes + beside - 2 * plan.frame_bytes)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is in memory")
def test_the_system_has_their_memory_back(swapped: ErnieModel) -> None:
    def held() -> int:
        memory = weights_of(swapped).memory
        assert isinstance(memory, PageMemory)
        start = memory.bytes.data_ptr()
        total = 0
        for block in Path("/proc/self/smaps").read_text().split("VmFlags"):
            for line in block.splitlines():
                first, _, last = line.partition(" ")[0].partition("-")
                if last and all(digit in "0123456789abcdef" for digit in first + last):
                    is_ours = int(first, 16) <= start < int(last, 16)
                if line.startswith("Rss:") and is_ours:
                    total += int(line.split()[1]) << 10
        return total

    before = held()
    weights_of(swapped).read()
    num_bytes = weights_of(swapped).num_bytes
    assert held() - before >= num_bytes // 2
    weights_of(swapped).drop()
    assert held() - before <= num_bytes // 10


def change_in_place(path: Path) -> None:
    """As a failing disk does: other values, and nothing else to see."""
    config = read_config(path.parent)
    with open_checkpoint(path.parent, config) as checkpoint:
        offset = checkpoint.place("resampler.mlp.weight")[1]
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(offset)
        first = file.read(1)
        file.seek(offset)
        file.write(bytes([first[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def take_away(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").replace(path)


def shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (take_away, r"cannot be read\nNo such file.*\ntry: put the file back, or load the model again"),
        (replace, r"it had .* bytes of .* when the model was loaded"),
        (shorten, r"has \d+ bytes of .*, it had \d+ bytes"),
        (change_in_place, r"have the checksum .*, it was .* before\na file of the model was changed"),
    ],
)
def test_a_file_that_is_not_the_same_any_more(
    tmp_path: Path, packed_nano: Path, harm: Callable[[Path], None], message: str
) -> None:
    copy = Path(shutil.copytree(packed_nano, tmp_path / "model"))
    model, reference = build(copy, swaps=True), build(packed_nano, swaps=False)
    engine, other = Engine(model, 200), Engine(reference, 200)
    first = image_prompt(model, 1)
    assert torch.equal(engine.prefill(*first), other.prefill(*first))
    frames, before = num_frames(model), engine.mark()
    (path,) = copy.glob("*.safetensors")
    harm(path)
    with pytest.raises(ModelUnusable, match=message):
        engine.prefill(*image_prompt(model, 2))
    assert is_gone(model)
    assert (engine.mark(), num_frames(model)) == (before, frames)
    # Pages of experts come from files that are open.
    assert torch.equal(engine.prefill(ids(9, 3)), other.prefill(ids(9, 3)))


def test_a_file_that_changes_before_the_first_image(tmp_path: Path, packed_nano: Path) -> None:
    copy = Path(shutil.copytree(packed_nano, tmp_path / "model"))
    model = build(copy, swaps=True)
    (path,) = copy.glob("*.safetensors")
    replace(path)
    with pytest.raises(ModelUnusable, match="when the model was loaded"):
        Engine(model, 200).prefill(*image_prompt(model, 2))


def test_values_that_cannot_be_used_are_refused_by_the_first_image(tmp_path: Path, packed_nano: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(packed_nano, tmp_path / "model"))
    (path,) = copy.glob("*.safetensors")
    tensors = load_file(path)
    (name,) = [name for name in tensors if "resampler" in name and name.endswith("mlp.weight")]
    tensors[name][1, 1] = float("nan")
    save_file(tensors, path)
    model = build(copy, swaps=True)
    engine = Engine(model, 200)
    for _ in range(2):
        with pytest.raises(ModelUnusable, match="holds nan at element"):
            engine.prefill(*image_prompt(model, 1))
        assert is_gone(model)
    engine.prefill(ids(5, 1))


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


def test_a_read_that_is_interrupted_anywhere_leaves_nothing_behind(
    kept: ErnieModel, swapped: ErnieModel
) -> None:
    reads = bytes_read(swapped)
    engine, other = Engine(swapped, 300), Engine(kept, 300)
    start = image_prompt(kept, 1)
    assert torch.equal(engine.prefill(*start), other.prefill(*start))
    before, frames, num_reads = engine.mark(), num_frames(swapped), len(reads)
    for wanted in range(0, num_reads, max(1, num_reads // 5)):
        left = [wanted]

        def stop(_num_bytes: int, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise _Stop

        weights_of(swapped)._checkpoint.on_read = stop
        with pytest.raises(_Stop):
            engine.prefill(*image_prompt(kept, 2))
        assert is_gone(swapped)
        assert (engine.mark(), num_frames(swapped)) == (before, frames)
    bytes_read(swapped)
    following = image_prompt(kept, 3)
    assert torch.equal(engine.prefill(*following), other.prefill(*following))


def test_a_stop_between_images_drops_them(swapped: ErnieModel) -> None:
    done: list[int] = []
    are_gone: list[bool] = []

    def should_stop() -> bool:
        are_gone.append(is_gone(swapped))
        return done[-1:] == [1]

    with pytest.raises(Interrupted, match="1 of 2 images"):
        Engine(swapped, 200).prefill(
            *image_prompt(swapped, 1, 2), should_stop, lambda _unit, num_done, _all: done.append(num_done)
        )
    assert (are_gone[0], are_gone[-1]) == (True, False)
    assert is_gone(swapped)


def test_a_computation_that_breaks_off_anywhere_drops_them(swapped: ErnieModel) -> None:
    """Ctrl-C may come in the handler of an error, too: the next computation tidies up."""

    def broken() -> None:
        weights_of(swapped).read()
        raise _Stop

    with pytest.raises(_Stop):
        swapped.alone(broken)
    assert not is_gone(swapped)
    Engine(swapped, 20).prefill(ids(5, 1))
    assert is_gone(swapped)


def test_an_image_for_which_experts_cannot_give_way_is_refused_before_anything_is_read(
    directory: Path,
) -> None:
    model = build(directory, swaps=True, spare_bytes=MIB)
    seen = bytes_read(model)
    engine = Engine(model, 50)
    engine.prefill(ids(5, 1))
    with pytest.raises(DoesNotFit, match="besides experts"):
        engine.prefill(*image_prompt(model, 1))
    assert seen == []
    engine.decode(7)


def test_sequences_of_one_model_take_turns(kept: ErnieModel, swapped: ErnieModel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(model: ErnieModel, seed: int) -> torch.Tensor:
        engine = Engine(model, 150)
        rows = [engine.prefill(*image_prompt(model, seed)), *map(engine.decode, ids(5, seed))]
        return torch.stack(
            [*rows, engine.prefill(ids(6, seed)), engine.prefill(*image_prompt(model, seed + 9))]
        )

    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda seed: ask(swapped, seed), range(3)))
    for seed, logits in enumerate(found):
        assert torch.equal(logits, ask(kept, seed))
    assert is_gone(swapped)


def loaded(directory: Path, ram: int) -> LoadedModel:
    told: list[tuple[int, int]] = []
    options = LoadOptions(ram=ram, dtype="float32", context_size=512)
    model = load_model(find_model_files(directory), options, lambda _unit, *progress: told.append(progress))
    assert told[-1][0] == told[-1][1], "what is read later does not count"
    return model


def test_loading_swaps_what_the_planner_says(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And decode has more frames than with the tower in memory, and the same answers."""
    monkeypatch.setattr(loader, "process_memory", lambda: 0)
    size = read_model(directory)
    image = measure_image("image", (112, 84), size.processor)
    chat = ChatPlan(512, "float32", "bfloat16", (image,))
    # So much more than the least that experts run beside a tower that stays, too.
    ram = plan_cpu(size, chat, Budget(MIB)).least_bytes + MIB
    planned = plan_cpu(size, chat, Budget(ram)).placement
    assert planned is not None
    new = loaded(directory, ram)
    assert new.network.image_weights is not None
    assert planned.swapped_bytes == new.network.image_weights.num_bytes
    assert any("only while images are encoded" in note for note in new.paging_notes())
    monkeypatch.setattr(fit, "_holds_experts_of_decode", lambda *_: True)
    old = loaded(directory, ram)
    assert old.network.image_weights is None

    def ask(model: LoadedModel) -> tuple[torch.Tensor, int]:
        engine = model.engine()
        logits = [engine.prefill(*image_prompt(model.network, 1)), engine.decode(9)]
        return torch.stack(logits), num_frames(model.network)

    (mine, many), (theirs, few) = ask(new), ask(old)
    assert torch.equal(mine, theirs)
    plan = plan_of(directory)
    most = plan.most_bytes // plan.frame_bytes
    assert few < most
    assert many >= min(most, few + planned.swapped_bytes // plan.frame_bytes)
