"""Fixtures of tests that quantize: runs without what takes longer than all units of a small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import QuantizationConfig, read_config
from ernie_local.kernels import native
from ernie_quant import rehearsal
from tests.report_contents import plots_left_out
from tests.sharded import write_deep_nano


@pytest.fixture(scope="session")
def small_nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano's first three layers with four experts of each bank, a tenth of it. Not to be written to."""
    return write_deep_nano(tmp_path_factory.mktemp("small") / "nano", 3, 1)


@pytest.fixture(scope="session")
def small_tables(small_nano: Path) -> QuantizationConfig:
    """Of `small_nano`, with experts in w2."""
    return format_tables(read_config(small_nano), FormatChoice("w2"))


@pytest.fixture
def undrawn() -> Iterator[None]:
    """Plots without pixels."""
    with plots_left_out():
        yield


@pytest.fixture(scope="module")
def short_jobs() -> Iterator[None]:
    """Reports have no plots, and rehearsals time one expert. Tests of both do not ask for this."""
    with pytest.MonkeyPatch.context() as patch, plots_left_out():
        patch.setattr(rehearsal, "_TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(params=["compiled", "torch"])
def inner_loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for this holds for the compiled inner loops and for the plain torch code."""
    if request.param == "torch":
        monkeypatch.setattr(native, "find_module", lambda: (None, "to compute with torch"))
    else:
        assert native.native_module() is not None
