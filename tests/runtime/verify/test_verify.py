"""`verify`: every kind of damage is found and named, what is whole passes, and nothing stops at the first."""

from __future__ import annotations

import json
import re
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ernie_local
from ernie_local.checkpoint.files import HASHES_FILE, FileHash, read_hashes, write_hashes
from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.checkpoint.header import StoredTensor, read_safetensors_header
from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.packed import PackedTensors
from ernie_local.config import read_config
from ernie_local.errors import ModelUnusable
from ernie_local.packing.page import seal
from ernie_local.verify import Finding, Verification, verify
from ernie_local.verify.finding import Findings
from ernie_local.verify.weights import FileStream, check_values
from tests.conftest import PackNano
from tests.special_files import SPECIAL_FILES, within_seconds

WEIGHTS = "model.safetensors"
NORM = "layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def made(pack_nano: PackNano) -> Path:
    """nano with packed weights and hashes. Not to be written to."""
    return pack_nano(FormatChoice(experts="w2-w2l"))


@pytest.fixture
def packed(made: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "model"))


def change_bytes(directory: Path, tensor: str, offset: int, change: Callable[[bytearray], None]) -> None:
    """Let `change` have the bytes of a tensor from `offset` on."""
    place = read_safetensors_header(directory / WEIGHTS)[tensor]
    with (directory / WEIGHTS).open("r+b") as file:
        file.seek(place.offset + offset)
        content = bytearray(file.read(place.num_bytes - offset))
        change(content)
        file.seek(place.offset + offset)
        file.write(content)


def flip(content: bytearray) -> None:
    content[0] ^= 1


def first(result: Verification) -> Finding:
    assert result.findings
    return result.findings[0]


def without_hashes(directory: Path) -> Path:
    (directory / HASHES_FILE).unlink()
    return directory


def test_nano_is_whole_and_has_no_hashes() -> None:
    result = verify(NANO_DIRECTORY)
    assert result.findings == ()
    assert (result.num_tensors, result.num_pages, result.num_compared) == (586, 0, 0)
    assert "has no hashes.json" in result.notes[0]


def test_a_quantized_nano_is_whole(made: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = verify(made, lambda *progress: told.append(progress))
    assert (result.findings, result.notes) == ((), ())
    assert result.num_pages == 5 * 2 * 16 + 6  # routed experts; shared experts and the dense layer
    assert result.num_compared == len(result.hashes) == 6
    assert {done <= total == result.num_bytes for _, done, total in told} == {True}
    assert told[-1][1] == result.num_bytes


def test_the_same_files_have_the_same_hashes_as_sha256sum(made: Path) -> None:
    import hashlib

    known = read_hashes(made)
    assert known is not None
    for name, found in known.items():
        content = (made / name).read_bytes()
        assert found == FileHash(len(content), hashlib.sha256(content).hexdigest())


def page_bytes(directory: Path, tensor: str) -> int:
    return read_safetensors_header(directory / WEIGHTS)[tensor].shape[1]


def test_a_flipped_bit_in_the_codes_of_a_matrix_is_found_by_the_hash_alone(packed: Path) -> None:
    change_bytes(packed, "layers.1.self_attn.o_proj.w8", 4000, flip)
    finding = first(verify(packed))
    assert (finding.file, finding.tensor) == (WEIGHTS, None)
    assert "hashes.json says" in finding.error.why
    assert verify(without_hashes(packed)).findings == ()


@pytest.mark.parametrize(
    ("byte", "words"),
    [
        (0, "begins with"),
        (9, "its header means"),
        (16, "has the checksum"),
        (40, "has the checksum"),
        (4000, "has the checksum"),
        (-1, "has the checksum"),
    ],
)
def test_a_flipped_bit_in_a_page_is_found_without_hashes(packed: Path, byte: int, words: str) -> None:
    """In the header, in its zeros, in the codes, in the padding; the pages behind it are looked at too."""
    name = "experts.2.vision.w2-w2l"
    size = page_bytes(packed, name)
    change_bytes(without_hashes(packed), name, 3 * size + byte % size, flip)
    result = verify(packed)
    assert [(finding.file, finding.tensor, finding.page) for finding in result.findings] == [
        (WEIGHTS, name, 3)
    ]
    assert f"page 3 of {name}" in first(result).error.what
    assert words in first(result).error.what
    assert result.num_pages == 166


def test_a_flipped_bit_in_the_header_of_the_file_is_found(packed: Path) -> None:
    content = bytearray((packed / WEIGHTS).read_bytes())
    position = content.index(b"experts.2.vision") + 8
    content[position] ^= 1
    (packed / WEIGHTS).write_bytes(content)
    assert f"header of {packed / WEIGHTS}" in first(verify(packed)).error.what


def test_swapped_pages_are_found_by_the_hash(packed: Path) -> None:
    name = "experts.1.text.w2-w2l"
    size = page_bytes(packed, name)

    def swap(content: bytearray) -> None:
        content[:size], content[size : 2 * size] = content[size : 2 * size], content[:size]

    change_bytes(packed, name, 0, swap)
    assert first(verify(packed)).file == WEIGHTS
    assert verify(without_hashes(packed)).findings == ()  # each is whole, its place is in no checksum


def test_a_page_of_another_bank_is_found_without_hashes(packed: Path) -> None:
    vision = "experts.1.vision.w2-w2l"
    header = bytearray(
        (packed / WEIGHTS).read_bytes()[read_safetensors_header(packed / WEIGHTS)[vision].offset :][:64]
    )

    def put(content: bytearray) -> None:
        content[:64] = header

    change_bytes(without_hashes(packed), "experts.1.text.w2-w2l", 0, put)
    assert first(verify(packed)).page == 0


@pytest.mark.parametrize(
    ("tensor", "offset", "page"),
    [("experts.2.text.w2-w2l", 64, 0), ("layers.0.mlp.w8", 64, 0), ("layers.1.self_attn.o_proj.w8", 0, None)],
)
def test_a_scale_that_is_no_number_is_found_without_hashes(
    packed: Path, tensor: str, offset: int, page: int | None
) -> None:
    """Written so, by a quantizer at fault: with the right checksum."""

    def spoil(content: bytearray) -> None:
        content[offset : offset + 2] = b"\x00\x7c"  # infinity
        if page is not None:
            seal(torch.frombuffer(content, dtype=torch.uint8, count=page_bytes(packed, tensor)))

    change_bytes(without_hashes(packed), tensor, 0, spoil)
    finding = first(verify(packed))
    assert (finding.tensor, finding.page) == (tensor, page)
    assert "scales are not finite" in finding.error.what


def test_a_nan_in_a_norm_is_found_without_hashes(packed: Path) -> None:
    def spoil(content: bytearray) -> None:
        content[8:12] = b"\xff\xff\xff\xff"

    change_bytes(without_hashes(packed), NORM, 0, spoil)
    finding = first(verify(packed))
    assert (finding.file, finding.tensor) == (WEIGHTS, NORM)
    assert "holds nan" in finding.error.what


@pytest.mark.parametrize("value", [2.0**100, -(2.0**127), 2.0**21])
def test_a_weight_that_overflows_is_found_without_hashes(packed: Path, value: float) -> None:
    def spoil(content: bytearray) -> None:
        content[4:6] = struct.pack("<f", value)[2:]  # bfloat16

    change_bytes(without_hashes(packed), NORM, 0, spoil)
    finding = first(verify(packed))
    assert (finding.file, finding.tensor) == (WEIGHTS, NORM)
    assert f"holds {value:.6g} at element 2" in finding.error.what
    assert "overflow" in finding.error.why


def test_a_scale_that_makes_weights_overflow_is_found_without_hashes(packed: Path) -> None:
    def spoil(content: bytearray) -> None:
        content[0:2] = struct.pack("<e", 60000)

    name = "layers.1.self_attn.o_proj.w8"
    change_bytes(without_hashes(packed), name, 0, spoil)
    finding = first(verify(packed))
    assert finding.tensor == name
    assert "the first is 60000" in finding.error.what


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -5}, "generation_config.json: temperature is -5"),
        ({"top_p": 7}, "generation_config.json: top_p is 7"),
        (
            {"eos_token_id": [2, 503]},
            "generation_config.json: eos_token_id is 503, the vocabulary has the ids",
        ),
        ({"pad_token_id": -1}, "generation_config.json: pad_token_id is -1"),
    ],
)
def test_nonsense_in_generation_config_is_found_and_nothing_is_loaded(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    (copy / "generation_config.json").write_text(json.dumps(settings))
    finding = first(verify(copy))
    assert finding.file == "generation_config.json"
    assert message in finding.error.what
    with pytest.raises(ModelUnusable, match=re.escape(message)):
        ernie_local.load(copy)


def test_all_damage_is_listed_not_the_first_alone(packed: Path) -> None:
    name = "experts.2.vision.w2-w2l"
    size = page_bytes(packed, name)
    for page in (3, 7):
        change_bytes(packed, name, page * size, flip)
    (packed / "tokenizer.model").unlink()
    result = verify(packed)
    assert [finding.page for finding in result.findings if finding.page is not None] == [3, 7]
    assert {finding.file for finding in result.findings} == {WEIGHTS, "tokenizer.model"}
    assert result.num_pages == 166


def test_a_cut_file_is_found(packed: Path) -> None:
    content = (packed / WEIGHTS).read_bytes()
    (packed / WEIGHTS).write_bytes(content[:-100])
    assert f"has {len(content) - 100} bytes, but tensor" in first(verify(packed)).error.what


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.model", "preprocessor_config.json"])
def test_a_missing_file_is_found(packed: Path, name: str) -> None:
    (packed / name).unlink()
    findings = verify(packed).findings
    assert any(name in finding.error.what for finding in findings)


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    (copy / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in first(verify(copy)).error.what


def test_an_old_weight_file_beside_the_shards_is_found_and_other_files_are_notes(packed: Path) -> None:
    known = read_hashes(packed)
    assert known is not None
    write_hashes(packed, {name: known[name] for name in known if name != WEIGHTS})
    (packed / "notes.txt").write_text("mine")
    (packed / "README.md").write_text("changed by hand")
    result = verify(packed)
    assert [finding.file for finding in result.findings] == [WEIGHTS]
    assert "is not in hashes.json" in first(result).error.what
    assert ["notes.txt" in note for note in result.notes] == [True]


@pytest.mark.parametrize("kind", SPECIAL_FILES)
def test_a_special_file_in_place_of_a_listed_one_is_found(kind: str, packed: Path) -> None:
    known = read_hashes(packed)
    assert known is not None
    write_hashes(packed, {**known, "LICENSE.txt": next(iter(known.values()))})
    SPECIAL_FILES[kind](packed / "LICENSE.txt")
    with within_seconds(20):
        finding = first(verify(packed))
    assert finding.file == "LICENSE.txt"
    assert "not a plain file" in finding.error.why


def test_a_tied_head_that_differs_is_found(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    shard = copy / index["weight_map"]["model.embed_tokens.weight"]
    tensors = load_file(shard)
    head = tensors["model.embed_tokens.weight"].clone()
    index["weight_map"]["lm_head.weight"] = shard.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({**tensors, "lm_head.weight": head}, shard)
    assert verify(copy).findings == ()
    head[-1, -1] += 1
    save_file({**tensors, "lm_head.weight": head}, shard)
    assert "differs from the embedding" in first(verify(copy)).error.what


def test_a_tokenizer_of_another_model_is_found(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(NANO_DIRECTORY, tmp_path / "nano"))
    raw = json.loads((copy / "config.json").read_text())
    for key in ("image_start_token_id", "image_end_token_id", "im_patch_id"):
        (copy / "config.json").write_text(json.dumps({**raw, key: 300}))
        assert first(verify(copy)).file == "tokenizer.model", key
        (copy / "config.json").write_text(json.dumps({**raw, key: 503}))
        assert first(verify(copy)).file == "config.json", key


@pytest.mark.parametrize(
    "content",
    [
        '{"version": 2, "files": {}}',
        '{"version": 1, "files": []}',
        '{"version": 1, "files": {"../config.json": {"num_bytes": 1, "sha256": "%s"}}}' % ("0" * 64),
        '{"version": 1, "files": {"..": {"num_bytes": 1, "sha256": "%s"}}}' % ("0" * 64),
        json.dumps({"version": 1, "files": {"é" * 128: {"num_bytes": 1, "sha256": "0" * 64}}}),
        '{"version": 1, "files": {"config.json": {"num_bytes": -1, "sha256": "%s"}}}' % ("0" * 64),
        '{"version": 1, "files": {"config.json": {"num_bytes": 1, "sha256": "%s"}}}' % ("G" * 64),
        '{"version": 1, "files": {"config.json": "%s"}}' % ("0" * 64),
        '{"version": 1',
    ],
)
def test_hashes_of_a_stranger_are_refused(content: str, packed: Path) -> None:
    (packed / HASHES_FILE).write_text(content)
    with pytest.raises(ModelUnusable, match=r"hashes\.json"):
        read_hashes(packed)
    assert first(verify(packed)).file == HASHES_FILE


@pytest.mark.parametrize("target", ["nowhere", HASHES_FILE])
def test_hashes_behind_a_link_that_leads_nowhere_are_not_none(target: str, packed: Path) -> None:
    (packed / HASHES_FILE).unlink()
    (packed / HASHES_FILE).symlink_to(target)
    with pytest.raises(ModelUnusable, match=r"hashes\.json"):
        read_hashes(packed)
    result = verify(packed)
    assert first(result).file == HASHES_FILE
    assert not any(f"has no {HASHES_FILE}" in note for note in result.notes)


def test_a_large_tensor_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS
    save_file({"large": torch.ones(32 << 18)}, path)  # 32 MiB
    stored: list[StoredTensor] = list(read_safetensors_header(path).values())
    findings, tensors = Findings(), PackedTensors(read_config(NANO_DIRECTORY))
    tracemalloc.start()
    with path.open("rb") as file:
        stream = FileStream(file, lambda *_: None)
        check_values(stream, stored, tensors, findings)
        whole = stream.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 << 20
    assert whole.num_bytes == path.stat().st_size
    assert findings.all == []
