"""A model's sizes as the planner knows them: the published counts, the files that are written, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.parts import model_parts, stored_tensors
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles, TensorEntry
from ernie_local.config import parse_config, read_config
from ernie_local.errors import DoesNotFit, InputUnreadable, ModelUnusable, UsageError
from ernie_local.experts.build import page_ranges, stored_page_bytes
from ernie_local.loading.build import build_model, checkpoint_weights
from ernie_local.media.image_size import measure_image, smart_resize
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.model.kv_cache import KV_DTYPES, KVCache
from ernie_local.model.memory_use import KV_ITEM_BYTES, encoding_bytes
from ernie_local.planner.model_size import ModelSize, published_model, read_model, with_formats
from ernie_local.planner.need import ChatPlan
from ernie_local.sizes import MIB
from tests.conftest import PackNano
from tests.published_files import PADDLE_424B, PT_28B

# From the reference: parameters of ERNIE-4.5-VL-28B-A3B by part, routers with their biases.
PUBLISHED = {
    "text experts": 20_384_317_440,
    "vision experts": 6_794_772_480,
    "routers": 8_850_816,
    "shared experts": 637_009_920,
    "vision tower": 630_433_280,
    "resampler": 144_225_280,
    "attention": 440_401_920,
    "dense layers": 94_371_840,
    "embedding": 264_765_440,
    "norms": 145_920,
}


def nano(choice: FormatChoice) -> ModelSize:
    return with_formats(read_model(NANO_DIRECTORY), choice, "--bits")


def test_the_published_model_has_the_published_counts() -> None:
    model = published_model()
    assert {part.name: part.weights for part in model.parts} == PUBLISHED
    assert model.config == parse_config(PT_28B, "config.json")
    assert sum(PUBLISHED.values()) == 29_399_294_336
    assert model.weights(2).total == 2 * 29_399_294_336 + 2 * PUBLISHED["routers"]


def test_the_424b_model_has_the_published_count(tmp_path: Path) -> None:
    """423.5 B parameters; each weight by the sizes once more, without the names of tensors."""
    (tmp_path / "config.json").write_text(json.dumps(PADDLE_424B))
    model = read_model(tmp_path)
    assert published_model("ernie-4.5-vl-424b-a47b").config == model.config
    hidden, moe_layers = 8192, 51
    counts = {part.name: part.weights for part in model.parts}
    assert counts["text experts"] == moe_layers * 64 * 3 * hidden * 3584
    assert counts["vision experts"] == moe_layers * 64 * 3 * hidden * 1536
    assert counts["dense layers"] == 3 * 3 * hidden * 28672
    assert counts["attention"] == 54 * 2 * (hidden + 8 * 128) * hidden
    assert counts["head"] == counts["embedding"] == 103424 * hidden
    assert counts["vision tower"] == PUBLISHED["vision tower"]
    assert "shared experts" not in counts
    assert round(sum(counts.values()) / 1e8) == 4235


def test_each_token_of_the_published_model_takes_56_kib_of_cache() -> None:
    text = published_model().config.text
    sizes = {dtype: ChatPlan(131072, "float32", dtype).kv_size(text) for dtype in KV_ITEM_BYTES}
    assert sizes["bfloat16"].bytes_per_token == sizes["float16"].bytes_per_token == 57_344
    assert sizes["float32"].bytes_per_token == 2 * 57_344
    assert sizes["int8"].bytes_per_token == 28 * 2 * 4 * (128 + 4)
    assert sizes["bfloat16"].num_bytes == 7 << 30


def test_the_planner_names_the_types_of_caches_that_there_are() -> None:
    assert {name: dtype.itemsize for name, dtype in KV_DTYPES.items()} == KV_ITEM_BYTES
    text = read_config(NANO_DIRECTORY).text
    for name, dtype in KV_DTYPES.items():
        cache = KVCache(text, 77, dtype, torch.device("cpu"))
        assert ChatPlan(77, "float32", name).kv_size(text).num_bytes == cache.num_bytes


@pytest.fixture(scope="module")
def packed(pack_nano: PackNano) -> Path:
    return pack_nano(FormatChoice("w2-w4"))


def write_headers(directory: Path, model: ModelSize) -> None:
    """A checkpoint of this model as the writer lays it out, all numbers zero."""
    types = {"U8": torch.uint8, "F32": torch.float32, "BF16": torch.bfloat16}
    entries = [TensorEntry(tensor.name, types[tensor.code], tensor.shape) for tensor in model.tensors]
    tables = model.config.quantization
    raw = json.loads((NANO_DIRECTORY / "config.json").read_text())
    directory.mkdir()
    CheckpointFiles(directory, entries, largest_shard=8 * MIB).create()
    if tables is not None:
        raw["quantization_config"] = tables.to_json()
    (directory / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "choice",
    [
        FormatChoice(),
        FormatChoice("w2", "w4"),
        FormatChoice("w2-w2l"),
        FormatChoice("w4", small_experts="w2"),
        FormatChoice("nf4g64"),
    ],
    ids=str,
)
def test_config_alone_says_what_headers_say(tmp_path: Path, choice: FormatChoice) -> None:
    reckoned = nano(choice)
    write_headers(tmp_path / "model", reckoned)
    read = read_model(tmp_path / "model")
    assert (read.origin, reckoned.origin) == ("headers", "config")
    assert read.parts == reckoned.parts
    assert read.weights(4) == reckoned.weights(4)
    assert read.paging_plan is not None
    assert reckoned.paging_plan is not None
    assert read.paging_plan.least_bytes == reckoned.paging_plan.least_bytes
    # Shards have headers of their own.
    assert read.file_bytes == pytest.approx(reckoned.file_bytes, rel=0.005)


def test_the_size_of_files_is_the_written_size_to_the_byte(packed: Path) -> None:
    reckoned = nano(FormatChoice("w2-w4"))
    written = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    assert read_model(packed).file_bytes == reckoned.file_bytes == written


@pytest.mark.parametrize("is_packed", [False, True])
def test_weights_in_memory_are_what_a_loaded_model_holds(packed: Path, is_packed: bool) -> None:
    directory = packed if is_packed else NANO_DIRECTORY
    config = read_config(directory)
    for dtype in (torch.float32, torch.bfloat16):
        with open_checkpoint(directory, config) as checkpoint:
            network = build_model(checkpoint, config, dtype, torch.device("cpu"))
            counted = checkpoint_weights(checkpoint, config, dtype)
        dense = [*network.parameters(), *network.buffers()]
        assert counted.dense == sum(tensor.nbytes for tensor in dense)
        assert counted.experts == network.experts.num_bytes  # type: ignore[attr-defined]
        assert read_model(directory).weights(dtype.itemsize) == counted


@pytest.mark.parametrize("is_packed", [False, True])
def test_pages_are_those_in_the_files(packed: Path, is_packed: bool) -> None:
    directory = packed if is_packed else NANO_DIRECTORY
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        ranges = page_ranges(checkpoint, config)
        sizes = stored_page_bytes(checkpoint, config)
    assert sizes == {key: sum(part.num_bytes for part in parts) for key, parts in ranges.items()}
    assert list(sizes) == list(ranges)


def test_a_directory_without_weights_is_reckoned_from_its_config(tmp_path: Path) -> None:
    shutil.copy(NANO_DIRECTORY / "config.json", tmp_path)
    shutil.copy(NANO_DIRECTORY / "preprocessor_config.json", tmp_path)
    model, whole = read_model(tmp_path), read_model(NANO_DIRECTORY)
    assert (model.origin, whole.origin) == ("config", "headers")
    assert model.weights(2) == whole.weights(2)
    assert model.processor == whole.processor
    assert model.file_bytes == pytest.approx(whole.file_bytes, rel=0.005)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "qwen3_moe"), ("moe_num_hot_experts", 8), ("num_local_experts", 64)],
)
def test_another_architecture_and_unknown_experts_are_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    raw = json.loads((NANO_DIRECTORY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
    with pytest.raises(ModelUnusable, match=key):
        read_model(tmp_path)


def test_a_quantized_model_is_not_quantized_again() -> None:
    with pytest.raises(UsageError, match="--bits"):
        with_formats(nano(FormatChoice()), FormatChoice(), "--bits")


def test_parts_of_a_checkpoint_hold_every_byte_once() -> None:
    config = read_config(NANO_DIRECTORY)
    with open_checkpoint(NANO_DIRECTORY, config) as checkpoint:
        parts = model_parts(stored_tensors(checkpoint.accounts, config), config)
        assert sum(part.num_bytes for part in parts) == checkpoint.total_bytes


@pytest.mark.parametrize(
    ("width", "height", "tokens", "scale"),
    [(1240, 1754, 2772, 1.0), (1654, 2339, 4956, 1.0), (2480, 3508, 6138, 0.74), (1920, 1080, 2691, 1.0)],
)
def test_images_cost_what_the_reference_says(width: int, height: int, tokens: int, scale: float) -> None:
    config = published_model().config
    processor = ImageProcessorConfig()
    priced = measure_image("page", (width, height), processor)
    resized = smart_resize(height, width, 28, processor.min_pixels, processor.max_pixels)
    assert priced.resized_size == resized[::-1]
    assert (priced.tokens, priced.patches) == (tokens, 4 * tokens)
    assert priced.scale == pytest.approx(scale, abs=0.01)
    assert encoding_bytes(config.vision, [priced.patches]) == (5 * 4 * tokens + 28 * 512) * 1280 * 4
    assert encoding_bytes(config.vision, [priced.patches], 2) == (5 * 4 * tokens + 28 * 512) * 1280 * 2


def test_a_strip_is_refused() -> None:
    with pytest.raises(InputUnreadable, match="strip: 1 x 300"):
        measure_image("strip", (1, 300), ImageProcessorConfig())


def test_a_context_filled_by_images_is_refused() -> None:
    image = measure_image("page", (2480, 3508), ImageProcessorConfig())
    ChatPlan(6141, "float32", "bfloat16", (image,)).check_images(131072)
    with pytest.raises(DoesNotFit, match=r"6140 tokens, the context has 6140.*\n.*\ntry: context_size=7168"):
        ChatPlan(6140, "float32", "bfloat16", (image,)).check_images(131072)
