"""Plain checkpoints in the hub's layout: the same model as the source, whatever the source is stored as."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.adapters.low_rank import Adapter, LowRank
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import CheckpointFiles
from ernie_local.config import QuantizationConfig, parse_config, read_config
from ernie_local.errors import DoesNotFit, ModelUnusable, Stopped, UsageError
from ernie_local.packing import FORMATS, dequantize
from ernie_local.packing.foreign import dequantize_foreign, pack_foreign
from ernie_local.packing.layout import find_foreign
from ernie_local.packing.rounding import round_to_nearest
from ernie_quant.export import weights
from ernie_quant.export.flat_config import flat_config
from ernie_quant.export.job import ExportJob
from ernie_quant.export.run import plan_export, write_export
from ernie_quant.export.weights import SourceWeights
from ernie_quant.foreign import quantize_foreign
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from tests.draws import rest_slow
from tests.plain_export import export_plainly
from tests.published_files import PT_28B
from tests.sharded import write_deep_nano

CONFIG = read_config(NANO_DIRECTORY)
Oracle = Any


def files_of(directory: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def export(source: Path, out: Path, **settings: Any) -> dict[str, torch.Tensor]:
    write_export(ExportJob(source, out, "nano", **settings))
    return files_of(out)


def test_hub_to_hub_has_the_same_bits_and_the_published_head(tmp_path: Path) -> None:
    counts = write_export(ExportJob(NANO_DIRECTORY, tmp_path / "out", "nano"))
    wanted, found = files_of(NANO_DIRECTORY), files_of(tmp_path / "out")
    assert counts.tensors == counts.exact == len(found)
    head = found.pop("lm_head.weight")
    assert torch.equal(head, wanted["model.embed_tokens.weight"])
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == (
            torch.float32 if ".mlp.gate." in name or "_bias" in name else tensor.dtype
        )
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    assert (tmp_path / "out" / "tokenizer.model").exists()
    assert not list(tmp_path.glob("*.partial"))


def test_native_to_hub_is_the_same_model_to_transformers(
    make_oracle: Callable[..., Oracle], tmp_path: Path
) -> None:
    """Which reads the new names, and its own config."""
    from transformers import Ernie4_5_VLMoeForConditionalGeneration

    oracle = make_oracle(3)
    native = oracle.save(tmp_path / "native", "native")
    for path in native.glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    wanted = ernie_local.load(native, dtype="float32")
    export(native, tmp_path / "out")
    ids, images = oracle.prompt([9, oracle.image(4, 6), 7])
    reference = wanted.logits(ids, images)
    found = ernie_local.load(tmp_path / "out", dtype="float32")
    assert torch.equal(found.logits(ids, images), reference)
    copy = tmp_path / "for transformers"
    shutil.copytree(tmp_path / "out", copy)
    shutil.copy(native / "config.json", copy)
    loaded: Any = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
        copy, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    again = dataclasses.replace(oracle, model=model.eval()).run(ids, images).logits
    torch.testing.assert_close(again, reference, rtol=0, atol=1e-4 * float(reference.abs().max()))


TABLES: dict[str, QuantizationConfig] = {
    "own head and small pages": format_tables(
        CONFIG, FormatChoice("w4", "w4", "w8", None, small_experts="w2")
    ),
    "dense only": format_tables(CONFIG, FormatChoice(None, "w4", None, None)),
    "w4": format_tables(CONFIG, FormatChoice("w4", "w8", "w8", "w8")),
}


@pytest.mark.parametrize("tables", rest_slow(TABLES.values(), 2), ids=TABLES)
def test_packed_weights_become_what_their_bytes_mean(tables: QuantizationConfig, tmp_path: Path) -> None:
    """The oracle rounds nano's weights itself, by each matrix as it was packed."""
    packed = tmp_path / "packed"
    export_plainly(NANO_DIRECTORY, packed, tables)
    notes: list[str] = []
    found = export(packed, tmp_path / "out", on_note=notes.append)
    assert any("small pages" in note for note in notes) == bool(tables.small_experts)
    plain = files_of(NANO_DIRECTORY)

    def rounded(name: str, format_name: str, rows: slice = slice(None), *, joined: str = "") -> torch.Tensor:
        parts = [name.replace("q_proj", part) for part in joined.split()] or [name]
        whole = torch.cat([plain[part].float() for part in parts])
        return dequantize(round_to_nearest(whole, FORMATS[format_name])).bfloat16()[rows]

    layer = "model.layers.1."
    attention = layer + "self_attn.q_proj.weight"
    assert torch.equal(
        torch.cat([found[attention.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]),
        rounded(attention, tables.matrices["layers.1.self_attn.qkv_proj"], joined="q_proj k_proj v_proj"),
    )
    shared = layer + "mlp.shared_experts.down_proj.weight"
    assert torch.equal(found[shared], rounded(shared, tables.gated_mlps["layers.1.moe.shared_experts"]))
    for expert in (3, 19):  # of the text bank, and of the vision bank behind it
        for projection in ("gate", "up", "down"):
            name = f"{layer}mlp.experts.{expert}.{projection}_proj.weight"
            assert torch.equal(found[name], rounded(name, "w4") if tables.experts else plain[name]), name
    head = tables.matrices.get("lm_head", tables.matrices.get("embed_tokens"))
    wanted = rounded("model.embed_tokens.weight", head) if head else plain["model.embed_tokens.weight"]
    assert torch.equal(found["lm_head.weight"], wanted)
    is_tied = json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
    assert is_tied == ("lm_head" not in tables.matrices)


def test_another_librarys_pages_become_what_they_mean(small_nano: Path, tmp_path: Path) -> None:
    """Which `test_foreign` compares with the library."""
    pytest.importorskip("optimum.quanto")
    foreign = find_foreign("qint4g64")
    assert foreign is not None
    tables = format_tables(read_config(small_nano), FormatChoice(foreign.name, None, None, None))
    quantize_checkpoint(Job(small_nano, tmp_path / "packed", tables, Recipe("quanto")))
    found, plain = export(tmp_path / "packed", tmp_path / "out"), files_of(small_nano)
    for projection in ("gate", "up", "down"):
        name = f"model.layers.2.mlp.experts.6.{projection}_proj.weight"
        packed = pack_foreign(quantize_foreign(plain[name].float(), foreign, "quanto"))
        assert torch.equal(found[name], dequantize_foreign(packed, foreign, *found[name].shape).bfloat16())


def test_an_adapter_is_in_the_weights(tmp_path: Path) -> None:
    name = "experts.2.vision.5.down_proj"
    torch.manual_seed(0)
    added = LowRank(torch.randn(2, 128), torch.randn(192, 2) / 100)
    adapter = Adapter({name: added})
    found = export(NANO_DIRECTORY, tmp_path / "out", adapter=adapter, adapter_identity="one")
    in_file = "model.layers.2.mlp.experts.21.down_proj.weight"
    plain = files_of(NANO_DIRECTORY)
    assert torch.equal(found[in_file], (plain[in_file].float() + added.weight()).bfloat16())
    changed = [one for one in plain if not torch.equal(found[one], plain[one].to(found[one].dtype))]
    assert changed == [in_file]


def test_the_published_config_comes_of_the_native_one() -> None:
    from transformers import Ernie4_5_VLMoeConfig

    raw = json.loads(Ernie4_5_VLMoeConfig(image_token_id=100295).to_json_string())
    written = flat_config(parse_config(raw, "config.json"), raw)
    assert written == {key: value for key, value in PT_28B.items() if key != "auto_map"}
    # A source in the hub's layout keeps what is its own.
    again = PT_28B | {"moe_gate_act": "softmax", "torch_dtype": "float32"}
    kept = flat_config(parse_config(again, "config.json"), again)
    assert kept == written | {"moe_gate_act": "softmax"}


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[str] = []

    def show(unit: str, _done: float, _of_all: float) -> None:
        told.append(unit)

    source = write_deep_nano(tmp_path / "source", CONFIG.text.num_hidden_layers, 1)
    job = ExportJob(source, out, "nano", on_unit=show)
    with pytest.raises(Stopped, match="stopped after 3 of 7 units"):
        write_export(dataclasses.replace(job, should_stop=lambda: len(told) > 3))
    assert not out.exists()
    with pytest.raises(UsageError, match="settings differ"):
        write_export(dataclasses.replace(job, adapter_identity="another"))
    begun = len(told)
    write_export(job)
    assert len([unit for unit in told[begun:] if unit.startswith("weights of")]) == 4
    write_export(dataclasses.replace(job, out=tmp_path / "at once"))
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "at once" / path.name).read_bytes(), path.name


def test_a_number_that_changed_on_the_disk_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = CheckpointFiles.write

    def write_wrongly(files: CheckpointFiles, name: str, pieces: Any, row: int | None = None) -> None:
        if name.endswith("layers.3.mlp.gate.weight_1"):
            pieces = [piece + 1e-6 for piece in pieces]
        write(files, name, pieces, row)

    monkeypatch.setattr(CheckpointFiles, "write", write_wrongly)
    with pytest.raises(ModelUnusable, match=r"gate\.weight_1.* \d+ of 3072 numbers from 0 on are not those"):
        export(NANO_DIRECTORY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=30_000_000))
    with pytest.raises(DoesNotFit, match="and 30000000 are free"):
        plan_export(ExportJob(NANO_DIRECTORY, tmp_path / "out", "nano"))
    assert not list(tmp_path.iterdir())


def test_memory_holds_blocks_of_a_large_matrix(tmp_path: Path) -> None:
    tables = format_tables(CONFIG, FormatChoice("w4", "w4", "w8", "w8"))
    export_plainly(NANO_DIRECTORY, tmp_path / "packed", tables)
    config = read_config(tmp_path / "packed")
    with open_checkpoint(tmp_path / "packed", config) as checkpoint:
        source = SourceWeights(checkpoint, config)
        whole = source.whole("embed_tokens.weight")
        assert whole.shape == (CONFIG.text.vocab_size, CONFIG.text.hidden_size)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(weights, "BLOCK_ROWS", 32)
            blocks = list(source.blocks("embed_tokens.weight", torch.float32))
            key = source.whole("layers.1.self_attn.k_proj.weight")
    assert [len(block) for block in blocks] == [32] * 15 + [23]
    assert torch.equal(torch.cat(blocks), whole)
    assert key.shape == (96, 192)
