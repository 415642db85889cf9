"""The object of `ernie-local bench --json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from ernie_cli.json_object import fill_result
from ernie_local.config import MODALITIES
from ernie_local.planner.profile import HardwareKey, Measurement
from ernie_local.planner.rates import Rates

if TYPE_CHECKING:
    from pathlib import Path

    from ernie_local.loading import LoadedModel
    from ernie_local.machine.model_speed import ModelRun
    from ernie_local.planner.profile import MachineProfile
    from ernie_local.replay.replay import Replayed
    from ernie_local.replay.simulate import Simulated
    from ernie_local.replay.trace import Trace


@dataclass
class MachineObject:
    """This machine. A number that was measured is in bytes or seconds, never in GB or ms.

    | name in `measurements` | what was done |
    |---|---|
    | `disk_bytes_per_second` | three random pages of 6 MiB at a time (of MODEL's files and page size where they are large enough), past the system's cache, with pauses |
    | `disk_4096_bytes_per_second` | single reads of 4 KiB |
    | `w4_bytes_per_second`, `w2_bytes_per_second` | six experts of the published sizes, one token, weights in no cache |
    | `w8_bytes_per_second`, `float32_bytes_per_second`, `bfloat16_bytes_per_second` | matrices, one token, weights in no cache; the last two by PyTorch |
    | `prompt_operations_per_second`, `plain_prompt_operations_per_second` | `w4` experts, and a float32 product, of 256 tokens |
    | `token_seconds`, `layer_seconds`, `paged_layer_seconds`, `page_seconds` | decode of a random packed model of nano's sizes: all experts in memory, then paged with all of them found, then with many missing |
    | `plain_token_seconds`, `plain_layer_seconds`, `plain_paged_layer_seconds`, `plain_page_seconds` | the same with nano itself, in float32 |
    | `gpu_memory_bytes_per_second`, `gpu_link_bytes_per_second`, `gpu_operations_per_second` | with CUDA only: a sum, a copy of page-locked memory to the GPU, a float16 product |
    """  # noqa: E501  rows of a table

    hardware: HardwareKey
    date: str  #: Day of measuring, UTC.
    rates: Rates  #: Of packed weights.
    plain_rates: Rates  #: Of plain weights.
    measurements: dict[str, Measurement]  #: By name, above.


@dataclass
class ImageSpeedObject:
    """One image."""

    tokens: int
    encode_seconds: Measurement  #: Of vision tower and resampler.
    prefill_tokens_per_second: Annotated[Measurement, "prefill"]  #: Of the rest.


@dataclass
class SpeedObject:
    """How fast the model ran."""

    weight_bytes: int  #: Of all weights, as they lie in memory if none is paged.
    expert_memory_bytes: int | None  #: Where experts were paged, the memory for them; else null.
    hit_rate: float | None  #: Where experts were paged, the share that decode found in memory; else null.
    prompt_tokens: int  #: Of the prompt, random text.
    first_token_seconds: Measurement  #: From that prompt to the first token of the answer.
    prefill_tokens_per_second: Annotated[Measurement, "prefill"]
    decode_tokens_per_second: Annotated[Measurement, "decode"]
    """By the median token of each round. Random tokens choose experts evenly; of a real text's, more are in
    memory."""
    predicted_decode_tokens_per_second: Annotated[float, "predicted_decode"]
    """What the rates say for the same hit rate, and for disk and memory as they are between rounds of
    decode."""
    disk_bytes_per_second: Annotated[Measurement | None, "disk"]
    """Measured between these rounds; null where no page is read, and for files so small that the system's
    cache would be measured."""
    memory_share: Measurement | None
    """Measured between these rounds: at what share of `rates` the first matrices of attention are read; null
    of a model so small that caches hold them."""
    image: ImageSpeedObject | None  #: With `--image`.


@dataclass
class BankBytes:
    """Bytes of all pages, by bank."""

    text: int | None = None
    vision: int | None = None


@dataclass
class BankHitsObject:
    """Of one bank."""

    decode_hits: int  #: A page for each token and layer.
    decode_misses: int
    decode_hit_rate: float | None  #: Null of none.
    prompt_hits: int  #: A page for each chunk and layer.
    prompt_misses: int


@dataclass
class PolicyObject:
    """The recorded chat under one policy."""

    policy: Literal["ours", "lru", "lfu", "belady"]
    """`ours` are the counters that the runtime would have after the same chat with experts in this memory, to
    the last page. `belady` sees the future: no policy finds more, where pages of text experts are of one
    size."""
    decay: float | None
    """Of `ours`: what is left of a use one token later, where `--decay` fixed it; else null."""
    bytes_per_token: float | None  #: Bytes read in decode per decoded token; null of 0 tokens.
    prompt_bytes: int  #: Bytes read in all prompts together.
    banks: Annotated[dict[str, BankHitsObject], "stats.banks"]


@dataclass
class BudgetObject:
    """One size of memory for experts."""

    bytes: int
    share: float  #: Of the text experts' bytes.
    policies: list[PolicyObject]


@dataclass
class PredictionObject:
    """The recorded chat with experts in two memories, by the clock of a simulated machine.

    Nothing of it was measured: rates are those of the GPU's data sheet and of this machine's profile, or
    assumed without one.
    """

    gpu: str  #: Its id.
    gpu_bytes: int  #: Memory for experts on the GPU.
    ram_bytes: int  #: Memory for experts in RAM.
    misses: str  #: What happens to experts that the GPU lacks: `fetch`, `compute` or `split`.
    gpu_hit_rate: float | None  #: Share of a decoded token's text experts that are on the GPU; null of none.
    ram_hit_rate: float | None  #: Share of those asked of RAM that are there; null of none.
    predicted_seconds_per_token: float | None
    """Of routed experts alone: attention, head and the rest come on top; null of 0 tokens."""
    predicted_link_wait_seconds_per_token: float | None  #: Of them, the GPU waits for copies to it.
    predicted_disk_wait_seconds_per_token: float | None
    """Of them, the processor waits for the disk. Both waits may overlap."""


@dataclass
class BenchResult:
    """One object, whatever the end of the run; what was measured or replayed before an error is in it.

    Measuring fills `machine`, `model`, `speed` and `saved`; a replay fills `model`, `trace` and what follows.
    """

    machine: MachineObject | None = None  #: This machine.
    model: str | None = None  #: Name of the model that was measured, or that the trace was recorded with.
    speed: SpeedObject | None = None  #: How fast that model ran.
    miss_rules: dict[str, float] = field(default_factory=dict)
    """With `--vram`, tokens per second by each rule for experts that the GPU lacks: `fetch`, `compute`,
    `split`."""
    saved: str | None = None  #: The file in which the profile was stored.
    trace: str | None = None  #: The file.
    prompt_tokens: int | None = None  #: Recorded tokens of prompts.
    decoded_tokens: int | None = None  #: Recorded tokens of answers.
    expert_bytes: BankBytes = field(default_factory=BankBytes)
    budgets: list[BudgetObject] = field(default_factory=list)  #: One for each size of memory that was tried.
    predictions: list[PredictionObject] = field(default_factory=list)  #: With `--gpu`.

    def set_machine(self, profile: MachineProfile) -> None:
        """Fill in what measuring the machine found."""
        self.machine = fill_result(MachineObject, profile)

    def set_model(self, model: LoadedModel, measured: ModelRun) -> None:
        """Fill in what measuring a model found."""
        self.model = model.directory.name
        self.speed = fill_result(SpeedObject, measured, model)

    def set_trace(self, path: Path, trace: Trace) -> None:
        """Fill in what the trace says."""
        self.trace, self.model = str(path), trace.model
        self.prompt_tokens, self.decoded_tokens = trace.prompt_tokens, trace.decoded_tokens
        self.expert_bytes = BankBytes(**{bank: trace.bank_bytes(bank) for bank in MODALITIES})


def budget_object(trace: Trace, budget: int, results: list[Replayed]) -> BudgetObject:
    """What each policy did with this memory."""
    policies = [fill_result(PolicyObject, one) for one in results]
    return BudgetObject(budget, budget / trace.bank_bytes("text"), policies)


def prediction_object(
    gpu_id: str, gpu_bytes: int, ram_bytes: int, misses: str, found: Simulated
) -> PredictionObject:
    """What the simulated machine did."""
    stats, above = found.stats, found.stats.gpu
    assert above is not None

    def per_token(seconds: float) -> float | None:
        return seconds / stats.decoded_tokens if stats.decoded_tokens else None

    return PredictionObject(
        gpu_id,
        gpu_bytes,
        ram_bytes,
        misses,
        above.banks["text"].decode_hit_rate,
        stats.banks["text"].decode_hit_rate,
        per_token(found.decode_seconds),
        per_token(above.decode_wait_seconds),
        per_token(stats.decode_wait_seconds),
    )
