"""Commands on models that read only text: one with experts, and one without."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from ernie_local.config import read_config
from tests.cli.running import Command
from tests.published_checkpoint import tokenizer_model
from tests.text_only import NANO_VOCAB, TEXT_MODELS, TextOracle

WITH_WORDS = {"vocab_size": 100_304, "num_hidden_layers": 2, "max_position_embeddings": 4096}
WITH_WORDS |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# As wide as groups of 64 on two GPUs take.
WIDE = {"hidden_size": 128, "intermediate_size": 256}


def make_text_model(name: str, more: Mapping[str, int]) -> TextOracle:
    """With matrices that are wide enough for engines."""
    has_experts, changes = TEXT_MODELS[name]
    widths = {**WIDE, **({"moe_intermediate_size": 128} if has_experts else {})}
    return TextOracle.of({**changes, **more, **widths}, has_experts=has_experts)


@pytest.fixture(scope="module", params=["21B", "0.3B"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With few tokens."""
    directory: Path = tmp_path_factory.mktemp("small") / request.param
    changes = {**NANO_VOCAB, "max_position_embeddings": 4096}
    return make_text_model(request.param, changes).save_with_tokenizer(directory)


@pytest.fixture(scope="module", params=["21B", "0.3B"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tokenizer."""
    directory: Path = tmp_path_factory.mktemp("text only") / request.param
    make_text_model(request.param, WITH_WORDS).save(directory)
    (directory / "tokenizer.model").write_bytes(tokenizer_model())
    return directory


@pytest.mark.slow
def test_it_is_quantized_compared_and_planned(command: Command, model: Path, tmp_path: Path) -> None:
    out, has_experts = tmp_path / "q", bool(read_config(model).text.banks)
    made = command("quantize", str(model), str(out), "--samples", "2", "--bits", "4")
    assert "asked: " in made.stderr
    assert "invoice" not in made.stderr
    assert ("text       all" in made.stderr) == has_experts
    told = (
        "samples are texts, without images, documents, charts" if has_experts else "the model has no experts"
    )
    assert told in made.stderr
    assert "text-generation" in (out / "README.md").read_text()
    assert "invoice" not in (out / "quant_report.html").read_text()
    compared = command("eval", str(model), str(out), "--samples", "1", "--json").json()
    assert compared["families"] == ["texts"]
    refused = command("eval", str(model), str(out), "--samples", "1", "--family", "documents")
    assert refused.exit_code == 2
    assert "--family documents with a model that reads only text" in refused.stderr
    for directory in (model, out):
        planned = command("vram", str(directory), "--ram", "8GiB")
        assert planned.exit_code == 0
        assert "vision" not in planned.stdout


@pytest.mark.slow
def test_it_is_measured_and_evaluated(command: Command, small: Path, tmp_path: Path) -> None:
    kept, has_experts = tmp_path / "kept.json", bool(read_config(small).text.banks)
    measured = command("calibrate", str(small), str(kept), "--samples", "2")
    assert measured.exit_code == 0, measured.stderr
    assert "vision" not in measured.stdout
    assert list(json.loads(kept.read_text())["tokens"]) == ["text"] * has_experts
    assert measured.stdout[0].isdigit()
    again = command("calibrate", str(small), str(tmp_path / "again.json"), "--samples", "2", "--json").json()
    assert [one["expert_divergence"] is not None for one in again["layers"]] == [
        False,
        has_experts,
        has_experts,
    ]
    assert (tmp_path / "again.json").read_text() == kept.read_text()
    same = command("eval", str(small), str(small), "--samples", "2")
    assert same.exit_code == 0, same.stderr
    assert "0.0000" in same.stdout
    if has_experts:
        out, told = tmp_path / "mixed", ("--samples", "2", "--statistics", str(kept))
        assert command("quantize", str(small), str(out), "--bits", "mixed", *told).exit_code == 0
        (found,) = command("eval", str(small), str(out), "--samples", "2", "--json").json()["checkpoints"]
        assert found["divergence"]["mean"]["value"] > 0
        assert {each["bank"] for each in found["routing"]} == {"text"}


@pytest.mark.parametrize("kind", ["int4", "bf16"])
def test_it_is_exported_for_engines_without_code(
    command: Command, small: Path, tmp_path: Path, kind: str
) -> None:
    out, method = tmp_path / "out", ("--group", "64", "--method", "rtn")
    options = () if kind == "bf16" else method
    result = command(
        *("export", str(small), str(out), "--for", "vllm", "--format", kind, *options),
        *("--tensor-parallel", "2", "--json"),
    )
    assert result.exit_code == 0, result.stderr
    assert (result.json()["compressed"] == 0) == (kind == "bf16")
    card = (out / "README.md").read_text()
    assert "vllm serve DIRECTORY --tensor-parallel-size" in card
    assert ("--enable-expert-parallel" in card) == bool(read_config(small).text.banks)
    raw = json.loads((out / "config.json").read_text())
    groups = raw.get("quantization_config", {}).get("config_groups", {}).values()
    # Without experts, all layers have the format that was asked for.
    wanted = {"int4": {4, 8} if read_config(small).text.banks else {4}, "bf16": set()}
    assert {group["weights"]["num_bits"] for group in groups} == wanted[kind]
    assert command("chat", str(out), "-p", "Hi", "--max-tokens", "3").exit_code in (0, 7)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["21B"], indirect=True)
def test_its_experts_are_calibrated_for_engines(command: Command, model: Path, tmp_path: Path) -> None:
    arguments = (
        "export",
        str(model),
        str(tmp_path / "out"),
        "--for",
        "vllm",
        "--group",
        "64",
        "--samples",
        "2",
    )
    made = command(*arguments)
    assert made.exit_code == 0, made.stderr
    assert "compressed (gptq)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("small", ["0.3B"], indirect=True)
@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        (("--method", "gptq", "--format", "int4"), "--method gptq, and", "--method clip"),
        (("--dense", "bf16"), "--dense with a model without experts", "choose it by --format"),
        (("--samples", "3"), "--samples with a model without experts", "use --method clip"),
        (("--group", "64", "--tensor-parallel", "8"), "4 attention heads do not divide by 8", "use 1 or 2"),
    ],
)
def test_exports_that_cannot_be_are_refused(
    command: Command, small: Path, tmp_path: Path, options: tuple[str, ...], what: str, hint: str
) -> None:
    refused = command("export", str(small), str(tmp_path / "out"), "--for", "vllm", *options)
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 3
    assert what in refused.stderr
    assert hint in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_options_about_images_and_experts_are_refused(command: Command, small: Path, tmp_path: Path) -> None:
    told, *wrong = (
        ("a model that reads only text", ("--family", "images"), ("--calib", str(tmp_path)))
        if read_config(small).text.banks
        else (
            "with a model without experts",
            ("--dual",),
            ("--bits", "2"),
            ("--bits", "mixed"),
            ("--method", "nf4"),
            ("--target-size", "1GiB"),
        )
    )
    for options in wrong:
        run = command("quantize", str(small), str(tmp_path / "q"), "--samples", "1", *options)
        assert run.exit_code == 2, options
        assert told in run.stderr
    assert list(tmp_path.iterdir()) == []
