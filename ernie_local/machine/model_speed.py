"""Measures how fast a loaded model reads a prompt, answers, encodes an image, and decodes under miss rules.

Tokens are random, so that experts are chosen evenly: a real text finds more of them in memory.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn

from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit, UsageError, parameter
from ernie_local.experts.options import MISS_RULES
from ernie_local.experts.paged import PagedExperts
from ernie_local.loading import LoadedModel
from ernie_local.machine.compute import Clock, call_seconds
from ernie_local.machine.disk import holds_pages, measure_disk
from ernie_local.machine.random_model import text_ids
from ernie_local.media.patches import Patches
from ernie_local.model.attention import SelfAttention
from ernie_local.model.kv_cache import kv_bytes_per_token
from ernie_local.model.layers import PackedLinear
from ernie_local.planner.model_size import read_model
from ernie_local.planner.profile import Measurement
from ernie_local.planner.rates import Rates, decode_seconds
from ernie_local.sizes import MIB

_PROMPT_TOKENS = 512
_WARM_TOKENS = 32
_DECODE_ROUNDS = 7
_DECODE_TOKENS = 12  # in a round
_DISK_SECONDS = 0.2  # before each
_MEMORY_ROUNDS = 3
# For rules on experts that a GPU lacks. Each first decodes as many tokens uncounted, for pages to follow it.
_RULE_PROMPT_TOKENS = 32
_RULE_ROUNDS = 5
_RULE_TOKENS = 8  # of each rule in a round


@dataclass(frozen=True, slots=True)
class ImageSpeed:
    """One image: its tokens, seconds of tower and resampler, and tokens a second of the language model."""

    tokens: int
    encode_seconds: Measurement
    prefill: Measurement


@dataclass(frozen=True, slots=True)
class ModelRun:
    """What was measured. prefill, decode: tokens a second, decode by the median token of each round.

    first_token_seconds: from a prompt of `prompt_tokens` of text to the logits of the first token behind it.
    hit_rate: share of experts that decode found in memory, expert_memory_bytes that memory, and disk what the
    pages' disk gave between rounds of decode, bytes a second; None where all are resident. memory_share: of
    the rates of weights in memory, what they come at between these rounds. predicted_decode: what the rates
    say, for the same share of experts, that disk and that memory.
    """

    prompt_tokens: int
    first_token_seconds: Measurement
    prefill: Measurement
    decode: Measurement
    predicted_decode: float
    hit_rate: float | None
    expert_memory_bytes: int | None
    disk: Measurement | None
    memory_share: Measurement | None
    image: ImageSpeed | None


def measure_model(
    model: LoadedModel,
    known: Rates,
    image: Patches | None = None,
    clock: Clock = time.perf_counter,
    *,
    prompt_rounds: int = 3,
    cache_bytes: int = 64 * MIB,
) -> ModelRun:
    """known: rates of the model's kind of weights. DoesNotFit where the context has no room for all of it.

    cache_bytes: no processor's caches hold more.
    """
    decoded = _WARM_TOKENS + _DECODE_ROUNDS * _DECODE_TOKENS
    context = model.settings.context_size
    prompt_tokens = min(_PROMPT_TOKENS, context - decoded)
    if prompt_tokens < 1:
        raise DoesNotFit(
            f"at least {decoded + 1} tokens are measured, the context has {context}",
            "a prompt and the tokens decoded after it have to fit",
            f"{parameter('context_size', decoded + _PROMPT_TOKENS)} or more",
        )
    ids = text_ids(model.config, prompt_tokens + decoded)
    model.wait_until_resident()

    def read_prompt() -> Engine:
        engine = model.engine(context_size=len(ids))
        engine.prefill(ids[:prompt_tokens])
        return engine

    prompt = call_seconds(read_prompt, prompt_rounds, clock)
    beside: list[tuple[float | None, float | None]] = []

    def look_beside() -> None:
        """At what disk and memory give between rounds of decode; other programs use them too."""
        beside.append((_disk_rate(model), _memory_share(model, known, cache_bytes)))

    decode, hit_rate = _decode(read_prompt(), model, ids[prompt_tokens:], look_beside, clock)
    disk, memory_share = map(_measurement, zip(*beside, strict=True))
    mean_tokens = len(ids) - _DECODE_ROUNDS * _DECODE_TOKENS // 2
    context_bytes = mean_tokens * kv_bytes_per_token(model.config.text, model.settings.kv_dtype)
    experts = model.network.experts
    rates = known
    if memory_share is not None:
        rates = rates.slowed(memory_share.median)
    if disk is not None:
        rates = dataclasses.replace(rates, disk_bytes_per_second=disk.median)
    work = read_model(model.directory).decode_work(str(model.network.dtype).removeprefix("torch."))
    return ModelRun(
        prompt_tokens=prompt_tokens,
        first_token_seconds=Measurement.of(prompt),
        prefill=Measurement.of([prompt_tokens / one for one in prompt]),
        decode=decode,
        predicted_decode=1 / decode_seconds(work, rates, hit_rate, context_bytes),
        hit_rate=hit_rate,
        expert_memory_bytes=experts.ram.memory.num_bytes if isinstance(experts, PagedExperts) else None,
        disk=disk,
        memory_share=memory_share,
        image=None if image is None else _measure_image(model, image, prompt_rounds, clock),
    )


def measure_miss_rules(model: LoadedModel, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Tokens a second by the rule's name, medians of rounds, measured from end to end.

    Rates would mislead: a rule that should win by the speed of link and memory may lose by what waits for
    what. UsageError for a model without two memories.
    """
    experts = model.network.experts
    if not isinstance(experts, PagedExperts) or experts.top is experts.ram:
        raise UsageError(
            "the model keeps experts in 1 memory, rules for misses need 2",
            "all experts fit on the GPU, or no GPU is used",
            f"run on a GPU and lower {parameter('vram')}",
        )
    num_decoded = _RULE_ROUNDS * len(MISS_RULES) * 2 * _RULE_TOKENS
    ids = iter(text_ids(model.config, _RULE_PROMPT_TOKENS + num_decoded))
    engine = model.engine(context_size=_RULE_PROMPT_TOKENS + num_decoded)
    engine.prefill(list(islice(ids, _RULE_PROMPT_TOKENS)))

    def decode_some() -> None:
        for token_id in islice(ids, _RULE_TOKENS):
            engine.decode(token_id)

    seconds: dict[str, list[float]] = {name: [] for name in MISS_RULES}
    before = experts.miss_rule
    for _ in range(_RULE_ROUNDS):
        for name, rule in MISS_RULES.items():
            experts.change_miss_rule(rule)
            seconds[name] += call_seconds(decode_some, 1, clock)
    experts.change_miss_rule(before)
    return {name: _RULE_TOKENS / statistics.median(measured) for name, measured in seconds.items()}


def _decode(
    engine: Engine, model: LoadedModel, ids: list[int], look_beside: Callable[[], None], clock: Clock
) -> tuple[Measurement, float | None]:
    """Tokens a second behind the first few ids, by rounds' medians; the share of experts that they found."""
    for token_id in ids[:_WARM_TOKENS]:
        engine.decode(token_id)
    before = model.paging
    rates: list[float] = []
    for first in range(_WARM_TOKENS, len(ids), _DECODE_TOKENS):
        look_beside()
        seconds = []
        for token_id in ids[first : first + _DECODE_TOKENS]:
            start = clock()
            engine.decode(token_id)
            seconds.append(clock() - start)
        rates.append(1 / statistics.median(seconds))  # what other programs delay is not the model's
    after = model.paging
    paged = None if before is None or after is None else after.since(before)
    return Measurement.of(rates), None if paged is None else paged.banks["text"].decode_hit_rate


def _measurement(values: Iterable[float | None]) -> Measurement | None:
    known = [value for value in values if value is not None]
    return Measurement.of(known) if known else None


def _memory_share(model: LoadedModel, rates: Rates, cache_bytes: int) -> float | None:
    """At what share of their rate attention's first weights come now; None where caches hold them."""
    network = model.network
    attentions = [module for module in network.modules() if isinstance(module, SelfAttention)]
    projections = [attention.qkv_proj or attention.q_proj for attention in attentions]
    weights = [_weights(projection) for projection in projections]
    if sum(num_bytes for _, num_bytes in weights) < cache_bytes:
        return None
    hidden = torch.zeros(1, model.config.text.hidden_size, dtype=network.dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(_MEMORY_ROUNDS):
            start = time.perf_counter()
            for projection in projections:
                projection(hidden)
            seconds.append(time.perf_counter() - start)
    expected = sum(num_bytes / rates.bytes_per_second(name) for name, num_bytes in weights)
    return expected / statistics.median(seconds)


def _weights(projection: nn.Module) -> tuple[str, int]:
    """Format and bytes."""
    if isinstance(projection, PackedLinear):
        return projection.format_name, projection.packed.nbytes
    weight = projection.get_parameter("weight")
    return str(weight.dtype).removeprefix("torch."), weight.nbytes


def _disk_rate(model: LoadedModel) -> float | None:
    """Bytes a second that the pages' disk gives now; None where no page is read from it."""
    experts = model.network.experts
    if not isinstance(experts, PagedExperts):
        return None
    path = max(experts.store.paths, key=lambda path: path.stat().st_size)
    page_bytes = max(experts.store.page_bytes.values())
    if not holds_pages(path, page_bytes):
        return None
    return measure_disk(path, page_bytes, _DISK_SECONDS).speed.median


def _measure_image(model: LoadedModel, image: Patches, rounds: int, clock: Clock) -> ImageSpeed:
    media, network = model.config.media, model.network
    ids = [media.image_start, *[media.image] * image.num_tokens, media.image_end]
    marks: list[float] = []
    hooks = [
        network.vision.register_forward_pre_hook(lambda *_: marks.append(clock())),
        network.resampler.register_forward_hook(lambda *_: marks.append(clock())),
    ]
    try:
        whole = call_seconds(lambda: model.engine(context_size=len(ids)).prefill(ids, [image]), rounds, clock)
    finally:
        for hook in hooks:
            hook.remove()
    encode = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)][-len(whole) :]
    rates = [len(ids) / (one - encoding) for one, encoding in zip(whole, encode, strict=True)]
    return ImageSpeed(image.num_tokens, Measurement.of(encode), Measurement.of(rates))
