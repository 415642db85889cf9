"""The sampler against transformers' processors on random logits, and against counting."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ernie_local.errors import ErnieLocalError, ModelUnusable, UsageError
from ernie_local.sampling import Sampler, SamplingOptions, model_sampling

VOCAB_SIZE = 200


def random_logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * scale


def transformers_probabilities(
    logits: torch.Tensor, options: SamplingOptions, seen_ids: list[int]
) -> torch.Tensor:
    """What transformers would draw from: its processors, in the order of its `generate`."""
    from transformers.generation import logits_process as hf

    processors: list[Any] = []
    if options.repetition_penalty != 1 and seen_ids:
        processors.append(hf.RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    processors.append(hf.TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        processors.append(hf.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(hf.TopPLogitsWarper(options.top_p))
    if options.min_p:
        processors.append(hf.MinPLogitsWarper(options.min_p))
    ids, scores = torch.tensor([seen_ids], dtype=torch.int64), logits[None].clone()
    for processor in processors:
        scores = processor(ids, scores)
    return torch.softmax(scores[0], dim=-1)


options_in_use = st.builds(
    SamplingOptions,
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.5, 5.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.8, 0.3, 0.01]),
    top_k=st.sampled_from([0, 1, 2, 40, VOCAB_SIZE, 10**6]),
    min_p=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 2.0, 0.8]),
    seed=st.just(0),
)


@given(
    options=options_in_use,
    seed=st.integers(0, 10**6),
    seen=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=30),
)
def test_equals_transformers(options: SamplingOptions, seed: int, seen: list[int]) -> None:
    logits = random_logits(seed)
    ours = Sampler(options).probabilities(logits, seen)
    torch.testing.assert_close(ours, transformers_probabilities(logits, options, seen), rtol=1e-4, atol=1e-7)


@given(options=options_in_use, seed=st.integers(0, 10**6))
def test_picks_only_what_is_left(options: SamplingOptions, seed: int) -> None:
    sampler, logits = Sampler(options), random_logits(seed)
    probabilities = sampler.probabilities(logits)
    assert all(probabilities[sampler.pick(logits)] > 0 for _ in range(5))


def test_picks_as_often_as_it_should() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=3))
    counts = torch.bincount(torch.tensor([sampler.pick(logits) for _ in range(4000)]), minlength=4)
    torch.testing.assert_close(counts / 4000, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.03, rtol=0)


def test_temperature_0_is_greedy_whatever_the_filters() -> None:
    logits = random_logits(1)
    sampler = Sampler(SamplingOptions(top_k=5, top_p=0.5, min_p=0.2))
    assert {sampler.pick(logits) for _ in range(20)} == {int(logits.argmax())}
    assert sampler.probabilities(logits).tolist() == [float(index == logits.argmax()) for index in range(200)]


def test_the_repetition_penalty_counts_when_greedy() -> None:
    logits = torch.tensor([2.0, 1.9, -1.0])
    assert Sampler(SamplingOptions(repetition_penalty=1.2)).pick(logits, {0}) == 1
    # Negative scores fall too, and ids beyond the scores are no matter.
    assert Sampler(SamplingOptions(repetition_penalty=3.0)).pick(torch.tensor([-1.0, -2.0]), {0, 99}) == 1
    assert logits.tolist() == [2.0, 1.899999976158142, -1.0]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits = random_logits(2, scale=1e4)
    assert Sampler(SamplingOptions(temperature=1e-38)).pick(logits) == int(logits.argmax())


def test_the_same_seed_draws_the_same() -> None:
    logits = random_logits(4, scale=0.5)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        torch.rand(7)  # torch's own generator is nobody's business
        return [sampler.pick(logits) for _ in range(30)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_a_drawn_seed_can_be_used_again() -> None:
    logits = random_logits(4, scale=0.5)
    sampler = Sampler(SamplingOptions(temperature=1.0))
    again = Sampler(SamplingOptions(temperature=1.0, seed=sampler.seed))
    assert [sampler.pick(logits) for _ in range(30)] == [again.pick(logits) for _ in range(30)]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_refused(broken: float) -> None:
    for temperature in (0.0, 1.0):
        with pytest.raises(ErnieLocalError, match=r"of 4 is (nan|inf|-inf)"):
            Sampler(SamplingOptions(temperature=temperature)).pick(torch.full((4,), broken))


@pytest.mark.parametrize("temperature", [1e-320, 1e-38, 1e38, 1e300])
def test_the_coldest_and_the_hottest_draw_a_token_that_is_allowed(temperature: float) -> None:
    sampler = Sampler(SamplingOptions(temperature=temperature, seed=1))
    assert {sampler.pick(torch.tensor([1.0, -math.inf, 0.0])) for _ in range(50)} <= {0, 2}


def test_float32_is_advised_where_it_is_wider_alone() -> None:
    for dtype, is_advised in ((torch.bfloat16, True), (torch.float32, False)):
        with pytest.raises(ErnieLocalError) as caught:
            Sampler(SamplingOptions(), dtype).pick(torch.full((4,), math.nan))
        assert ("float32" in caught.value.hint) is is_advised
        assert "ernie-local verify" in caught.value.hint


def test_what_a_model_says_of_sampling_is_taken_over() -> None:
    said = {"temperature": 2, "top_k": 5, "top_p": None, "min_p": 0.1, "eos_token_id": [2], "num_beams": 4}
    assert model_sampling({**said, "do_sample": True}) == SamplingOptions(temperature=2.0, top_k=5, min_p=0.1)
    assert model_sampling({**said, "do_sample": False}).temperature == 0.0
    assert model_sampling({"do_sample": True}) == SamplingOptions(temperature=1.0, top_k=50)
    assert model_sampling({}) == SamplingOptions()


ABSENT = object()


@pytest.mark.parametrize("do_sample", [ABSENT, None, False, True])
@given(
    said=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([ABSENT, None, 0.2, 1, 1.5]),
            "top_k": st.sampled_from([ABSENT, None, 0, 1, 50, 200]),
            "top_p": st.sampled_from([ABSENT, None, 0.8, 1.0]),
            "min_p": st.sampled_from([ABSENT, None, 0.0, 0.1]),
            "repetition_penalty": st.sampled_from([ABSENT, None, 1.0, 1.05]),
        }
    )
)
def test_a_generation_config_means_what_it_means_to_transformers(
    do_sample: object, said: dict[str, object]
) -> None:
    raw = {key: value for key, value in {**said, "do_sample": do_sample}.items() if value is not ABSENT}
    assert model_sampling(raw) == sampling_of_transformers(raw)


def sampling_of_transformers(raw: dict[str, Any]) -> SamplingOptions:
    """What `generate` would do: the file, then the defaults of the library where that says nothing."""
    from transformers import GenerationConfig

    config: Any = GenerationConfig.from_dict(raw)
    config.update(**config._get_default_generation_params(), defaults_only=True)
    draws = {"temperature": config.temperature, "top_k": config.top_k}
    if not config.do_sample:  # the filters are off then, and stand here for --temp
        draws = {"temperature": 0.0, "top_k": raw.get("top_k") or 0}
    return SamplingOptions(
        **draws,
        top_p=config.top_p,
        min_p=config.min_p or 0.0,
        repetition_penalty=config.repetition_penalty,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -5),
        ("temperature", math.inf),
        ("temperature", 10**400),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 7),
        ("top_p", [0.5]),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("do_sample", "no"),
    ],
)
def test_nonsense_that_a_model_says_is_the_models_fault(name: str, value: object) -> None:
    with pytest.raises(ModelUnusable, match=rf"^generation_config\.json: {name} is .*\n.*\n"):
        model_sampling({"temperature": 0.7, name: value})


def test_a_single_broken_logit_is_refused() -> None:
    with pytest.raises(ErnieLocalError, match="score for token 2 of 3 is nan"):
        Sampler(SamplingOptions()).pick(torch.tensor([1.0, 2.0, math.nan]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", math.nan),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_value_without_a_meaning_is_named(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"{name}={value} cannot be used\n.*\n.*{name}="):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


def test_the_largest_seed_works() -> None:
    assert Sampler(SamplingOptions(temperature=1.0, seed=2**63 - 1)).pick(random_logits(0)) >= 0
