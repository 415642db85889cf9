"""Reading values: bit-equal with transformers' state dict in every layout, converted, streamed, bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.checkpoint import reader as reader_module
from ernie_local.checkpoint.names import map_name
from ernie_local.checkpoint.reader import Checkpoint, open_checkpoint
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable

SAVES: dict[str, tuple[str, str]] = {
    "hub": ("hub", "1GB"),
    "hub, sharded": ("hub", "40KB"),
    "saved": ("saved", "1GB"),
    "saved, sharded": ("saved", "40KB"),
    "native": ("native", "1GB"),
    "native, sharded": ("native", "40KB"),
}


def open_saved(directory: Path) -> Checkpoint:
    return open_checkpoint(directory, read_config(directory))


def read_all(checkpoint: Checkpoint, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    values = {}
    for name in checkpoint.names():
        values[name] = torch.full(checkpoint.shape(name), float("nan"), dtype=dtype)
        checkpoint.read(name, values[name])
    return values


def expected_values(oracle: Any) -> dict[str, torch.Tensor]:
    """Our names and values, cut out of transformers' own state dict."""
    values: dict[str, torch.Tensor] = {}
    for name, tensor in oracle.model.state_dict().items():
        for part in map_name(name, oracle.config.text.banks):
            value = tensor if part.row is None else tensor[part.row]
            values[part.name] = value if part.half is None else value.chunk(2)[part.half]
    if oracle.config.text.tie_word_embeddings:
        del values["lm_head.weight"]
    return values


def assert_equal(values: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert torch.equal(value, expected[name].to(value.dtype)), name


@pytest.mark.parametrize("save", SAVES)
def test_every_parameter_is_that_of_transformers(save: str, tiny_oracle: Any, tmp_path: Path) -> None:
    layout, max_shard_size = SAVES[save]
    tiny_oracle.save(tmp_path, layout, max_shard_size)
    expected = expected_values(tiny_oracle)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 5) is ("sharded" in save)
    with open_saved(tmp_path) as checkpoint:
        assert checkpoint.accounts.layout == ("native" if layout == "native" else "hub")
        assert checkpoint.total_bytes == sum(4 * value.numel() for value in expected.values())
        for dtype in (torch.float32, torch.bfloat16):
            assert_equal(read_all(checkpoint, dtype), expected)


@pytest.mark.parametrize("seed", range(4))
def test_random_shapes_are_read_in_both_layouts(
    seed: int, make_random_oracle: Callable[[int], Any], tmp_path: Path
) -> None:
    oracle = make_random_oracle(seed)
    for layout in ("saved", "native"):
        with open_saved(oracle.save(tmp_path / layout, layout, "100KB")) as checkpoint:
            assert_equal(read_all(checkpoint, torch.float32), expected_values(oracle))


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
def test_types_are_converted_as_torch_does(
    stored: torch.dtype, wanted: torch.dtype, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    source = load_file(tiny_checkpoint / "model.safetensors")
    converted = {name: tensor.to(stored) for name, tensor in source.items()}
    save_file(converted, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path, read_config(tiny_checkpoint)) as checkpoint:
        assert {checkpoint.dtype(name) for name in checkpoint.names()} == {stored}
        out = torch.empty(checkpoint.shape("experts.1.text.3.up_proj"), dtype=wanted)
        checkpoint.read("experts.1.text.3.up_proj", out)
        assert torch.equal(out, converted["model.layers.1.mlp.experts.3.up_proj.weight"].to(wanted))
        router = torch.empty(checkpoint.shape("layers.1.moe.vision_router.weight"), dtype=wanted)
        checkpoint.read("layers.1.moe.vision_router.weight", router)
        assert torch.equal(router, converted["model.layers.1.mlp.gate.weight_1"].t().to(wanted))


@pytest.mark.parametrize("chunk_bytes", [1, 100, 4096])
@pytest.mark.parametrize("layout", ["hub", "native"])
def test_chunks_of_any_size_give_the_same(
    chunk_bytes: int, layout: str, tiny_oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "_CHUNK_BYTES", chunk_bytes)
    expected = expected_values(tiny_oracle)
    names = [
        "experts.2.vision.5.gate_proj",
        "layers.1.moe.text_router.weight",
        "layers.2.moe.vision_router.bias",
        "vision.norm.bias",
    ]
    with open_saved(tiny_oracle.save(tmp_path, layout)) as checkpoint:
        for name in names:
            for dtype in (torch.float32, torch.bfloat16):
                out = torch.empty(checkpoint.shape(name), dtype=dtype)
                checkpoint.read(name, out)
                assert torch.equal(out, expected[name].to(dtype)), (name, dtype)


def test_out_may_be_a_slice_a_transpose_or_a_parameter(tiny_checkpoint: Path, tiny_oracle: Any) -> None:
    expected = expected_values(tiny_oracle)
    name = "experts.1.vision.0.down_proj"  # (64, 16)
    with open_saved(tiny_checkpoint) as checkpoint:
        stack = torch.zeros(3, 64, 32)
        checkpoint.read(name, stack[1, :, 8:24])
        assert torch.equal(stack[1, :, 8:24], expected[name])
        stack[1, :, 8:24] = 0
        assert not stack.any()
        turned = torch.empty(16, 64)
        checkpoint.read(name, turned.t())
        assert torch.equal(turned.t(), expected[name])
        parameter = torch.nn.Parameter(torch.empty(64, 16))
        checkpoint.read(name, parameter)
        assert torch.equal(parameter, expected[name])


def test_threads_may_read_at_the_same_time(tiny_checkpoint: Path, tiny_oracle: Any) -> None:
    expected = expected_values(tiny_oracle)
    with open_saved(tiny_checkpoint) as checkpoint, ThreadPoolExecutor(4) as pool:

        def read(name: str) -> torch.Tensor:
            out = torch.empty(checkpoint.shape(name))
            checkpoint.read(name, out)
            return out

        names = checkpoint.names() * 3
        for name, value in zip(names, pool.map(read, names), strict=True):
            assert torch.equal(value, expected[name])


def rewrite(
    source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None], **config: Any
) -> Path:
    """`source` with its tensors and config.json edited, in `target`."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, target / "model.safetensors")
    raw = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, **config}))
    return target


def test_a_second_copy_of_the_tied_head_is_skipped(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def copy_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    with open_saved(rewrite(tiny_checkpoint, tmp_path, copy_head)) as checkpoint:
        assert "lm_head.weight" not in checkpoint.names()
        read_all(checkpoint, torch.bfloat16)


def test_a_head_that_differs_from_the_embedding_is_not_tied(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def other_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["lm_head.weight"][-1, -1] += 1

    out = torch.empty(96, 64)
    with (
        open_saved(rewrite(tiny_checkpoint, tmp_path, other_head)) as checkpoint,
        pytest.raises(ModelUnusable, match=r"'lm_head.weight' differs from the embedding .* 0 to 6144"),
    ):
        checkpoint.read("embed_tokens.weight", out)
    rewrite(tiny_checkpoint, tmp_path, other_head, tie_word_embeddings=False)
    with open_saved(tmp_path) as checkpoint:
        checkpoint.read("lm_head.weight", out)
    assert out[-1, -1] != 0


def test_the_head_stands_in_for_a_tied_embedding(
    tiny_checkpoint: Path, tiny_oracle: Any, tmp_path: Path
) -> None:
    def keep_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    with open_saved(rewrite(tiny_checkpoint, tmp_path, keep_head)) as checkpoint:
        assert_equal(read_all(checkpoint, torch.float32), expected_values(tiny_oracle))


def test_training_counters_are_accounted_for_and_ignored(tiny_checkpoint: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.moe_statics.expert_usage"

    def add_usage(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = torch.ones(2, 8, dtype=torch.int64)

    with open_saved(rewrite(tiny_checkpoint, tmp_path, add_usage)) as checkpoint:
        assert checkpoint.accounts.ignored == (name,)
        assert checkpoint.total_bytes == open_saved(tiny_checkpoint).total_bytes


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("position", [0, 1, 517, 3071])
def test_a_weight_that_is_no_number_is_found_anywhere(
    value: str, dtype: torch.dtype, position: int, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(dtype)
        tensors[name].view(-1)[position] = float(value)

    with open_saved(rewrite(tiny_checkpoint, tmp_path, spoil)) as checkpoint:
        for wanted in (torch.float32, torch.bfloat16):
            with pytest.raises(ModelUnusable) as caught:
                checkpoint.read("experts.1.text.3.up_proj", torch.empty(48, 64, dtype=wanted))
            assert f"model.safetensors: tensor '{name}' holds {value} at element {position} " in str(
                caught.value
            )


def test_a_value_too_large_for_the_type_asked_for_is_found(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = 1e6

    with open_saved(rewrite(tiny_checkpoint, tmp_path, spoil)) as checkpoint:
        with pytest.raises(ModelUnusable, match="holds inf at element 3"):
            checkpoint.read("norm.weight", torch.empty(64, dtype=torch.float16))
        checkpoint.read("norm.weight", torch.empty(64, dtype=torch.bfloat16))


def test_a_file_that_shrinks_after_it_was_checked_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rewrite(tiny_checkpoint, tmp_path, lambda tensors: None)
    path = tmp_path / "model.safetensors"
    with open_saved(tmp_path) as checkpoint:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(ModelUnusable, match=r"should reach byte \d+, the file ends at byte") as caught:
            read_all(checkpoint, torch.float32)
        path.unlink()
    assert str(path) in str(caught.value)
    with pytest.raises(ModelUnusable, match="No such file"):
        checkpoint.read("norm.weight", torch.empty(64))


def test_wrong_use_is_our_own_mistake(tiny_checkpoint: Path) -> None:
    with open_saved(tiny_checkpoint) as checkpoint:
        with pytest.raises(AssertionError):
            checkpoint.read("norm.weight", torch.empty(63))
        with pytest.raises(AssertionError):
            checkpoint.read("norm.weight", torch.empty(64, dtype=torch.int32))
        with pytest.raises(KeyError):
            checkpoint.shape("model.norm.weight")


MEASURE_PEAK = """
import resource, sys, torch
from pathlib import Path
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
directory = Path(sys.argv[1])
dtype = getattr(torch, sys.argv[2])
checkpoint = open_checkpoint(directory, read_config(directory))
outs = {name: torch.zeros(checkpoint.shape(name), dtype=dtype) for name in checkpoint.names()}
num_bytes = sum(out.nbytes for out in outs.values())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, out in outs.items():
    checkpoint.read(name, out)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(num_bytes, (after - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["saved", "native"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_reading_needs_little_memory_beside_the_weights(
    layout: str, wanted: str, make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    text = {
        "vocab_size": 40000,
        "hidden_size": 512,
        "moe_intermediate_size": [1536, 512],
        "moe_num_experts": 16,
    }
    text["head_dim"] = 16
    make_oracle(text=text).save(tmp_path, layout)
    assert (tmp_path / "model.safetensors").stat().st_size > 300 << 20
    result = subprocess.run(
        [sys.executable, "-c", MEASURE_PEAK, str(tmp_path), wanted],
        check=True,
        capture_output=True,
        text=True,
    )
    num_bytes, extra = map(int, result.stdout.split())
    assert num_bytes > 150 << 20
    assert extra < 64 << 20, f"{extra >> 20} MiB beside {num_bytes >> 20} MiB of weights"
