"""Commands on checkpoints built as 28B-A3B-Thinking and 424B-A47B are: names, types, shards, small files.

Once with the published sizes, where weights are holes in sparse files that nobody may read through, and once
with small matrices that compute.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from PIL import Image

from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.index import account
from ernie_local.config import read_config
from tests.cli.running import Command
from tests.published_checkpoint import (
    NUM_SHARDS,
    SMALL_28B,
    SMALL_424B,
    published_tensors,
    write_checkpoint,
)
from tests.published_files import PADDLE_424B, PT_28B

NUM_WEIGHTS, NUM_WEIGHTS_424B = 29_399_294_336, 423_526_285_184
MOST_READ = 300 << 20  # Python's modules, the headers, the tokenizer
_IO = Path("/proc/self/io")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "whole", PT_28B, is_sparse=True)


@pytest.fixture(scope="module")
def whole_424b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "424b", PADDLE_424B, is_sparse=True)


@pytest.fixture(scope="module", params=[SMALL_28B, SMALL_424B], ids=["28B", "424B"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("published") / "small", request.param, is_sparse=False)


def bytes_read() -> int:
    """By this process until now, from files and caches of them; 0 where the system does not count."""
    if not _IO.exists():
        return 0
    return int(_IO.read_text().split("rchar:")[1].split()[0])


def test_it_has_the_published_number_of_tensors_and_bytes(whole: Path) -> None:
    tensors = list(published_tensors(PT_28B))
    assert len(tensors) == len({tensor.name for tensor in tensors}) == 11_106
    shards = list(whole.glob("*.safetensors"))
    assert len(shards) == NUM_SHARDS == 29
    assert sum(path.stat().st_size for path in shards) > 59_000_000_000
    assert sum(path.stat().st_blocks for path in whole.iterdir()) * 512 < 64 << 20


def test_each_of_its_names_is_accounted_for_in_a_second(whole: Path) -> None:
    config = read_config(whole)
    started = time.process_time()
    accounts = account(whole, read_stored_tensors(whole), config)
    assert time.process_time() - started < 2.0  # half a second on a slow core
    assert len(accounts.sources) == 11_105 + 27  # both rows of each correction bias
    assert accounts.tied_head is not None
    assert accounts.ignored == ()


def test_inspect_reads_headers_and_no_weights(command: Command, whole: Path) -> None:
    before = bytes_read()
    value = command("inspect", str(whole), "--json").json()
    assert bytes_read() - before < MOST_READ
    assert value["weights"] == NUM_WEIGHTS
    assert value["layout"] == "hub"
    parts = {part["name"]: part for part in value["parts"]}
    assert parts["routers"]["formats"] == {"f32": 8_850_816}
    assert set(parts["text experts"]["formats"]) == {"bf16"}
    head, limit = value["notes"]
    assert head == "lm_head.weight is the embedding once more: 505.0 MiB of the files, and none of the memory"
    assert limit.startswith("images get up to 4842768 pixels")
    assert "max_pixels 4816896 in" in limit
    assert command("inspect", str(whole)).stdout.endswith(f"{head}\n{limit}\n")


def test_vram_plans_it_from_its_headers(command: Command, whole: Path) -> None:
    before = bytes_read()
    run = command("vram", str(whole), "--ram", "96GiB", "--image", "4000x3000", "--json")
    assert bytes_read() - before < MOST_READ
    value = run.json()
    assert value["model"]["origin"] == "headers"
    assert value["model"]["weights"] == NUM_WEIGHTS
    (image,) = value["images"]
    assert image["tokens"] == 6120
    assert command("vram", str(whole), "--ram", "8GiB", "--bits", "4").exit_code == 0


def test_a_quantization_is_planned_from_its_headers(command: Command, whole: Path, tmp_path: Path) -> None:
    before = bytes_read()
    run = command("quantize", str(whole), str(tmp_path / "q"), "--method", "rtn", "--dry-run", "--json")
    assert bytes_read() - before < MOST_READ
    assert run.exit_code == 0
    assert 13e9 < run.json()["plan"]["weight_bytes"] < 20e9
    assert list(tmp_path.iterdir()) == []


def test_424b_is_planned_from_its_headers(command: Command, whole_424b: Path, tmp_path: Path) -> None:
    """In RAM that holds one layer's experts at a time, and not those of all layers."""
    before = bytes_read()
    inspected = command("inspect", str(whole_424b), "--json").json()
    parts = {part["name"] for part in inspected["parts"]}
    assert inspected["weights"] == NUM_WEIGHTS_424B
    assert "head" in parts
    assert "shared experts" not in parts
    planned = command(
        "vram", str(whole_424b), "--bits", "2", "--ram", "32GiB", "--image", "448x448", "--json"
    )
    value = planned.json()
    assert value["model"]["file_bytes"] > 3 * (32 << 30)
    assert 0 < value["cpu"]["resident_share"] < 0.3
    run = command("quantize", str(whole_424b), str(tmp_path / "q"), "--method", "rtn", "--dry-run", "--json")
    assert bytes_read() - before < MOST_READ
    assert run.json()["plan"]["weight_bytes"] > 6 * run.json()["plan"]["memory_bytes"]


def test_the_small_ones_are_whole(command: Command, small: Path) -> None:
    value = command("verify", str(small), "--json").json()
    assert value["findings"] == []
    config = read_config(small)
    # Both rows of each correction bias, and no head where it is the embedding.
    tensors = list(published_tensors(json.loads((small / "config.json").read_text())))
    layers = sum(config.text.moe_layers)
    assert value["tensors"] == len(tensors) + layers - config.text.tie_word_embeddings


def test_the_small_ones_answer_about_text_and_an_image(command: Command, small: Path, tmp_path: Path) -> None:
    Image.linear_gradient("L").save(tmp_path / "page.png")
    options = ("--max-tokens", "3", "--ctx-size", "512", "--json")
    run = command("chat", str(small), "-p", "What is it?", "--image", str(tmp_path / "page.png"), *options)
    assert run.exit_code == 0
    usage = run.json()["usage"]
    assert usage["image_tokens"] == 81
    assert usage["completion_tokens"] == 3


@pytest.mark.slow
def test_the_small_ones_are_quantized_and_answer(command: Command, small: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "packed")
    made = command("quantize", str(small), out, "--method", "rtn", "--bits", "4", "--json")
    assert made.exit_code == 0
    assert not any("safetensors" in note for note in made.json()["notes"])
    assert command("verify", out).exit_code == 0
    assert command("chat", out, "-p", "hi", "--max-tokens", "3", "--ctx-size", "512").exit_code == 0
