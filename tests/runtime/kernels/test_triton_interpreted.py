"""Starts the tests of the Triton kernels by Triton's interpreter, and sees that they fail for wrong kernels.

The interpreter is chosen when triton is first imported; so the tests have processes of their own. They are
forked from one that has imported torch and triton, which takes longer than most of them, and no kernels.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import ernie_local

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"
KERNELS = Path(ernie_local.__file__).parent / "kernels" / "triton"
FILES = sorted(path.name for path in FOLDER.glob("test_*.py"))
ALL_PASSED, SOME_FAILED = 0, 1  # exit codes of pytest


FORK_TESTS = """
import json, os, sys
import hypothesis, numpy, pytest, torch, triton
for line in sys.stdin:
    path, arguments = json.loads(line)
    child = os.fork()
    if child == 0:
        with open(path, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = pytest.main(["-n", "0", "-q", "-p", "no:cacheprovider", *arguments])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
RunInterpreted = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def run_interpreted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunInterpreted]:
    """`run_interpreted(*arguments of pytest)`: the exit code, and what was told."""
    path = tmp_path_factory.mktemp("interpreted") / "told"
    with subprocess.Popen(
        [sys.executable, "-c", FORK_TESTS],
        cwd=FOLDER.parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(*arguments: str) -> tuple[int, str]:
            assert process.stdin is not None
            assert process.stdout is not None
            print(json.dumps([str(path), arguments]), file=process.stdin, flush=True)
            return int(process.stdout.readline()), path.read_text()

        yield run


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_kernels_compute_what_plain_torch_does(name: str, run_interpreted: RunInterpreted) -> None:
    code, told = run_interpreted(str(FOLDER / name))
    assert code == ALL_PASSED, told
    assert " passed" in told


class Mutation(NamedTuple):
    """A defect: in this file `right` becomes `wrong`, and tests in `seen_by` that match `which` must fail."""

    name: str
    file: str
    right: str
    wrong: str
    seen_by: str
    which: str = ""


MUTATIONS = [
    Mutation("wrong shift", "unpack.py", "BITS * PLANE -", "BITS * (PLANE ^ 1) -", "test_linear.py"),
    Mutation(
        "wrong group",
        "unpack.py",
        "blocks // SHAPE.group_blocks",
        "blocks // (2 * SHAPE.group_blocks)",
        "test_linear.py",
    ),
    Mutation(
        "missing mask of blocks",
        "unpack.py",
        "tl.zeros([BLOCKS, ROWS], tl.float32)\n    for start in range(0, SHAPE.num_blocks, BLOCKS):\n"
        "        blocks = start + tl.arange(0, BLOCKS)\n        is_block = blocks < SHAPE.num_blocks",
        "tl.zeros([BLOCKS, ROWS], tl.float32)\n    for start in range(0, SHAPE.num_blocks, BLOCKS):\n"
        "        blocks = start + tl.arange(0, BLOCKS)\n        is_block = blocks < SHAPE.num_blocks + 1",
        "test_linear.py",
    ),
    Mutation(
        "wrong high bit", "unpack.py", "% 8 * 4 + COLUMN", "% 8 * 4 + 3 - COLUMN", "test_linear.py", "w3"
    ),
    Mutation("wrong zero", "unpack.py", "whole = both >> 4", "whole = both >> 5", "test_linear.py", "w2"),
    Mutation(
        "wrong history",
        "unpack.py",
        "(SHAPE.num_blocks - 1) * DELAY",
        "(SHAPE.num_blocks - 2) * DELAY",
        "test_linear.py",
        "w2t",
    ),
    Mutation("overflow", "activations.py", "(127 + 14)", "(127 + 24)", "test_linear.py", "beyond"),
    Mutation(
        "places not looked at",
        "expert_parts.py",
        "tl.load(places + expert_id)",
        "(tl.load(places + expert_id) * 0 + expert_id)",
        "test_experts.py",
        "one_token",
    ),
    Mutation(
        "equal choices counted once",
        "experts.py",
        "tl.where(index == choice,",
        "tl.where(waiting == expert_id,",
        "test_experts.py",
        "several_calls",
    ),
    Mutation(
        "unknown pages not marked",
        "experts.py",
        'tl.where(is_known(slots + place * SLOT_BYTES, HEADERS), part, float("nan"))',
        "part",
        "test_experts.py",
        "unknown",
    ),
    Mutation(
        "the last token of a tile left out",
        "expert_parts.py",
        "is_token = positions < tl.load(tile_ends + tile)\n    first",
        "is_token = positions < tl.load(tile_ends + tile) - 1\n    first",
        "test_experts.py",
        "many_tokens",
    ),
    Mutation(
        "missing mask of tokens",
        "attention.py",
        "is_token = token < visible",
        "is_token = token < visible + 1",
        "test_attention.py",
    ),
    Mutation(
        "later tokens seen",
        "chunk_attention.py",
        "<= length + new",
        "<= length + 1 + new",
        "test_chunk_attention.py",
        "later",
    ),
    Mutation(
        "rows of other heads",
        "chunk_attention.py",
        "new = row // GROUP",
        "new = row // (GROUP + 1)",
        "test_chunk_attention.py",
        "sees_itself",
    ),
    Mutation(
        "scales of a chunk's values left out",
        "chunk_attention.py",
        "weights *= tl.div_rn(scales, biggest)[None, :]",
        "pass",
        "test_chunk_attention.py",
        "sees_itself",
    ),
    Mutation("weights not faded", "attention.py", "total * fading", "total", "test_attention.py"),
    Mutation(
        "stretches not joined", "attention.py", "sums * before + own", "sums + own", "test_attention.py"
    ),
    Mutation(
        "int8 cut",
        "attention.py",
        "(numbers + 12582912.0) - 12582912.0",
        "tl.floor(numbers)",
        "test_attention.py",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_wrong_kernel_is_seen(tmp_path: Path, mutation: Mutation, run_interpreted: RunInterpreted) -> None:
    copy = shutil.copytree(KERNELS, tmp_path / "triton")
    source = (copy / mutation.file).read_text()
    assert source.count(mutation.right) == 1
    (copy / mutation.file).write_text(source.replace(mutation.right, mutation.wrong))
    code, told = run_interpreted(
        "-x", "--kernels-from", str(copy), "-k", mutation.which, str(FOLDER / mutation.seen_by)
    )
    assert code == SOME_FAILED, told
