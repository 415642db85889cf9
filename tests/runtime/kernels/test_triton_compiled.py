"""Every Triton kernel compiled for every generation of GPUs, without one: registers, shared memory, loads.

In a process of its own that does not interpret, with an empty cache, by benchmarks/triton_registers.py, which
also makes the table of docs/performance.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "triton_registers.py"
# Bytes of shared memory that one program may have, from the CUDA C++ Programming Guide.
SHARED_LIMITS = {75: 65536, 80: 166912, 86: 101376, 89: 101376, 90: 232448, 120: 101376}
# With 64 a multiprocessor has room for 1024 threads, with 128 for 512: enough reads under way for the memory.
MOST_DECODE_REGISTERS, MOST_OF_TWO_WORDS = 64, 128
PRODUCTS_OF_ONE = ("gate_and_up", "down", "linear_of_one")
PRODUCTS_OF_MANY = ("gate_and_up_of_many", "down_of_many", "linear_of_many")
DECODE = (
    *PRODUCTS_OF_ONE,
    "unpack_rows",
    "add_choices",
    "turn_and_store",
    "attend_stretch",
    "join_stretches",
)
ALL = {*DECODE, *PRODUCTS_OF_MANY, "order_by_plane", "attend_many"}
# Of one program, so that a multiprocessor of any GPU with tensor cores has room for two of them.
MOST_CHUNK_SHARED = 49152


def compiled(cache: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON")}
    told = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    needs: list[dict[str, Any]] = json.loads(told.splitlines()[-1])["needs"]
    return needs


def check(needs: list[dict[str, Any]]) -> None:
    for need in needs:
        assert need["shared_bytes"] <= SHARED_LIMITS[need["arch"]], need
        assert need["spill_bytes"] == 0, need
        if need["kernel"] in PRODUCTS_OF_ONE:
            has_two_words = need["what"] in {"w3", "w2t"}  # of a row in a block
            assert need["registers"] <= (MOST_OF_TWO_WORDS if has_two_words else MOST_DECODE_REGISTERS), need
            assert need["wide_loads"] >= 2, need  # 32 bytes of codes for each thread
        if need["kernel"] == "attend_stretch":
            assert need["wide_loads"] >= 2, need  # keys and values
        is_on_tensor_cores = need["arch"] >= 80 and need["what"] != "float32"
        if need["kernel"] in (*PRODUCTS_OF_MANY, "attend_many") and is_on_tensor_cores:
            assert need["tensor_products"] > 0, need
        if need["kernel"] == "attend_many":
            assert need["wide_loads"] >= 2, need  # queries, keys and values
            assert need["shared_bytes"] <= MOST_CHUNK_SHARED, need


@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMITS)
def test_all_kernels_fit_every_gpu(tmp_path: Path, arch: int) -> None:
    # A format takes 20 seconds: all of them on the oldest and the newest.
    formats: tuple[str, ...] = ("w4", "w2", "w8") if arch == 86 else ("w4",)
    if arch in (min(SHARED_LIMITS), max(SHARED_LIMITS)):
        formats = ("w4", "w2", "w8", "w3", "w2l", "w2s", "w2t")
    needs = compiled(tmp_path, "--arch", str(arch), "--formats", *formats)
    assert {need["kernel"] for need in needs} == ALL
    assert {need["what"] for need in needs} >= {*formats, "float16", "int8"}
    check(needs)
