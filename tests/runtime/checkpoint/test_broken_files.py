"""A folder of broken checkpoints, made in code: each is refused in three lines, without a traceback."""

from __future__ import annotations

import json
import math
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_local.checkpoint.header import LARGEST_HEADER, read_safetensors_header
from ernie_local.checkpoint.names import name_in_file
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig, parse_config, read_config
from ernie_local.errors import ModelUnusable

CONFIG: dict[str, Any] = {
    "model_type": "ernie4_5_vl_moe",
    "tie_word_embeddings": True,
    "text_config": {
        "vocab_size": 12,
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "moe_intermediate_size": [4, 2],
        "moe_k": 2,
        "moe_num_experts": 3,
        "moe_num_shared_experts": 1,
        "rope_parameters": {"mrope_section": [0, 0, 2]},
    },
    "vision_config": {"depth": 1, "hidden_size": 4, "num_heads": 1, "intermediate_size": 4, "patch_size": 2},
    **{f"{name}_{place}token_id": 5 for name in ("image", "video") for place in ("", "start_", "end_")},
}
EXPERT = "model.layers.1.mlp.experts.4.up_proj.weight"  # (2, 8), vision expert 1
NORM = "model.norm.weight"  # (8,)
GATE = "model.layers.1.mlp.gate.weight"
BIAS = "model.layers.1.mlp.moe_statics.e_score_correction_bias"


@dataclass
class Tensors:
    """Entries of a safetensors file, to be damaged before it is written."""

    entries: dict[str, Any] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)

    def add(self, name: str, shape: list[int], dtype: str = "F32", values: bytes | None = None) -> None:
        begin = len(self.data)
        item_bytes = {"F32": 4, "I64": 8, "F64": 8, "U8": 1}[dtype]
        self.data += values if values is not None else bytes(item_bytes * math.prod(shape))
        self.entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, len(self.data)]}

    def write(self, path: Path, header: bytes | None = None, length: int | None = None) -> Path:
        raw = json.dumps(self.entries).encode() if header is None else header
        raw += b" " * (-len(raw) % 8)
        path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + self.data)
        return path


def hub_shapes(config: ModelConfig) -> dict[str, list[int]]:
    """Name and shape of every tensor in a file of the hub's layout."""
    expected = ExpectedShapes(config)
    shapes: dict[str, list[int]] = {}
    for ours in expected.names():
        shape = list(expected.shape(ours) or ())
        name = name_in_file(ours, "hub", config.text.banks)
        if name.endswith("e_score_correction_bias"):
            shape = [2, *shape]
        elif ".mlp.gate.weight" in name:
            shape = shape[::-1]
        shapes[name] = shape
    return shapes


SHAPES = hub_shapes(parse_config(CONFIG, "config.json"))


def good_tensors(names: list[str] | None = None) -> Tensors:
    tensors = Tensors()
    for name in names or list(SHAPES):
        tensors.add(name, SHAPES[name])
    return tensors


def write_config(directory: Path) -> Path:
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def write_good(directory: Path) -> Path:
    good_tensors().write(directory / "model.safetensors")
    return write_config(directory)


def read_everything(directory: Path) -> int:
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        for name in checkpoint.names():
            checkpoint.read(name, torch.empty(checkpoint.shape(name)))
        return len(checkpoint.names())


def refusal(action: Callable[[], object]) -> ModelUnusable | None:
    """The refusal that `action` ends in, None if it succeeds; any other exception is a failure."""
    try:
        action()
    except ModelUnusable as error:
        return error
    return None


def assert_refused(directory: Path, *fragments: str) -> None:
    with pytest.raises(ModelUnusable) as caught:
        read_everything(directory)
    message = str(caught.value)
    assert caught.value.exit_code == 4
    lines = message.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("try: ")
    assert message.isascii()
    assert str(directory) in lines[0]
    for fragment in fragments:
        assert re.search(fragment, message), f"{fragment!r} not in:\n{message}"


def test_the_good_one_is_read(tmp_path: Path) -> None:
    assert read_everything(write_good(tmp_path)) == len(SHAPES) + 1  # one bias tensor holds two of ours


def edit(name: str, **changes: Any) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.entries[name].update(changes)


def offsets(name: str, begin: int, end: int) -> Callable[[Tensors], object]:
    def move(tensors: Tensors) -> None:
        old = tensors.entries[name]["data_offsets"]
        tensors.entries[name]["data_offsets"] = [old[0] + begin, old[1] + end]

    return move


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: replace(
        tensors, {key: value for key, value in tensors.entries.items() if key != name}
    )


def replace(tensors: Tensors, entries: dict[str, Any]) -> None:
    """The same tensors anew without gaps, those of `entries` with their shape and type."""
    fresh = Tensors()
    for name, entry in entries.items():
        fresh.add(name, entry["shape"], entry["dtype"])
    tensors.entries, tensors.data = fresh.entries, fresh.data


def reshaped(name: str, shape: list[int], dtype: str = "F32") -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors.entries[name] |= {"shape": shape, "dtype": dtype}
        replace(tensors, tensors.entries)

    return change


def added(name: str, shape: list[int], dtype: str = "F32") -> Callable[[Tensors], object]:
    return lambda tensors: tensors.add(name, shape, dtype)


def value_of(name: str, index: int, raw: bytes) -> Callable[[Tensors], object]:
    def put(tensors: Tensors) -> None:
        begin = tensors.entries[name]["data_offsets"][0] + 4 * index
        tensors.data[begin : begin + 4] = raw

    return put


def two_heads(tensors: Tensors) -> None:
    for name in ("lm_head.weight", "model.lm_head.weight"):
        tensors.add(name, [12, 8])


def not_an_object(tensors: Tensors) -> None:
    tensors.entries[NORM] = []


def same_place(tensors: Tensors) -> None:
    entries = tensors.entries
    entries[NORM]["data_offsets"] = entries["model.layers.0.input_layernorm.weight"]["data_offsets"]


# The damage, and what the message must say of it; `{expert}` and `{norm}` are the names in quotes.
BROKEN_TENSORS: dict[str, tuple[Callable[[Tensors], object], str]] = {
    "overlap": (
        offsets(NORM, -4, -4),
        r"{norm} begins at byte \d+ of the file and overlaps '.*', which ends at byte",
    ),
    "in one place": (same_place, r"begins at byte \d+ of the file and overlaps '.*', which ends at byte \d+"),
    "gap": (lambda tensors: tensors.data.extend(bytes(4)), r"has \d+ bytes, but its tensors end at byte \d+"),
    "beyond the file": (
        offsets(NORM, 10**6, 10**6),
        r"has \d+ bytes, but tensor {norm} would end at byte 10\d+",
    ),
    "far beyond": (
        offsets(NORM, 1 << 80, 1 << 80),
        r"has \d+ bytes, but tensor {norm} would end at byte 12089258196",
    ),
    "end before begin": (offsets(NORM, 64, 0), "{norm} takes -32 bytes by its offsets, but 32 by its shape"),
    "negative offset": (
        edit(NORM, data_offsets=[-32, 0]),
        "{norm} has data_offsets that are not two numbers from 0",
    ),
    "one offset": (edit(NORM, data_offsets=[0]), "{norm} has data_offsets that are not two"),
    "offsets of text": (edit(NORM, data_offsets=["0", "32"]), "{norm} has data_offsets that are not two"),
    "offsets of floats": (edit(NORM, data_offsets=[0.0, 32.0]), "{norm} has data_offsets that are not two"),
    "shape too large": (
        edit(NORM, shape=[9]),
        r"takes 32 bytes by its offsets, but 36 by its shape \(9\) and dtype F32",
    ),
    "shape wraps to 0": (edit(NORM, shape=[1 << 32, 1 << 32]), "takes 32 bytes by its offsets, but 7378697"),
    "huge shape": (edit(NORM, shape=[10**300] * 8), "but an integer of [0-9]+ bits by its shape"),
    "negative shape": (
        edit(NORM, shape=[-1, -8]),
        "{norm} has a shape that is not a list of up to 8 sizes from 0",
    ),
    "long shape": (edit(NORM, shape=[1] * 9), "{norm} has a shape that is not a list of up to 8"),
    "shape of truth": (edit(NORM, shape=[True] * 8), "{norm} has a shape that is not"),
    "unknown dtype": (edit(NORM, dtype="F31"), "{norm} has the dtype 'F31', known are F64, F32"),
    "dtype of objects": (edit(NORM, dtype={}), "{norm} has the dtype an object of 0 entries"),
    "entry is a list": (
        not_an_object,
        "{norm} has not exactly the entries dtype",
    ),
    "entry too many": (
        edit(NORM, scale=True),
        "{norm} has not exactly the entries dtype, shape and data_offsets",
    ),
    "metadata": (
        lambda tensors: tensors.entries.update(__metadata__={"a": {}}),
        "__metadata__ that is not an object",
    ),
    "integers": (
        reshaped(EXPERT, [2, 8], "I64"),
        "{expert} has the dtype I64, expected one of F32, F16, BF16",
    ),
    "double precision": (reshaped(NORM, [8], "F64"), "{norm} has the dtype F64, expected one of"),
    "bytes": (reshaped(NORM, [8], "U8"), "{norm} has the dtype U8, expected one of"),
    "wrong shape": (reshaped(EXPERT, [2, 9]), r"{expert} has the shape \(2, 9\), expected \(2, 8\)"),
    "turned": (reshaped(EXPERT, [8, 2]), r"{expert} has the shape \(8, 2\), expected \(2, 8\)"),
    "flat": (reshaped(EXPERT, [16]), r"{expert} has the shape \(16\), expected \(2, 8\)"),
    "empty": (reshaped(EXPERT, [2, 0]), r"{expert} has the shape \(2, 0\), expected \(2, 8\)"),
    "gate not turned": (reshaped(GATE, [3, 8]), r"has the shape \(3, 8\), expected \(8, 3\)"),
    "one bank of bias": (reshaped(BIAS, [1, 3]), r"has the shape \(1, 3\), expected \(2, 3\)"),
    "missing expert": (drop(EXPERT), r"{expert} of shape \(2, 8\) is missing; 71 of 72 tensors were found"),
    "missing norm": (drop(NORM), r"{norm} of shape \(8\) is missing; 71 of 72"),
    "no tensors": (lambda tensors: replace(tensors, {}), "is missing; 0 of 72 tensors were found"),
    "extra expert": (
        added("model.layers.1.mlp.experts.6.up_proj.weight", [2, 8]),
        r"experts.6.up_proj.weight' of shape \(2, 8\) is one too many[^|]*3 text and 3 vision experts",
    ),
    "experts in a dense layer": (
        added("model.layers.0.mlp.experts.0.up_proj.weight", [4, 8]),
        "is one too many[^|]*2 layers, 1 of them with",
    ),
    "a layer too many": (added("model.layers.2.input_layernorm.weight", [8]), "is one too many[^|]*2 layers"),
    "unknown tensor": (
        added("model.adapter.weight", [8]),
        r"'model.adapter.weight' of shape \(8\) is one too many",
    ),
    "hostile name": (added("\x1b[2J\n" * 99, [8]), r"'\\x1b\[2J\\n.* is one too many"),
    "both layouts": (
        added("model.language_model.norm.weight", [8]),
        r"'model.language_model.norm.weight' at byte \d+ is there twice, also as {norm} at byte \d+",
    ),
    "two heads": (two_heads, r"'model.lm_head.weight' at byte \d+ is there twice"),
    "head of another shape": (
        added("lm_head.weight", [13, 8]),
        r"has the shape \(13, 8\), expected \(12, 8\)",
    ),
    "nan": (value_of(EXPERT, 13, b"\x00\x00\xc0\x7f"), "{expert} holds nan at element 13 "),
    "overflows": (value_of(EXPERT, 13, b"\xca\xf2\x49\x71"), "{expert} holds 1e\\+30 at element 13 "),
    "inf": (value_of(NORM, 7, b"\x00\x00\x80\xff"), "{norm} holds -inf at element 7 "),
}


@pytest.mark.parametrize("kind", BROKEN_TENSORS)
def test_broken_tensors(kind: str, tmp_path: Path) -> None:
    damage, message = BROKEN_TENSORS[kind]
    tensors = good_tensors()
    damage(tensors)
    tensors.write(write_config(tmp_path) / "model.safetensors")
    message = message.replace("{expert}", re.escape(f"'{EXPERT}'")).replace("{norm}", re.escape(f"'{NORM}'"))
    # What is missing is missing from the directory; all else lies in a file.
    assert_refused(tmp_path, "" if "is missing" in message else "model.safetensors: ", message)


def doubled_key() -> bytes:
    header = json.dumps(good_tensors().entries)
    return header.replace(f'"{NORM}"', f'"{next(iter(SHAPES))}"').encode()


BROKEN_HEADERS: dict[str, tuple[bytes | None, int | None, list[str]]] = {
    "length of 2^60": (None, 1 << 60, [f"claims a header of {1 << 60} bytes, but has [0-9]+ bytes in all"]),
    "length of 2^64 - 1": (None, (1 << 64) - 1, ["claims a header of 18446744073709551615 bytes"]),
    "length 0": (None, 0, ["is not valid JSON"]),
    "length too short": (None, 100, ["is not valid JSON"]),
    "not JSON": (b"\x80\x02}q\x00(weights", None, ["is not valid JSON"]),
    "not an object": (b"[]", None, ["it holds a list of 0 entries where an object"]),
    "doubled key": (doubled_key(), None, ["the key 'model.embed_tokens.weight' stands twice"]),
    "deep": (b'{"a":' * 50000, None, ["nested too deeply"]),
    "NaN": (b'{"a": NaN}', None, ["NaN is not a JSON number"]),
}


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
def test_broken_headers(kind: str, tmp_path: Path) -> None:
    header, length, fragments = BROKEN_HEADERS[kind]
    good_tensors().write(write_config(tmp_path) / "model.safetensors", header, length)
    assert_refused(tmp_path, "model.safetensors", *fragments)


@pytest.mark.parametrize("size", [LARGEST_HEADER + 1, 100 << 20, 200 << 20])
def test_a_bomb_of_a_header_is_not_read(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sparse: the file really has that many bytes, and takes no room.
    with (write_config(tmp_path) / "model.safetensors").open("wb") as file:
        file.write(size.to_bytes(8, "little") + b'{"a":')
        file.truncate(8 + size)
    monkeypatch.setattr("ernie_local.checkpoint.header.parse_json_object", None)
    assert_refused(tmp_path, f"claims a header of {size / 2**20:.1f} MiB, the limit is 16.0 MiB")


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1, -400])
def test_a_truncated_file(kept: int, tmp_path: Path) -> None:
    path = write_good(tmp_path) / "model.safetensors"
    full = path.read_bytes()
    path.write_bytes(full[:kept])
    size = len(full[:kept])
    assert_refused(tmp_path, "model.safetensors: ", f"has {size} bytes", "cut off")


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 4998336128\n"
    (write_config(tmp_path) / "model.safetensors").write_bytes(pointer)
    assert_refused(tmp_path, "model.safetensors is a git-lfs pointer", "try: run 'git lfs pull'")


def test_a_directory_or_pipe_in_place_of_the_file(tmp_path: Path) -> None:
    path = write_config(tmp_path) / "model.safetensors"
    path.mkdir()
    assert_refused(tmp_path, "model.safetensors cannot be read", "not a plain file")
    path.rmdir()
    os.mkfifo(path)
    assert_refused(tmp_path, "model.safetensors cannot be read", "not a plain file")


@pytest.mark.parametrize(
    ("files", "fragments"),
    [
        (
            [],
            [
                "has neither model.safetensors nor model.safetensors.index.json",
                "1 entries, none of them weights",
            ],
        ),
        (
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
            ["2 PyTorch pickles", "convert"],
        ),
        (["ernie.gguf"], ["1 GGUF files such as 'ernie.gguf'"]),
        (
            ["model-00001-of-00002.safetensors"],
            ["1 other safetensors files", "model.safetensors.index.json too"],
        ),
    ],
)
def test_a_directory_without_safetensors(files: list[str], fragments: list[str], tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).write_bytes(b"")
    assert_refused(write_config(tmp_path), *fragments)


def test_an_empty_directory(tmp_path: Path) -> None:
    assert_refused(tmp_path, "has no config.json")


def test_a_native_bank_with_an_expert_too_many(tmp_path: Path) -> None:
    config = parse_config(CONFIG, "config.json")
    tensors = good_tensors([name for name in SHAPES if ".experts." not in name])
    for bank, inner in (("text", 4), ("vision", 2)):
        prefix = f"model.language_model.layers.1.mlp.{bank}_moe.experts"
        tensors.add(f"{prefix}.gate_up_proj", [3, 2 * inner, 8])
        tensors.add(f"{prefix}.down_proj", [4 if bank == "vision" else 3, 8, inner])
    tensors.write(tmp_path / "model.safetensors")
    with pytest.raises(ModelUnusable, match=r"has the shape \(4, 8, 2\), expected \(3, 8, 2\)"):
        open_checkpoint(tmp_path, config)


def test_a_config_that_claims_a_giant_costs_nothing(tmp_path: Path) -> None:
    write_good(tmp_path)
    text = {**CONFIG["text_config"], "num_hidden_layers": 4096, "moe_num_experts": 4096, "moe_k": 4096}
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "text_config": text}))
    assert_refused(tmp_path, "model.safetensors: tensor .* has the shape .*, expected .*4096|is missing")


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 30), num_changes=st.integers(1, 4), at_start=st.booleans())
def test_any_change_of_bytes_is_read_or_refused(
    seed: int, num_changes: int, at_start: bool, tmp_path: Path
) -> None:
    draw = random.Random(seed)
    raw = bytearray(good_tensors().write(write_config(tmp_path) / "model.safetensors").read_bytes())
    for _ in range(num_changes):
        position = draw.randrange(40 if at_start else len(raw))
        change = draw.choice(["flip", "digit", "cut", "insert"])
        if change == "flip":
            raw[position] ^= 1 << draw.randrange(8)
        elif change == "digit":
            raw[position] = draw.choice(b'0123456789-[]{}",:')
        elif change == "cut":
            del raw[position : position + draw.randint(1, 9)]
        else:
            raw[position:position] = draw.randbytes(draw.randint(1, 9))
    (tmp_path / "model.safetensors").write_bytes(raw)
    error = refusal(lambda: read_everything(tmp_path))
    assert error is None or len(str(error).splitlines()) == 3


HEADER_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 64)
    | st.floats()
    | st.sampled_from(["F32", "BF16", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_header_of_json_is_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    entries: dict[str, Any] = json.loads(json.dumps(good_tensors(list(SHAPES)[:4]).entries))
    name = data.draw(st.sampled_from([*entries, "__metadata__", "new"]))
    if name in entries and data.draw(st.booleans()):
        entries[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))] = data.draw(
            HEADER_VALUE
        )
    else:
        entries[name] = data.draw(HEADER_VALUE)
    path = good_tensors(list(SHAPES)[:4]).write(tmp_path / "x.safetensors", json.dumps(entries).encode())
    error = refusal(lambda: read_safetensors_header(path))
    if error is not None:
        assert str(path) in str(error)
        return
    size = path.stat().st_size
    for tensor in read_safetensors_header(path).values():
        assert 8 < tensor.offset <= tensor.offset + tensor.num_bytes <= size
