"""How long a model takes until it can compute: from bytes in files and rates alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.planner.fit import Placement
from ernie_local.planner.model_size import ModelSize, published_model, read_model
from ernie_local.planner.rates import Rates
from ernie_local.planner.start import predict_start

RESIDENT, PAGED = Placement(None, 2048), Placement(8 << 30, 512)
DISK = 1e9
RATES = Rates(DISK, 20e9, 1e11, 0.001, 0.0001)


@pytest.fixture(scope="module")
def w4() -> ModelSize:
    plain = published_model()
    tables = format_tables(plain.config, FormatChoice(small_experts="w2"))
    return dataclasses.replace(plain, config=dataclasses.replace(plain.config, quantization=tables))


def test_packed_layers_are_not_waited_for_where_they_are_mapped(w4: ModelSize) -> None:
    start = predict_start(w4, RESIDENT, 4, RATES)
    small = sum(part.num_bytes for part in w4.parts if part.is_small)
    later = sum(
        tensor.num_bytes
        for tensor in w4.tensors
        if tensor.is_packed and tensor.name.partition(".")[0] in ("experts", "layers")
    )
    first = sum(part.num_bytes for part in w4.parts) - later - small
    assert small > 0
    assert start.cold - start.warm == pytest.approx(first / DISK)
    assert start.all_read - start.cold == pytest.approx(later / DISK)
    assert start.warm < 2


def test_paged_experts_are_not_waited_for_and_leave_no_warm_files(w4: ModelSize) -> None:
    resident, paged = (predict_start(w4, placement, 4, RATES) for placement in (RESIDENT, PAGED))
    assert paged.warm == paged.cold == paged.all_read
    assert paged.cold > resident.cold  # dense weights are copied


def test_plain_weights_are_all_read_before(tiny_checkpoint: Path) -> None:
    model = read_model(tiny_checkpoint)
    start = predict_start(model, RESIDENT, 4, RATES)
    assert start.all_read == start.cold
    assert start.cold - start.warm == pytest.approx(sum(part.num_bytes for part in model.parts) / DISK)
