"""`ernie-local inspect`: parts that add up to the files, for plain and packed checkpoints, without torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import read_config
from tests.cli.running import Command
from tests.plain_export import export_plainly


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "model"
    export_plainly(
        NANO_DIRECTORY, out, format_tables(read_config(NANO_DIRECTORY), FormatChoice(experts="w2-w2l"))
    )
    raw = json.loads((out / "config.json").read_text())
    raw["quantization_config"] |= {"source": {"name": "nano"}, "calibration": {"method": "rtn"}}
    (out / "config.json").write_text(json.dumps(raw))
    return out


def stored(directory: Path) -> dict[str, tuple[int, int]]:
    """Numbers and bytes of every tensor in the files, as safetensors sees them."""
    return {
        name: (tensor.numel(), tensor.nbytes)
        for path in directory.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def inspected(command: Command, model: str) -> dict[str, dict[str, Any]]:
    value = command("inspect", model, "--json").json()
    assert value["bytes"] == sum(part["bytes"] for part in value["parts"])
    assert math.isclose(sum(part["share"] for part in value["parts"]), 1)
    experts = [part for part in value["parts"] if part["name"] in ("text experts", "vision experts")]
    for key in ("weights", "bytes", "share"):
        assert math.isclose(value["routed_experts"][key], sum(part[key] for part in experts))
    assert value["routed_experts"]["bits_per_weight"] == (
        8 * value["routed_experts"]["bytes"] / value["routed_experts"]["weights"]
    )
    return {part["name"]: part for part in value["parts"]}


def test_names_of_strangers_reach_no_terminal(command: Command, packed: Path, tmp_path: Path) -> None:
    name = "x\x1b[31m\x9b2J\nno part of the model: y"
    model = Path(shutil.copytree(packed, tmp_path / "a\x1b[31mb"))
    raw = json.loads((model / "config.json").read_text())
    raw["quantization_config"] |= {"source": {"name": name}}
    (model / "config.json").write_text(json.dumps(raw))
    shown = command("inspect", str(model))
    assert "source name: x\\x1b[31m\\x9b2J\\x0ano part of the model: y\n" in shown.stdout
    as_json = command("inspect", str(model), "--json")
    assert as_json.json()["source"] == {"name": name}
    (model / "config.json").unlink()
    refused = command("inspect", str(model))
    assert refused.exit_code == 4
    for text in (shown.stdout, as_json.stdout, refused.stderr, command("verify", str(model)).stderr):
        assert "\x1b" not in text
        assert "\x9b" not in text


def test_parts_of_a_plain_model_are_its_tensors(command: Command) -> None:
    parts, tensors = inspected(command, "nano"), stored(NANO_DIRECTORY)
    assert sum(part["weights"] for part in parts.values()) == sum(count for count, _ in tensors.values())
    assert sum(part["bytes"] for part in parts.values()) == sum(size for _, size in tensors.values())
    routed = sum(parts[name]["weights"] for name in ("text experts", "vision experts"))
    assert routed == sum(count for name, (count, _) in tensors.items() if ".experts." in name)
    assert parts["embedding"]["weights"] == 503 * 192


def test_parts_of_a_published_model_are_those_of_its_layout(
    command: Command, make_oracle: Callable[..., Any], tmp_path: Path
) -> None:
    """A head of its own, dense layers before the experts, two shared experts merged into one."""
    sizes = {"moe_num_shared_experts": 2, "num_hidden_layers": 2, "moe_num_experts": 4}
    directory = make_oracle(3, sizes, tied=False).save(tmp_path / "hub", "hub", max_shard_size="200KB")
    parts, tensors = inspected(command, str(directory)), stored(directory)
    assert len(list(directory.glob("*.safetensors"))) > 1
    assert sum(part["bytes"] for part in parts.values()) == sum(size for _, size in tensors.values())
    hidden, inner = 64, {"text": 48, "vision": 16}
    for bank, width in inner.items():
        assert parts[f"{bank} experts"]["weights"] == 4 * 3 * hidden * width
        assert parts[f"{bank} experts"]["formats"] == {"f32": 4 * 3 * hidden * width}
        assert parts[f"{bank} experts"]["pages"] == {}
    assert parts["shared experts"]["weights"] == 3 * hidden * 2 * inner["text"]
    assert parts["dense layers"]["weights"] == 3 * hidden * 128
    assert parts["routers"]["weights"] == 2 * (4 * hidden + 4)
    assert parts["head"]["weights"] == parts["embedding"]["weights"] == 96 * hidden
    assert command("inspect", str(directory), "--json").json()["layout"] == "hub"


def test_a_packed_model_has_the_same_weights_in_fewer_bytes(command: Command, packed: Path) -> None:
    plain, parts = inspected(command, "nano"), inspected(command, str(packed))
    assert {name: part["weights"] for name, part in parts.items()} == {
        name: part["weights"] for name, part in plain.items()
    }
    assert sum(part["bytes"] for part in parts.values()) == sum(size for _, size in stored(packed).values())
    text = parts["text experts"]
    assert text["pages"] == {"w2-w2l": 80}
    assert math.isclose(text["bits_per_weight"], 8 * text["bytes"] / text["weights"])
    assert 2.25 < text["bits_per_weight"] < 2.7


def test_the_table_names_formats_and_origin(command: Command, packed: Path) -> None:
    lines = command("inspect", str(packed)).stdout.splitlines()
    assert any(line.startswith("text experts") and line.endswith("w2-w2l x 80") for line in lines)
    assert any(line.startswith("routed experts") for line in lines)
    assert "source name: nano" in lines
    assert "calibration method: rtn" in lines


def test_a_missing_model_ends_with_4(command: Command, tmp_path: Path) -> None:
    result = command("inspect", str(tmp_path / "no"), "--json")
    assert (result.exit_code, result.json()["ok"]) == (4, False)
