"""Makes all measurements of this machine, in order, and derives its rates from them.

Rates of bytes come first. What a decoded token costs beside its bytes is measured on a model so small that
little else is left: with all experts in memory, with paging that finds them all, and with paging that misses
many. Bytes are taken off as planner/rates.py counts them, so that its formula gives back what was seen.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.config import read_config
from ernie_local.engine import Engine
from ernie_local.experts.build import PagingSetup, paging_plan
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading.build import build_model
from ernie_local.machine import compute, disk
from ernie_local.machine.random_model import text_ids, write_random
from ernie_local.model.ernie import ErnieModel
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.planner.cpu_limits import CpuLimits
from ernie_local.planner.model_size import read_model
from ernie_local.planner.profile import Measurement, efficiency_cores_help
from ernie_local.planner.rates import GpuRates, PagingCosts, Rates, decode_seconds
from ernie_local.sizes import MIB
from ernie_local.strict_json import read_json_object

DISK, SMALL_READS = "disk_bytes_per_second", "disk_4096_bytes_per_second"
_DISK_SECONDS, _SMALL_READ_SECONDS = 1.5, 0.2
_PLAIN_FORMATS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class Survey:
    """Rates of packed weights and of plain ones, and all that was measured, by name."""

    rates: Rates
    plain_rates: Rates
    measurements: dict[str, Measurement]


def survey_machine(
    tell: Callable[[str], None], model_file: Path | None = None, page_bytes: int = disk.PAGE_BYTES
) -> Survey:
    """Measure everything; half a minute. tell: is told what is measured now.

    Where efficiency cores are there, computes from then on with as many threads as were faster.

    model_file: a file of the model's, to read from where it is large enough; else one is written to the
    folder for temporary files. page_bytes: of a read.
    """
    measurements: dict[str, Measurement] = {}
    with tempfile.TemporaryDirectory(prefix="ernie-local-bench.") as folder:
        tell("disk")
        measurements |= _measure_disk(model_file, page_bytes, Path(folder))
        measurements |= choose_cores(CpuLimits.of_machine(), tell)
        tell("CPU kernels")
        measurements |= dict(compute.measure_kernels())
        gpu = None
        if torch.cuda.is_available():
            tell("gpu")
            found = compute.measure_gpu(torch.device("cuda"))
            measurements |= found
            gpu = compute.gpu_rates(found)
        rates = _byte_rates(measurements, compute.measured_formats(), compute.PROMPT, gpu)
        plain_rates = _byte_rates(measurements, _PLAIN_FORMATS, compute.PLAIN_PROMPT, gpu)
        tell("what a decoded token costs beside reading weights")
        nano, packed = resolve_model("nano"), Path(folder) / "packed"
        write_small_packed(nano, packed)
        costs = measure_fixed_costs(packed, rates)
        plain_costs = measure_fixed_costs(nano, plain_rates)
    measurements |= _named(costs, "") | _named(plain_costs, "plain_")
    return Survey(costs.added_to(rates), plain_costs.added_to(plain_rates), measurements)


@dataclass(frozen=True, slots=True)
class FixedCosts:
    """Seconds: of a token beside its layers, of a layer, of a paged layer, of a missing page; see Rates."""

    token: Measurement
    layer: Measurement
    paged_layer: Measurement
    page: Measurement

    def added_to(self, rates: Rates) -> Rates:
        """Rates with these costs: the least that was seen, as whatever disturbs them only adds."""
        return dataclasses.replace(
            rates,
            token_seconds=self.token.low,
            layer_seconds=self.layer.low,
            paging=PagingCosts(self.paged_layer.low, self.page.low),
        )


@dataclass(frozen=True, slots=True)
class TimedToken:
    """Seconds that one took, of them in layers, and the pages that it missed."""

    seconds: float
    layers_seconds: float
    misses: int


# By rounds, with this memory for paged experts, None for all in memory.
DecodeRounds = Callable[[int | None], list[list[TimedToken]]]


@dataclass(frozen=True, slots=True)
class SmallModelDecoder:
    """Decodes random text with the model in `directory`: so many tokens a round, behind some to warm up."""

    directory: Path
    rounds: int = 7
    tokens: int = 16
    warm_tokens: int = 48
    clock: compute.Clock = time.perf_counter

    def __call__(self, expert_bytes: int | None) -> list[list[TimedToken]]:
        """expert_bytes: for paged experts, the conversation's memory comes on top; None for all in memory."""
        config = read_config(self.directory)
        num_tokens = self.warm_tokens + self.rounds * self.tokens
        context_size = num_tokens + 8
        paging = None
        if expert_bytes is not None:
            conversation = context_size * kv_bytes_per_token(config.text, torch.float32) + MIB
            paging = PagingSetup(expert_bytes + conversation)
        with open_checkpoint(self.directory, config) as checkpoint:
            network = build_model(checkpoint, config, torch.float32, torch.device("cpu"), paging)
        network.experts.wait_until_resident()
        marks: list[float] = []
        network.layers[0].register_forward_pre_hook(lambda *_: marks.append(self.clock()))
        network.layers[-1].register_forward_hook(lambda *_: marks.append(self.clock()))
        engine = Engine(network, context_size)
        timed = []
        for token_id in text_ids(config, num_tokens):
            misses = _misses(network)
            marks.clear()
            start = self.clock()
            engine.decode(token_id)
            seconds = self.clock() - start
            timed.append(TimedToken(seconds, marks[1] - marks[0], _misses(network) - misses))
        if isinstance(network.experts, PagedExperts):
            network.experts.close()
        return [
            timed[start : start + self.tokens] for start in range(self.warm_tokens, num_tokens, self.tokens)
        ]


def write_small_packed(source: Path, directory: Path) -> None:
    """A checkpoint of the sizes of the model in `source`, random and packed, in a new `directory`."""
    tables = format_tables(read_config(source), FormatChoice(vision=None))
    write_random(directory, read_json_object(source / "config.json"), tables, seed=0)


def measure_fixed_costs(directory: Path, rates: Rates, decode: DecodeRounds | None = None) -> FixedCosts:
    """Of the kind of weights that the small model in `directory` has; rates: those of bytes, costs aside.

    decode: SmallModelDecoder(directory) by default.
    """
    decode = SmallModelDecoder(directory) if decode is None else decode
    rates = dataclasses.replace(rates, token_seconds=0.0, layer_seconds=0.0, paging=None)
    config = read_config(directory)
    with open_checkpoint(directory, config) as checkpoint:
        plan = paging_plan(checkpoint, config)
    assert plan is not None, "a model with experts is measured"
    work = read_model(directory).decode_work("float32")
    byte_seconds = decode_seconds(work, rates)

    def left(one: TimedToken) -> float:
        """The share that bytes leave; their seconds come off a token and its layers alike."""
        return max(0.0, 1 - byte_seconds / one.seconds)

    def beyond(one: TimedToken) -> float:
        """Seconds that the rates so far do not explain."""
        hit_rate = 1 - one.misses / (work.moe_layers * work.experts_per_token)
        return max(0.0, one.seconds - decode_seconds(work, rates, hit_rate))

    seen = decode(None)
    token = _by_rounds(seen, lambda one: (one.seconds - one.layers_seconds) * left(one))
    layer = _by_rounds(seen, lambda one: one.layers_seconds * left(one) / work.num_layers)
    rates = dataclasses.replace(rates, token_seconds=token.low, layer_seconds=layer.low)
    paged_layer = _by_rounds(decode(plan.most_bytes), lambda one: beyond(one) / work.moe_layers)
    rates = dataclasses.replace(rates, paging=PagingCosts(paged_layer.low, 0.0))
    scarce = plan.least_bytes + (plan.most_bytes - plan.least_bytes) // 4
    missing = [[one for one in tokens if one.misses] for tokens in decode(scarce)]
    page = _by_rounds(missing, lambda one: beyond(one) / one.misses)
    return FixedCosts(token, layer, paged_layer, page)


def choose_cores(limits: CpuLimits, tell: Callable[[str], None]) -> dict[str, Measurement]:
    """Compute with performance cores alone or with all, as is faster from now on; returns what was measured.

    Nothing where cores are of one kind, or a quota leaves no time for efficiency cores.
    """
    kinds, useful = limits.kinds, limits.useful_threads
    if kinds is None or kinds.performance >= useful:
        return {}
    kinds = kinds._replace(all=min(kinds.all, useful))
    tell("cores of two kinds")
    measured = compute.measure_core_kinds(kinds)
    torch.set_num_threads(kinds.all if efficiency_cores_help(measured) else kinds.performance)
    return measured


def _measure_disk(model_file: Path | None, page_bytes: int, folder: Path) -> dict[str, Measurement]:
    source: AbstractContextManager[Path] = disk.temporary_file(folder)
    if model_file is not None and disk.holds_pages(model_file, page_bytes):
        source = nullcontext(model_file)
    with source as path:
        return {
            DISK: disk.measure_disk(path, page_bytes, _DISK_SECONDS).speed,
            SMALL_READS: disk.measure_small_reads(path, _SMALL_READ_SECONDS),
        }


def _byte_rates(
    measured: dict[str, Measurement], formats: tuple[str, ...], prompt: str, gpu: GpuRates | None
) -> Rates:
    """Without the costs of tokens and layers; the first format stands for those that were not measured."""
    formats_measured = (*compute.measured_formats(), *_PLAIN_FORMATS)
    each = {name: measured[compute.format_measurement(name)].median for name in formats_measured}
    return Rates(
        disk_bytes_per_second=measured[DISK].median,
        memory_bytes_per_second=each[formats[0]],
        operations_per_second=measured[prompt].median,
        token_seconds=0.0,
        layer_seconds=0.0,
        gpu=gpu,
        format_rates=each,
    )


def _named(costs: FixedCosts, prefix: str) -> dict[str, Measurement]:
    return {
        f"{prefix}{field.name}_seconds": getattr(costs, field.name) for field in dataclasses.fields(costs)
    }


def _misses(network: ErnieModel) -> int:
    experts = network.experts
    return experts.stats.banks["text"].decode_misses if isinstance(experts, PagedExperts) else 0


def _by_rounds(rounds: list[list[TimedToken]], value: Callable[[TimedToken], float]) -> Measurement:
    """Medians of rounds; nothing where there was nothing to see."""
    return Measurement.of([statistics.median(map(value, tokens)) for tokens in rounds if tokens] or [0.0])
