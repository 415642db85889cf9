"""Quantizing what another tool has quantized: as from the plain weights that it means, and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ernie_local.checkpoint.files import read_stored_tensors
from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.index import account
from ernie_local.config import read_config
from ernie_quant.job import Job
from ernie_quant.pipeline import quantize_checkpoint
from ernie_quant.recipe import Recipe
from ernie_quant.stages import make_stages, source_files
from tests.compressed_export import read_tensors, save_plain, write_compressed, write_dequantized


@pytest.fixture(scope="module")
def sources(make_oracle: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """In int4, and as plain weights."""
    folder = tmp_path_factory.mktemp("sources")
    plain = save_plain(make_oracle, folder / "plain")
    compressed = write_compressed(plain, folder / "compressed", "int4 group 32 zeros")
    return compressed, write_dequantized(compressed, plain, folder / "dequantized")


def quantize(source: Path, out: Path) -> list[str]:
    notes: list[str] = []
    tables = format_tables(read_config(source), FormatChoice("w4", vision=None))
    quantize_checkpoint(Job(source, out, tables, Recipe("rtn"), on_note=notes.append))
    return notes


def test_the_result_is_that_of_the_plain_weights(sources: tuple[Path, Path], tmp_path: Path) -> None:
    notes, plain_notes = (quantize(source, tmp_path / source.name) for source in sources)
    tensors, expected = (read_tensors(tmp_path / source.name) for source in sources)
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not tensors[name].equal(expected[name])] == []
    assert any("(int4-g32-zeros)" in note for note in notes)
    assert any("quantized twice" in note for note in notes)
    assert not any("quantized twice" in note for note in plain_notes)


def test_the_report_names_it(sources: tuple[Path, Path], tmp_path: Path) -> None:
    quantize(sources[0], tmp_path / "out")
    words = "int4-g32-zeros by compressed-tensors"
    assert json.loads((tmp_path / "out" / "quant_report.json").read_text())["source"]["quantized"] == words
    assert words in (tmp_path / "out" / "README.md").read_text()
    written = read_config(tmp_path / "out")
    assert written.compression is None
    assert written.quantization is not None
    assert written.quantization.source["quantized"] == words


def test_every_file_with_a_part_is_fetched(sources: tuple[Path, Path], tmp_path: Path) -> None:
    """Scales may lie in another file than codes."""
    tensors = read_tensors(sources[0])
    from safetensors.torch import save_file

    files = {name: f"{'a' if name.endswith('_scale') else 'b'}.safetensors" for name in tensors}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, tmp_path / file)
    index = {"metadata": {}, "weight_map": files}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = read_config(sources[0])
    accounts = account(tmp_path, read_stored_tensors(tmp_path), config)
    found = source_files(make_stages([], config.text), accounts, (), calibrates=True)
    assert [set(names) for names in found[1:]] == [{"a.safetensors", "b.safetensors"}] * 2
