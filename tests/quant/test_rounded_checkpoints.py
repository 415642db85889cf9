"""Checkpoints in our own format: written from nano, read back, and equal to what their bytes mean."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import ernie_local
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.header import read_safetensors_header
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.config import ModelConfig, QuantizationConfig, read_config
from ernie_local.errors import UsageError
from ernie_local.experts.mapped import MappedExperts
from ernie_local.experts.resident import ResidentExperts
from ernie_local.kernels import native
from ernie_local.loading import LoadedModel
from ernie_local.packing import FORMATS, dequantize, unpack_page
from ernie_local.packing.rounding import round_to_nearest
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe

CONFIG = read_config(NANO_DIRECTORY)
EVERYTHING = FormatChoice("w4", "w8", "w8", "w8")
# A head of its own beside a tied embedding, gate and up in other bits than down, nothing packed in the tower.
UNLIKE = FormatChoice("w2-w2l", "w4", "w8", None)


def mixed_tables(config: ModelConfig) -> QuantizationConfig:
    """Experts of one bank in three formats."""
    tables = format_tables(config, EVERYTHING)
    formats = tuple(("w4", "w2-w3", "w2s")[expert % 3] for expert in range(config.text.banks[0].num_experts))
    return dataclasses.replace(tables, experts=dict.fromkeys(tables.experts, formats))


TABLES: dict[str, Callable[[ModelConfig], QuantizationConfig]] = {
    "all in w4 and w8": lambda config: format_tables(config, EVERYTHING),
    "unlike": lambda config: format_tables(config, UNLIKE),
    "mixed experts": mixed_tables,
    "dense only": lambda config: format_tables(config, FormatChoice(None, "w4", None, None)),
}
Exported = tuple[Path, QuantizationConfig]


@pytest.fixture(scope="module", params=TABLES)
def exported(
    request: pytest.FixtureRequest, small_nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> Exported:
    out, tables = tmp_path_factory.mktemp("packed"), TABLES[request.param](read_config(small_nano))
    quantize_checkpoint(Job(small_nano, out, tables, Recipe("rtn")))
    return out, tables


def rounded(weights: torch.Tensor, format_name: str) -> torch.Tensor:
    return dequantize(round_to_nearest(weights, FORMATS[format_name]))


def round_in_place(model: LoadedModel, tables: QuantizationConfig) -> None:
    """What `tables` mean, done to plain weights."""
    network, parameters = model.network, dict(model.network.named_parameters())
    resident = network.experts
    assert isinstance(resident, ResidentExperts)
    for (layer_id, bank), formats in tables.experts.items():
        for expert, page_format in enumerate(formats):
            gate_up, _, down = page_format.partition("-")
            for projection, name in (
                ("gate_proj", gate_up),
                ("up_proj", gate_up),
                ("down_proj", down or gate_up),
            ):
                view = resident.banks[layer_id, bank].projection(expert, projection)
                view.copy_(rounded(view, name))
    if "lm_head" in tables.matrices:
        head = torch.nn.Linear(CONFIG.text.hidden_size, CONFIG.text.vocab_size, bias=False)
        head.weight = torch.nn.Parameter(
            rounded(parameters["embed_tokens.weight"], tables.matrices["lm_head"]), requires_grad=False
        )
        network.lm_head = head  # type: ignore[assignment]
    with torch.no_grad():
        for name, format_name in tables.matrices.items():
            if name == "lm_head":
                continue
            parts = [
                name.replace("qkv_proj", f"{part}_proj") for part in ("qkv" if "qkv_proj" in name else "q")
            ]
            for part in parts:
                weight = parameters[f"{part}.weight"]
                weight.copy_(rounded(weight, format_name))
        for name, format_name in tables.gated_mlps.items():
            for projection in ("gate_proj", "up_proj", "down_proj"):
                weight = parameters[f"{name}.{projection}.weight"]
                weight.copy_(rounded(weight, format_name))


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
def test_logits_are_those_of_the_rounded_weights(
    exported: Exported, small_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the plain torch operators, which do not round activations."""
    out, tables = exported
    monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with exact activations"))
    plain = ernie_local.load(small_nano)
    image = plain.patches([torch.randint(0, 256, (56, 84, 3), dtype=torch.uint8).numpy()])[0]
    media = CONFIG.media
    ids = [50, 60, media.image_start, *[media.image] * image.num_tokens, media.image_end, 70, 80]
    before = plain.logits(ids, [image])
    round_in_place(plain, tables)
    wanted, found = (
        plain.logits(ids, [image]),
        ernie_local.load(out, kv_dtype="float32").logits(ids, [image]),
    )
    assert (wanted - before).abs().max() > 1e-2  # rounding does something
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-4 * float(wanted.abs().max()))


def test_kernels_answer_as_the_plain_model(tmp_path: Path) -> None:
    quantize_checkpoint(
        Job(NANO_DIRECTORY, tmp_path / "w4", format_tables(CONFIG, EVERYTHING), Recipe("rtn"))
    )
    model = ernie_local.load(tmp_path / "w4")
    pieces = ernie_local.Chat(model).ask("What is the total?", images=["examples/invoice.png"])
    assert "".join(piece.text for piece in pieces) == "£84.84"


def test_weight_bytes_are_those_in_memory(exported: Exported) -> None:
    model = ernie_local.load(exported[0])
    held = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    experts = model.network.experts
    assert isinstance(experts, MappedExperts | ResidentExperts)
    assert model.weight_bytes == held + experts.num_bytes


def test_pages_are_aligned_and_any_reader_finds_them(exported: Exported) -> None:
    out, tables = exported
    stored = read_safetensors_header(out / "model.safetensors")
    packed = [tensor for tensor in stored.values() if tensor.dtype == "U8"]
    pages = [tensor for tensor in packed if tensor.name.startswith("experts.")]
    assert bool(pages) == bool(tables.experts)
    assert all(tensor.offset % 4096 == 0 for tensor in pages)
    assert all(tensor.offset % 64 == 0 for tensor in packed)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(stored)
        for tensor in pages[:3]:
            page = unpack_page(file.get_tensor(tensor.name)[0])
            assert page.gate.shape[1] == CONFIG.text.hidden_size


def test_config_keeps_the_tables(exported: Exported, small_nano: Path) -> None:
    out, tables = exported
    written = read_config(out).quantization
    assert written is not None
    assert dataclasses.replace(written, source={}, calibration={}) == tables
    assert written.source["name"] == "nano"
    assert written.calibration["method"] == "rtn"
    other_keys = json.loads((out / "config.json").read_text())
    del other_keys["quantization_config"]
    assert other_keys == json.loads((small_nano / "config.json").read_text())


def test_nothing_is_overwritten_and_nothing_rounded_twice(
    exported: Exported, small_nano: Path, tmp_path: Path
) -> None:
    out, tables = exported
    with pytest.raises(UsageError, match="quantized already"):
        quantize_checkpoint(Job(out, tmp_path / "again", tables, Recipe("rtn")))
    with pytest.raises(UsageError, match=r"holds [0-9]+ entries"):
        quantize_checkpoint(Job(small_nano, out, tables, Recipe("rtn")))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (FormatChoice(experts="w5"), "'w5' is not one of the formats"),
        (FormatChoice(experts="w4-w9"), "'w9' is not one of the formats"),
        (FormatChoice(vision="int8"), "'int8' is not one of the formats"),
        (FormatChoice(dense="w2-w2l"), "'w2-w2l' is not one of the formats"),
        (FormatChoice(experts="w4-w2-w3"), "'w2-w3' is not one of the formats"),
    ],
)
def test_unknown_formats_are_refused(choice: FormatChoice, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        format_tables(CONFIG, choice)


def test_widths_that_cannot_be_packed_are_refused() -> None:
    banks = (CONFIG.text.bank("text"), dataclasses.replace(CONFIG.text.bank("vision"), expert_size=40))
    odd = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, banks=banks))
    with pytest.raises(UsageError, match="moe_intermediate_size of vision is 40"):
        format_tables(odd, EVERYTHING)
    tables = format_tables(odd, FormatChoice(experts=None))
    assert not tables.experts
