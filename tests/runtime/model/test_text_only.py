"""Models that read only text: logits and router choices against transformers, prefill and decode."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.errors import ModelUnusable
from ernie_local.experts.paged import PagedExperts
from ernie_local.packing import dequantize
from ernie_local.packing.formats import find_format
from ernie_local.packing.rounding import round_to_nearest
from tests.plain_export import export_plainly
from tests.runtime.paged_models import CONTEXT_SIZE, attended_bytes, build, plan_of
from tests.text_only import TEXT_MODELS, TextOracle

if TYPE_CHECKING:
    from ernie_local.loading import LoadedModel

LARGEST_SHARE_OF_RANGE = 1e-4


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Within the project's bound."""
    assert ours.shape == theirs.shape
    difference, span = (ours - theirs).abs().max().item(), (theirs.max() - theirs.min()).item()
    assert difference <= LARGEST_SHARE_OF_RANGE * span, f"{difference} of a range of {span}"


def check(model: LoadedModel, oracle: TextOracle) -> None:
    """A prompt in one piece, the same in chunks with tokens decoded one by one, and what routers choose."""
    ids = oracle.ids(70)
    logits, choices = oracle.run(ids)
    assert_same(model.logits(ids), logits)
    ours = [one for one in model.router_choices(ids) if one.shape[1]]
    assert len(ours) == len(choices)
    for layer, (mine, theirs) in enumerate(zip(ours, choices, strict=True)):
        assert torch.equal(mine, theirs), f"layer {layer} of those with experts"
    engine = model.engine(context_size=80, chunk_tokens=16)
    found = [engine.prefill(ids[:60]), *(engine.decode(one) for one in ids[60:])]
    assert_same(torch.stack(found), logits[59:])


@pytest.mark.parametrize("name", TEXT_MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    has_experts, changes = TEXT_MODELS[name]
    oracle = TextOracle.of(changes, has_experts=has_experts)
    model = ernie_local.load(oracle.save(tmp_path), dtype="float32", kv_dtype="float32")
    assert not model.config.reads_images
    check(model, oracle)


@pytest.mark.parametrize("name", ["21B", "300B"])
def test_experts_are_read_fused_too(name: str, tmp_path: Path) -> None:
    """As transformers holds them, one tensor of all experts."""
    oracle = TextOracle.of(TEXT_MODELS[name][1], has_experts=True)
    directory = oracle.save(tmp_path, fused=True)
    assert any(
        tensor.endswith("experts.gate_up_proj") for tensor in load_file(tmp_path / "model.safetensors")
    )
    check(ernie_local.load(directory, dtype="float32", kv_dtype="float32"), oracle)


def test_tensors_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    oracle = TextOracle.of({}, has_experts=True)
    path = oracle.save(tmp_path) / "model.safetensors"
    block, hidden = "model.mtp_block.0", oracle.model.config.hidden_size
    further = {
        f"{block}.input_layernorm.weight": torch.ones(hidden),
        f"{block}.self_attn.q_proj.weight": torch.ones(hidden, hidden),
        f"{block}.mlp.gate_proj.weight": torch.ones(96, hidden),
        "model.mtp_emb_norm.0.weight": torch.ones(hidden),
        "model.mtp_hidden_norm.0.weight": torch.ones(hidden),
        "model.mtp_linear_proj.0.weight": torch.ones(hidden, 2 * hidden),
    }
    save_file(load_file(path) | further, path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    with open_checkpoint(tmp_path, read_config(tmp_path)) as checkpoint:
        assert sorted(checkpoint.accounts.ignored) == sorted(further)
    check(ernie_local.load(tmp_path, dtype="float32", kv_dtype="float32"), oracle)


@pytest.mark.parametrize("wrong", ["model.mtp_block.0", "model.mtp_head.0.weight", "mtp.layers.0.weight"])
def test_a_name_that_is_only_like_theirs_is_refused(wrong: str, tmp_path: Path) -> None:
    path = TextOracle.of({}, has_experts=True).save(tmp_path) / "model.safetensors"
    save_file(load_file(path) | {wrong: torch.ones(3)}, path)
    with pytest.raises(ModelUnusable, match=f"{wrong}.* is one too many"):
        ernie_local.load(tmp_path)


PACKED = FormatChoice("w4", "w8", "w8", "w8")
SIZES_OF_PACKED = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32}


@pytest.fixture(scope="module", params=["21B", "300B", "0.3B"])
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TextOracle]:
    """A checkpoint with every weight packed, and an oracle of the weights that its codes stand for."""
    has_experts, changes = TEXT_MODELS[request.param]
    widths = {"moe_intermediate_size": 64} if has_experts else {}
    oracle = TextOracle.of({**changes, **SIZES_OF_PACKED, **widths}, has_experts=has_experts)
    root = tmp_path_factory.mktemp("packed")
    plain = oracle.save(root / "plain")
    export_plainly(plain, root / "packed", format_tables(read_config(plain), PACKED))
    rounded = load_file(plain / "model.safetensors")
    for name, values in rounded.items():
        if values.ndim == 2 and not name.endswith(("gate.weight", "e_score_correction_bias")):
            bits = find_format("w4" if ".experts." in name else "w8")
            rounded[name] = dequantize(round_to_nearest(values, bits))
    save_file(rounded, plain / "model.safetensors")
    return root / "packed", TextOracle(type(oracle.model).from_pretrained(plain, dtype=torch.float32).eval())


@pytest.mark.parametrize("kind", ["plain", "packed"])
@pytest.mark.parametrize("is_paged", [False, True])
def test_resident_and_paged_experts(packed: tuple[Path, TextOracle], kind: str, is_paged: bool) -> None:
    directory, oracle = packed[0] if kind == "packed" else packed[0].with_name("plain"), packed[1]
    resident = build(directory, None)
    ids = oracle.ids(40, seed=3)
    expected, _ = oracle.run(ids)
    model = resident
    if is_paged and resident.config.text.banks:
        room = Engine(resident, CONTEXT_SIZE).kv_cache_bytes + attended_bytes(resident, 256)
        model = build(directory, plan_of(directory).least_bytes + room)
        assert isinstance(model.experts, PagedExperts)
    engine = Engine(model, CONTEXT_SIZE, torch.float32, chunk_tokens=16)
    found = torch.stack([engine.prefill(ids[:30]), *(engine.decode(one) for one in ids[30:])])
    # The kernels for packed weights round what they multiply with, too.
    if kind == "plain":
        assert_same(found, expected[29:])
    else:
        assert float((found - expected[29:]).norm() / expected[29:].norm()) < 0.02
    if isinstance(model.experts, PagedExperts):
        assert model.experts.stats.banks["text"].bytes_read > plan_of(directory).least_bytes
        beside = Engine(resident, CONTEXT_SIZE, torch.float32, chunk_tokens=16)
        alike = [beside.prefill(ids[:30]), *(beside.decode(one) for one in ids[30:])]
        assert torch.equal(found, torch.stack(alike))
