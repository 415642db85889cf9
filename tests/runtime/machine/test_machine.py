"""What measures a machine: units, shapes and sums, by clocks that tests turn. No real second is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ernie_local.checkpoint.uncached_file import UncachedFile
from ernie_local.errors import DoesNotFit
from ernie_local.kernels.arguments import ExpertsCall
from ernie_local.kernels.experts import add_packed_experts
from ernie_local.machine import compute, disk, survey
from ernie_local.machine.compute import (
    GPU_LINK,
    GPU_MEMORY,
    GPU_OPERATIONS,
    LayerSizes,
    measure_gpu,
    measure_rate,
)
from ernie_local.machine.disk import DiskSpeed, measure_disk, measure_small_reads, temporary_file
from ernie_local.machine.survey import FixedCosts
from ernie_local.planner.core_kinds import CoreKinds
from ernie_local.planner.cpu_limits import CpuLimits
from ernie_local.planner.profile import EFFICIENCY_CORE_MEASUREMENTS, Measurement
from ernie_local.planner.rates import PagingCosts, Rates

RATES = Rates(1e9, 1e10, 1e12, 0.0, 0.0)


class Ticks:
    """A clock that goes on by one second each time it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


# timing


def test_a_rate_is_work_over_seconds_without_the_first_call() -> None:
    seconds = iter([2.0, 4.0, 1.0])
    calls: list[int] = []
    now = 0.0

    def run() -> None:
        nonlocal now
        calls.append(1)
        now += next(seconds) if len(calls) > 1 else 100.0

    assert measure_rate(run, 8.0, rounds=3, clock=lambda: now) == Measurement(4.0, 2.0, 8.0, 3)


def test_the_spread_is_kept() -> None:
    assert Measurement.of([5.0, 1.0, 2.0, 4.0]) == Measurement(3.0, 1.0, 5.0, 4)


# disk


def test_bursts_of_pages_are_timed(tmp_path: Path) -> None:
    pauses: list[float] = []
    with temporary_file(tmp_path, 1 << 20) as path:
        assert path.stat().st_size == 1 << 20
        found = measure_disk(path, 5000, 0.0, Ticks(), pauses.append)
    # Each burst lies between two looks at the clock: three pages, rounded up to whole blocks.
    assert found.page_bytes == 8192
    assert found.speed == Measurement(3 * 8192, 3 * 8192, 3 * 8192, 4)
    assert len(pauses) == 4
    assert not path.exists()


def test_more_seconds_are_more_bursts(tmp_path: Path) -> None:
    with temporary_file(tmp_path, 1 << 20) as path:
        assert measure_disk(path, 4096, 30.0, Ticks(), lambda seconds: None).speed.rounds > 8


def test_pages_are_spread_over_the_file_and_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    real = UncachedFile.read

    def note(self: Any, offset: int, into: memoryview) -> None:
        read.append((offset, len(into)))
        real(self, offset, into)

    monkeypatch.setattr(UncachedFile, "read", note)
    with temporary_file(tmp_path, 1 << 20) as path:
        measure_disk(path, 4096, 60.0, Ticks(), lambda seconds: None)
    offsets = [offset for offset, _ in read]
    assert {size for _, size in read} == {4096}
    assert all(offset % 4096 == 0 and offset < 1 << 20 for offset in offsets)
    assert len(set(offsets)) > len(offsets) // 4
    assert max(offsets) > 3 << 18


def test_small_reads(tmp_path: Path) -> None:
    with temporary_file(tmp_path, 1 << 20) as path:
        assert measure_small_reads(path, 0.0, Ticks()) == Measurement(4096.0, 4096.0, 4096.0, 4)


def test_an_error_inside_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="mine"), temporary_file(tmp_path, 4096):
        raise OSError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with pytest.raises(DoesNotFit, match="cannot be written"), temporary_file(tmp_path / "missing"):
        pass


# CPU

SIZES = LayerSizes(hidden=192, inner=64, dense_rows=128, prompt_tokens=40)


def test_each_rate_counts_what_was_read(native_kernels: object) -> None:
    found = dict(compute.measure_kernels(1 << 16, Ticks(), SIZES))
    assert list(found) == [
        *(f"{name}_bytes_per_second" for name in ("w4", "w2", "w8", "float32", "bfloat16")),
        compute.PROMPT,
        compute.PLAIN_PROMPT,
    ]
    # One second a round by that clock.
    calls = compute.CALLS_A_ROUND
    assert found["float32_bytes_per_second"].median == calls * 4 * 64 * 192 * 4
    assert found["bfloat16_bytes_per_second"].median == calls * 4 * 64 * 192 * 2
    assert found["w4_bytes_per_second"].median == calls * 6 * SIZES.page_layout("w4").page_bytes
    assert found["w4_bytes_per_second"].median > found["w2_bytes_per_second"].median
    assert found["w8_bytes_per_second"].median > calls * 128 * 192
    assert found[compute.PROMPT].median == 2 * 40 * 6 * 3 * 192 * 64
    assert found[compute.PLAIN_PROMPT].median == 2 * 40 * 4 * 64 * 192


def test_no_weight_is_read_twice_in_a_row(native_kernels: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def note(output: torch.Tensor, call: ExpertsCall) -> None:
        if call.hidden.shape[0] == 1:
            asked.append(tuple(call.expert_ids.flatten().tolist()))
        add_packed_experts(output, call)

    monkeypatch.setattr(compute, "add_packed_experts", note)
    calls, _ = compute.expert_calls(SIZES, "w4", 30 * SIZES.page_layout("w4").page_bytes)
    for call in calls:
        call()
    assert len(asked) == 5
    assert sorted(sum(asked, ())) == list(range(30))


# GPU


def test_a_gpu_is_measured_in_bytes_and_operations() -> None:
    found = measure_gpu(torch.device("cpu"), num_bytes=1 << 12, product_size=8, clock=Ticks())
    assert {name: one.median for name, one in found.items()} == {
        GPU_LINK: 1 << 12,
        GPU_MEMORY: 1 << 12,
        GPU_OPERATIONS: 2 * 8**3,
    }


def test_kinds_of_cores_are_measured_with_as_many_threads(native_kernels: object) -> None:
    threads: list[int] = []
    sizes = LayerSizes(hidden=64, inner=32, dense_rows=32, top_k=2, prompt_tokens=3)
    found = compute.measure_core_kinds(CoreKinds(2, 5), threads.append, 1, Ticks(), sizes)
    assert threads == [2, 5]
    assert set(found) == {name for names in EFFICIENCY_CORE_MEASUREMENTS for name in names}
    page_bytes = sizes.page_layout("w4").page_bytes
    for names in EFFICIENCY_CORE_MEASUREMENTS:
        for name in names:
            work = 8 * 2 * page_bytes if "token" in name else 2 * 3 * 2 * 3 * 64 * 32
            assert found[name].median == work


# survey


@pytest.mark.parametrize(("gain", "threads"), [(1.5, 12), (0.9, 4)])
def test_the_survey_goes_on_with_the_cores_that_were_faster(
    monkeypatch: pytest.MonkeyPatch, gain: float, threads: int
) -> None:
    chosen: list[int] = []

    def measure(kinds: CoreKinds) -> dict[str, Measurement]:
        assert kinds == CoreKinds(4, 12)
        (all_token, token), (all_prompt, prompt) = EFFICIENCY_CORE_MEASUREMENTS
        values = {all_token: gain, token: 1.0, all_prompt: 1.0, prompt: 1.0}
        return {name: Measurement(value, value, value, 1) for name, value in values.items()}

    monkeypatch.setattr(compute, "measure_core_kinds", measure)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    limits = CpuLimits(20, 20, 12.0, CoreKinds(4, 16))
    told: list[str] = []
    assert survey.choose_cores(limits, told.append)
    assert (chosen, told) == ([threads], ["cores of two kinds"])
    assert survey.choose_cores(limits._replace(quota=3.0), told.append) == {}
    assert survey.choose_cores(limits._replace(kinds=None), told.append) == {}
    assert len(chosen) == 1


def test_the_survey_names_everything_and_takes_rates_from_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def found(value: float) -> Measurement:
        return Measurement(value, value / 2, value * 2, 3)

    read: list[Path] = []

    def measure(path: Path, page_bytes: int, seconds: float) -> DiskSpeed:
        read.append(path)
        return DiskSpeed(found(1e9), page_bytes, True)

    def measure_kernels() -> Iterator[tuple[str, Measurement]]:
        for index, name in enumerate(("w4", "w2", "w8", "float32", "bfloat16")):
            yield f"{name}_bytes_per_second", found(1e10 + index)
        yield compute.PROMPT, found(2e11)
        yield compute.PLAIN_PROMPT, found(1e11)

    given: list[Rates] = []

    def costs(directory: Path, rates: Rates) -> FixedCosts:
        given.append(rates)
        return FixedCosts(*(found(len(given) * value) for value in (1e-3, 1e-4, 1e-5, 1e-6)))

    monkeypatch.setattr(disk, "measure_disk", measure)
    monkeypatch.setattr(disk, "measure_small_reads", lambda path, seconds: found(1e6))
    monkeypatch.setattr(compute, "measure_kernels", measure_kernels)
    monkeypatch.setattr(disk, "temporary_file", lambda folder: temporary_file(folder, 1 << 20))
    monkeypatch.setattr(survey, "write_small_packed", lambda source, directory: directory.mkdir())
    monkeypatch.setattr(survey, "measure_fixed_costs", costs)
    told: list[str] = []
    surveyed = survey.survey_machine(told.append)
    assert surveyed.rates.memory_bytes_per_second == 1e10
    assert surveyed.rates.bytes_per_second("w2") == 1e10 + 1
    assert surveyed.rates.operations_per_second == 2e11
    # Of costs the least that was seen, which is half of the median here.
    assert (surveyed.rates.token_seconds, surveyed.rates.paging) == (5e-4, PagingCosts(5e-6, 5e-7))
    assert surveyed.plain_rates.memory_bytes_per_second == 1e10 + 3
    assert surveyed.plain_rates.operations_per_second == 1e11
    assert surveyed.plain_rates.layer_seconds == 1e-4
    assert surveyed.rates.gpu is None
    assert len(told) == 3
    assert not read[0].exists(), "the file of its own is gone"
    # A file that is too small for its pages is not read again and again.
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"x" * 4096)
    with large.open("wb") as file:
        file.truncate(192 << 20)
    survey.survey_machine(told.append, small)
    survey.survey_machine(told.append, large)
    assert read[1] not in (small, large)
    assert read[2] == large


@pytest.mark.slow
def test_the_real_survey_gives_numbers_above_zero(native_kernels: object) -> None:
    found = survey.survey_machine(lambda what: None)
    assert all(one.low <= one.median <= one.high for one in found.measurements.values())
    costs: Callable[[Rates], float] = lambda rates: rates.token_seconds * rates.layer_seconds  # noqa: E731
    assert costs(found.rates) > 0
    assert costs(found.plain_rates) > 0
    assert found.rates.paging is not None
