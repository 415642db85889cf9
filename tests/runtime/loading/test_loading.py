"""`ernie_local.load`: refusals before reading, memory while reading, and every way to name an image."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import ernie_local
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.errors import DoesNotFit, InputUnreadable, ModelUnusable, UsageError
from ernie_local.loading import LoadOptions, load_model
from ernie_local.loading.loader import MemoryLimits
from ernie_local.loading.options import ThreadWarning, use_threads
from ernie_local.model_files import find_model_files
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import process_bytes
from tests.runtime.system_trees import hybrid_files, v2_tree, write_tree

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel
    from ernie_local.media.open_image import ImageSource
    from ernie_local.media.patches import Patches
    from tests.conftest import Oracle

IMAGE_TOKEN, IMAGE_START, IMAGE_END = 5, 6, 7
PROMPT = [20, IMAGE_START, IMAGE_TOKEN, IMAGE_END, 21, 22]


@pytest.fixture
def no_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any weight that is read fails the test."""

    def refuse(_self: Checkpoint, name: str, _out: torch.Tensor) -> None:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "read", refuse)


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """An image with many colours, 90 x 60."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_importing_the_package_imports_no_torch_and_no_transformers() -> None:
    code = (
        "import sys, ernie_local as e; print(e.__version__, 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0.1.0", "False", "False"]


def test_loading_and_running_imports_no_transformers(tiny_checkpoint: Path) -> None:
    code = (
        "import sys, ernie_local\n"
        f"ernie_local.load({str(tiny_checkpoint)!r}).logits([20, 21, 22])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "False", "False"]


def test_a_quota_is_obeyed_and_told(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.warns(ThreadWarning, match=r"1 thread instead of 2: .* 0\.5 CPUs"):
            use_threads(None, v2_tree(tmp_path, "/", {"cpu.max": "50000 100000"}))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("measured", "threads"), [(None, 2), (False, 2), (True, 6)])
def test_efficiency_cores_compute_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: bool | None, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    monkeypatch.setattr("ernie_local.planner.cpu_limits._usable_processors", lambda: frozenset(range(8)))
    expected = (
        nullcontext()
        if measured
        else pytest.warns(ThreadWarning, match="2 threads instead of 6: .*efficiency cores")
    )
    try:
        with expected:
            use_threads(None, write_tree(tmp_path, hybrid_files(2, 4)), efficiency_cores=measured)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_the_public_names() -> None:
    assert set(ernie_local.__all__) <= set(dir(ernie_local))
    assert callable(ernie_local.load)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        ernie_local.quantise  # noqa: B018


@pytest.mark.usefixtures("no_reads")
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(
        DoesNotFit, match=r"device 'cuda' was asked for, but torch sees 0 CUDA GPUs"
    ) as caught:
        ernie_local.load(tiny_checkpoint, device="cuda")
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_reads")
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"device": "tpu"}, r"device 'tpu' is not one of cpu, cuda"),
        ({"dtype": "float16"}, r"dtype 'float16' is not one of float32, bfloat16"),
        ({"dtype": "int4"}, r"dtype 'int4' is not one of float32, bfloat16"),
        ({"kv_dtype": "int4"}, r"kv_dtype 'int4' is not one of float32, bfloat16, float16, int8"),
        ({"ram": "lots"}, r"ram 'lots' is not a size"),
        ({"ram": 0}, r"ram is 0 bytes, at least 1"),
        ({"ram": "6GiB", "reserve": "1GiB"}, r"reserve=\"1GiB\" with ram=\"6GiB\""),
        ({"reserve": "some"}, r"reserve 'some' is not a size"),
        ({"reserve": -1}, r"reserve is -1 bytes, at least 0"),
        ({"ram": "0"}, r"ram '0' is 0, at least 1"),
        ({"context_size": 0}, r"context size of 0 tokens, at least 1"),
        ({"chunk_tokens": 0}, r"chunk size of 0 tokens, at least 1"),
        ({"parallel": 0}, r"parallel=0 is not a number from 1 to 16"),
        ({"parallel": 17}, r"parallel=17 is not a number from 1 to 16"),
        ({"parallel": "many"}, r"parallel=\"many\" is not a number"),
    ],
)
def test_options_that_mean_nothing(tiny_checkpoint: Path, options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ernie_local.load(tiny_checkpoint, **options)


def test_conversations_at_once(tiny_checkpoint: Path) -> None:
    for asked, expected in (("auto", 8), (5, 5), (1, 1)):
        model = ernie_local.load(tiny_checkpoint, context_size=64, parallel=asked)
        assert model.settings.parallel == expected


@pytest.mark.parametrize("reserve", [0, "0", "0GiB"])
def test_nothing_may_be_left_to_others(reserve: str | int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ernie_local.loading.loader.free_memory", lambda: 40 << 30)
    options = LoadOptions(reserve=reserve)
    chat = ChatPlan(1024, "float32", "float32")
    ram = MemoryLimits.of(options, torch.device("cpu")).find_ram(process_bytes(chat))
    assert ram.total - ram.used > (40 << 30) - (1 << 30)


@pytest.mark.usefixtures("no_reads")
@pytest.mark.parametrize("ram", ["300KiB", 300 * 1024])
def test_a_ram_limit_below_what_paging_needs(tiny_checkpoint: Path, ram: str | int) -> None:
    with pytest.raises(
        DoesNotFit, match=r"the model needs at least .* of memory, ram is 300\.0 KiB"
    ) as caught:
        ernie_local.load(tiny_checkpoint, ram=ram, context_size=16)
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("no_reads")
def test_more_than_the_machine_has(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small:
        available = 1000

    monkeypatch.setattr("psutil.virtual_memory", Small)
    with pytest.raises(DoesNotFit, match=r"the model needs at least .* of memory, .* are available"):
        ernie_local.load(tiny_checkpoint)


def test_weight_bytes_are_exact(tiny_oracle: Oracle, tiny_checkpoint: Path) -> None:
    num_router = sum(p.numel() for name, p in tiny_oracle.model.named_parameters() if "_moe.gate." in name)
    num_other = sum(p.numel() for p in tiny_oracle.model.parameters()) - num_router
    for dtype, item_bytes in (("float32", 4), ("bfloat16", 2)):
        model = ernie_local.load(tiny_checkpoint, dtype=dtype)
        assert model.weight_bytes == 4 * num_router + item_bytes * num_other
        held = sum(tensor.nbytes for tensor in model.network.parameters())
        assert held + model.network.experts.num_bytes == model.weight_bytes  # type: ignore[attr-defined]
    assert model.load_seconds > 0


def test_nothing_is_left_on_the_meta_device_or_asks_for_gradients(tiny_model: LoadedModel) -> None:
    for tensor in [*tiny_model.network.parameters(), *tiny_model.network.buffers()]:
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad
    assert not tiny_model.logits([20, 21]).requires_grad


@pytest.mark.parametrize("kept", ["config.json", "model.safetensors"])
def test_half_a_directory(tiny_checkpoint: Path, tmp_path: Path, kept: str) -> None:
    shutil.copy(tiny_checkpoint / kept, tmp_path)
    with pytest.raises(ModelUnusable):
        ernie_local.load(tmp_path)


def test_a_directory_without_tokenizer_serves_logits_and_names_the_file_otherwise(
    tiny_model: LoadedModel,
) -> None:
    assert tiny_model.logits([20, 21]).shape == (2, 96)
    with pytest.raises(ModelUnusable, match=r"tokenizer\.model"):
        _ = tiny_model.tokenizer
    assert tiny_model.image_processor.max_pixels == 4842768


def test_processor_settings_of_the_directory_are_used(
    tiny_checkpoint: Path, tmp_path: Path, photo: Image.Image
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path, dirs_exist_ok=True)
    settings = {"min_pixels": 56 * 56, "max_pixels": 56 * 56}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    model = ernie_local.load(tmp_path)
    assert [patches.num_tokens for patches in model.patches([photo])] == [2]


def test_every_form_of_a_image_is_the_same_image(
    tiny_model: LoadedModel, photo: Image.Image, tmp_path: Path
) -> None:
    photo.save(tmp_path / "photo.png")
    pixels = np.asarray(photo)
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    forms: list[ImageSource | Patches] = [
        str(tmp_path / "photo.png"),
        tmp_path / "photo.png",
        stream.getvalue(),
        pixels,
        pixels.transpose(2, 0, 1),
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        tiny_model.patches([photo])[0],
    ]
    expected = tiny_model.logits(PROMPT, images=[photo])
    for form in forms:
        assert torch.equal(tiny_model.logits(PROMPT, images=[form]), expected)


def test_gray_arrays(tiny_model: LoadedModel) -> None:
    gray = np.random.default_rng(1).integers(0, 256, (56, 56), dtype=np.uint8)
    coloured = np.repeat(gray[..., None], 3, axis=-1)
    (expected,) = tiny_model.patches([coloured])
    for form in (gray, gray[None], gray[..., None]):
        (patches,) = tiny_model.patches([form])
        assert torch.equal(patches.pixel_values, expected.pixel_values)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((56, 56, 3), dtype=np.float32),
        np.zeros((56, 56, 5), dtype=np.uint8),
        np.zeros((2, 3, 56, 56), dtype=np.uint8),
        np.zeros((0, 56, 3), dtype=np.uint8),
        torch.zeros(3, 56, 56),
    ],
)
def test_arrays_that_are_no_images(tiny_model: LoadedModel, array: Any) -> None:
    with pytest.raises(InputUnreadable, match=r"an array of (float32|shape \(.*\)) is not an image"):
        tiny_model.logits(PROMPT, images=[array])


def test_what_is_no_image_at_all(tiny_model: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match=r"a int is not an image"):
        tiny_model.logits(PROMPT, images=[7])  # type: ignore[list-item]
    with pytest.raises(InputUnreadable):
        tiny_model.logits(PROMPT, images=[tmp_path / "missing.png"])


def test_one_placeholder_is_expanded_and_all_placeholders_are_kept(
    tiny_model: LoadedModel, tiny_oracle: Oracle, photo: Image.Image
) -> None:
    count = tiny_model.patches([photo])[0].num_tokens
    full = [20, IMAGE_START, *[IMAGE_TOKEN] * count, IMAGE_END, 21, 22]
    logits = tiny_model.logits(full, images=[photo])
    assert torch.equal(tiny_model.logits(PROMPT, images=[photo]), logits)
    expected = tiny_oracle.run(full, tiny_model.patches([photo])).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UsageError, match=rf"2 image placeholder tokens for 1 images of {count} tokens"):
        tiny_model.logits([20, IMAGE_TOKEN, IMAGE_TOKEN], images=[photo])


@pytest.mark.parametrize("wrap", [list, tuple, torch.tensor, lambda ids: torch.tensor([ids]), np.array])
def test_ids_in_any_form(tiny_model: LoadedModel, wrap: Callable[[list[int]], Any]) -> None:
    ids = [20, 21, 22, 23]
    assert torch.equal(tiny_model.logits(wrap(ids)), tiny_model.logits(ids))


@pytest.mark.parametrize("ids", [torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3)])
def test_ids_that_are_not_one_sequence(tiny_model: LoadedModel, ids: torch.Tensor) -> None:
    with pytest.raises(UsageError, match=r"input_ids of shape"):
        tiny_model.logits(ids)


def test_a_context_size_given_to_load_binds_logits_too(tiny_checkpoint: Path) -> None:
    model = ernie_local.load(tiny_checkpoint, context_size=8)
    assert model.logits([20] * 8).shape[0] == 8
    with pytest.raises(DoesNotFit, match=r"9 tokens do not fit into a context of 8"):
        model.logits([20] * 9)
    assert model.engine().context_size == 8


def test_router_choices_cover_chunks(
    tiny_checkpoint: Path, tiny_model: LoadedModel, tiny_oracle: Oracle
) -> None:
    ids, images = tiny_oracle.prompt([5, tiny_oracle.image(4, 4), 6])
    chunked = ernie_local.load(tiny_checkpoint, chunk_tokens=3).router_choices(ids, images)
    for one, other in zip(chunked, tiny_model.router_choices(ids, images), strict=True):
        assert torch.equal(one, other)


_MEASURE = """
import json, sys, threading, time
import psutil, torch
from ernie_local.loading import load
process = psutil.Process()
for dtype in ("float32", "bfloat16"):
    load(sys.argv[1], dtype=dtype)  # imports and first allocations of every kind
    samples, done = [], threading.Event()
    def watch():
        while not done.is_set():
            samples.append(process.memory_info().rss)
            time.sleep(0.001)
    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    weight_bytes = load(sys.argv[2], dtype=dtype).weight_bytes
    done.set()
    watcher.join()
    print(json.dumps([dtype, max(samples) - before, weight_bytes]))
"""


@pytest.mark.slow
def test_memory_while_loading_is_that_of_the_weights(
    make_oracle: Callable[..., Oracle], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    text = {
        "hidden_size": 256,
        "moe_intermediate_size": [512, 256],
        "moe_num_experts": 24,
        "vocab_size": 20000,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [12, 12, 8]},
    }
    make_oracle(text=text).save(tmp_path, "hub")
    command = [sys.executable, "-c", _MEASURE, str(tiny_checkpoint), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    measured = [json.loads(line) for line in run.stdout.splitlines()]
    assert [dtype for dtype, _, _ in measured] == ["float32", "bfloat16"]
    for dtype, risen, weight_bytes in measured:
        assert weight_bytes > 64 << 20
        # A second copy of the weights, or of the embedding alone, would show.
        assert risen < weight_bytes + (16 << 20), dtype


def test_several_threads_read_plain_weights(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together, read, num_reads = threading.Barrier(2), Checkpoint.read, itertools.count()

    def read_beside_another(self: Checkpoint, name: str, out: torch.Tensor) -> None:
        if next(num_reads) < 2:
            together.wait(30)
        read(self, name, out)

    monkeypatch.setattr(Checkpoint, "read", read_beside_another)
    model = ernie_local.load(tiny_checkpoint)
    with open_checkpoint(tiny_checkpoint, model.config) as checkpoint:
        assert next(num_reads) == len(checkpoint.names())


@pytest.mark.parametrize("name", ["tiny_checkpoint", "packed_nano"])
def test_progress_of_weights_ends_with_all_of_them(request: pytest.FixtureRequest, name: str) -> None:
    told: list[tuple[str, int, int]] = []
    files = find_model_files(request.getfixturevalue(name))
    load_model(files, LoadOptions(context_size=16), lambda *progress: told.append(progress))
    assert {unit for unit, _, _ in told} == {"weights"}
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert told[-1][1] == told[-1][2]
