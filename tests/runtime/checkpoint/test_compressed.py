"""Checkpoints that other tools quantized: values bit-equal with those of compressed-tensors itself."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.checkpoint import dequantize
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import parse_config, read_config
from ernie_local.errors import DoesNotFit, ModelUnusable
from ernie_local.verify import verify
from tests.compressed_export import (
    KINDS,
    read_tensors,
    reorder_groups,
    save_plain,
    write_awq,
    write_checkpoint_of,
    write_compressed,
    write_dequantized,
    write_fp8_blocks,
)


@pytest.fixture(scope="session")
def plain(make_oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bfloat16 model in the hub's layout. Not to be written to."""
    return save_plain(make_oracle, tmp_path_factory.mktemp("plain"))


def read_all(directory: Path) -> dict[str, torch.Tensor]:
    with open_checkpoint(directory, read_config(directory)) as checkpoint:
        values = {name: torch.empty(checkpoint.shape(name)) for name in checkpoint.names()}
        for name, out in values.items():
            checkpoint.read(name, out)
    return values


def assert_equal(directory: Path, plain: Path) -> None:
    """That both have the same values, read in blocks of any size."""
    expected = read_all(plain)
    for block_weights in (1 << 20, 1, 100 * 192):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dequantize, "_BLOCK_WEIGHTS", block_weights)
            found = read_all(directory)
        assert found.keys() == expected.keys()
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_library(kind: str, plain: Path, tmp_path: Path) -> None:
    compressed = write_compressed(plain, tmp_path / "compressed", kind)
    assert_equal(compressed, write_dequantized(compressed, plain, tmp_path / "expected"))


def assert_all(directory: Path, meant: dict[str, torch.Tensor], plain: Path, tmp_path: Path) -> None:
    """That the checkpoint has these values. meant: by the names in the hub's layout."""
    assert_equal(directory, write_checkpoint_of(plain, tmp_path / "expected", meant, None))


@pytest.mark.parametrize("zeros", [True, False])
def test_awq(plain: Path, tmp_path: Path, zeros: bool) -> None:
    assert_all(*write_awq(plain, tmp_path / "awq", zeros=zeros), plain, tmp_path)


def test_fp8_in_blocks(plain: Path, tmp_path: Path) -> None:
    assert_all(*write_fp8_blocks(plain, tmp_path / "fp8"), plain, tmp_path)


@pytest.mark.parametrize("kind", ["int4 group 32", "int3 group 32 zeros"])
def test_groups_in_another_order(kind: str, plain: Path, tmp_path: Path) -> None:
    usual = write_compressed(plain, tmp_path / "usual", kind)
    reordered, meant = reorder_groups(usual, tmp_path / "reordered", 32)
    rest = read_tensors(plain)
    assert_all(reordered, rest | meant, plain, tmp_path)


@pytest.mark.parametrize("kind", ["int4 group 32 zeros", "fp8 block", "int8 plain", "awq", "fp8"])
def test_some_rows_are_those_of_the_whole(kind: str, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "compressed"
    if kind in KINDS:
        write_compressed(plain, out, kind)
    else:
        (write_awq if kind == "awq" else write_fp8_blocks)(plain, out)
    name = "layers.0.mlp.gate_proj.weight"
    with open_checkpoint(out, read_config(out)) as checkpoint:
        whole = torch.empty(checkpoint.shape(name))
        checkpoint.read(name, whole)
        for first, count in ((0, 1), (31, 2), (45, 100), (250, 6), (13, 243)):
            some = torch.empty(count, whole.shape[1])
            checkpoint.read_rows(name, first, some)
            assert torch.equal(some, whole[first : first + count]), (first, count)


MODULE = "model.layers.0.self_attn.q_proj."
Tamper = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


def with_value(suffix: str, value: float) -> Tamper:
    return lambda tensors, _config: tensors[f"{MODULE}{suffix}"].view(-1).__setitem__(5, value)


def with_tensor(suffix: str, tensor: torch.Tensor) -> Tamper:
    return lambda tensors, _config: tensors.__setitem__(f"{MODULE}{suffix}", tensor)


def plain_in_place_of_parts(tensors: dict[str, torch.Tensor], _config: dict[str, Any]) -> None:
    for name in [name for name in tensors if name.startswith(MODULE)]:
        del tensors[name]
    tensors[f"{MODULE}weight"] = torch.ones(192, 192, dtype=torch.bfloat16)


BROKEN: dict[str, tuple[Tamper, str]] = {
    "no scales": (
        lambda tensors, _config: tensors.pop(f"{MODULE}weight_scale"),
        r"q_proj\.weight_scale is missing: 3 of 4 parts",
    ),
    "scales of another shape": (
        with_tensor("weight_scale", torch.ones(192, 5, dtype=torch.bfloat16)),
        r"is BF16 of shape \(192, 5\), expected F32 or F16 or BF16 of shape \(192, 6\)",
    ),
    "codes of another type": (
        with_tensor("weight_packed", torch.ones(192, 24, dtype=torch.int64)),
        r"is I64 of shape \(192, 24\), expected I32 of shape \(192, 24\)",
    ),
    "a scale that is no number": (
        with_value("weight_scale", float("nan")),
        r"q_proj\.weight_scale' holds nan at element 5, the first of 1",
    ),
    "a scale of 0": (with_value("weight_scale", 0.0), r"weight_scale' holds 0 at element 5"),
    "a scale below 0": (with_value("weight_scale", -2.0), r"weight_scale' holds -2 at element 5"),
    "another shape before packing": (
        with_tensor("weight_shape", torch.tensor([192, 190])),
        r"says 192 x 190, by config\.json it is 192 x 192",
    ),
    "a group that does not divide": (
        lambda _tensors, config: weights_of(config).update(group_size=36),
        r"groups of 36 columns in a matrix of 256",
    ),
    "zero points of symmetric weights": (
        lambda _tensors, config: weights_of(config).update(symmetric=True),
        r"weight_zero_point' is one too many: .* has 3 parts, not 4",
    ),
    "quantized though ignored": (
        lambda _tensors, config: config["ignore"].append("re:.*q_proj"),
        r"q_proj.* a part of a quantized matrix; ignore in quantization_config names it among 7",
    ),
    "plain though targeted": (
        plain_in_place_of_parts,
        r"q_proj\.weight' is BF16, one of 1 matrices that .* are quantized and that are not; 37 are",
    ),
    "two layouts": (
        with_tensor("weight", torch.ones(192, 192, dtype=torch.bfloat16)),
        r"q_proj\.weight' is BF16, and 4 parts of the same matrix .* are there too",
    ),
    "a matrix of no model": (
        lambda tensors, _config: tensors.update(
            {"model.layers.9.mlp.up_proj.weight_scale": torch.ones(2, 2)}
        ),
        r"layers\.9\.mlp\.up_proj\.weight_scale' of shape \(2, 2\) is one too many",
    ),
    "no group for it": (
        lambda _tensors, config: group_of(config).update(targets=["re:.*mlp"]),
        r"self_attn.* a part of a quantized matrix, and 0 of 1 targets",
    ),
    "a group of nothing": (
        lambda _tensors, config: config["config_groups"].update(
            more={**group_of(config), "targets": ["model.layers.7.x"]}
        ),
        r"has the group more in int4-g32-zeros, and 0 of the 38 quantized matrices",
    ),
    "no quantization_config": (
        lambda _tensors, config: config.clear(),
        r"is a part of a quantized matrix, one of 38, and config\.json has no quantization_config",
    ),
}


def group_of(config: dict[str, Any]) -> dict[str, Any]:
    group: dict[str, Any] = config["config_groups"]["group_0"]
    return group


def weights_of(config: dict[str, Any]) -> dict[str, Any]:
    weights: dict[str, Any] = group_of(config)["weights"]
    return weights


@pytest.fixture(scope="module")
def asymmetric(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compressed(plain, tmp_path_factory.mktemp("asymmetric") / "made", "int4 group 32 zeros")


@pytest.mark.parametrize("case", BROKEN)
def test_what_contradicts_itself_is_refused(case: str, asymmetric: Path, tmp_path: Path) -> None:
    tamper, message = BROKEN[case]
    tensors = read_tensors(asymmetric)
    config = json.loads((asymmetric / "config.json").read_text())["quantization_config"]
    tamper(tensors, config)
    broken = write_checkpoint_of(asymmetric, tmp_path / "broken", tensors, config or None)
    if not config:
        raw = json.loads((broken / "config.json").read_text())
        del raw["quantization_config"]
        (broken / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ModelUnusable, match=message) as refused:
        read_all(broken)
    assert len(str(refused.value).splitlines()) == 3
    assert any(re.search(message, one.error.what) for one in verify(broken).findings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, r"quant_method 'gptq', read are ernie_local, compressed-tensors, awq"),
        ({"quant_method": "awq"}, r"version is .*"),
        ({"format": "nvfp4-pack-quantized"}, r"format is 'nvfp4-pack-quantized'"),
        ({"format": "marlin-24"}, r"format is 'marlin-24'"),
        ({"sparsity_config": {"format": "sparse-bitmask"}}, r"sparsity_config is an object of 1 entries"),
        ({"transform_config": {"config_groups": {}}}, r"transform_config is an object"),
        ({"quantization_status": "initialized"}, r"quantization_status is 'initialized'"),
        ({"new_setting": 1}, r"unknown key 'quantization_config\.new_setting'"),
        ({"ignore": ["re:(a+)+b"]}, r"ignore holds 're:\(a\+\)\+b' of 6 characters with 2 repetitions"),
        ({"ignore": ["re:("]}, r"ignore holds 're:\(', which is no pattern"),
        ({"config_groups": {"W4A16": ["Linear"]}}, r"config_groups\.W4A16 is a list"),
        ({"num_bits": 16}, r"num_bits is 16, outside of 2 to 8"),
        ({"num_bits": 4, "type": "float"}, r"num_bits is 4 of float"),
        ({"strategy": "tensor_group"}, r"strategy is 'tensor_group'"),
        ({"group_size": 0}, r"group_size is 0 with the strategy group"),
        ({"dynamic": True}, r"dynamic is true"),
        (
            {"strategy": "block", "group_size": None, "block_structure": [1 << 20, 128]},
            r"block_structure is a list of 2 entries, expected rows and columns of a block, up to 1024",
        ),
        ({"actorder": "sometimes"}, r"actorder is 'sometimes'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], message: str, asymmetric: Path) -> None:
    raw = json.loads((asymmetric / "config.json").read_text())
    quantization = raw["quantization_config"]
    for key, value in change.items():
        of_weights = key in (*weights_of(quantization), "actorder", "block_structure")
        place = weights_of(quantization) if of_weights else quantization
        if key == "format":
            place = group_of(quantization)
        place[key] = value
    with pytest.raises(ModelUnusable, match=message) as refused:
        parse_config(raw, "config.json")
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("found", [None, "0.13.0"])
def test_the_library_is_asked_for_by_its_extra(
    found: str | None, asymmetric: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        assert package == "compressed-tensors"
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(DoesNotFit, match=r"38 matrices that compressed-tensors dequantizes") as refused:
        open_checkpoint(asymmetric, read_config(asymmetric))
    assert refused.value.hint == 'pip install "ernie-local[compressed-tensors]"'
    assert any("not checked" in note for note in verify(asymmetric).notes)
