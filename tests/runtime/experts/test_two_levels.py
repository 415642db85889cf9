"""A small memory above a larger one: the same answers to the bit, and pages where the books say they are."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_local.checkpoint import uncached_file
from ernie_local.engine import Engine
from ernie_local.errors import ModelUnusable
from ernie_local.experts.copier import PageCopier
from ernie_local.experts.keys import ExpertKey
from ernie_local.experts.options import COMPUTE, FETCH, MISS_RULES, SPLIT, MissRule, PagingOptions
from ernie_local.experts.plan import PagingPlan
from ernie_local.experts.traffic import PageTraffic
from ernie_local.experts.two_levels import LendingReader, TwoLevels
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from tests.runtime import paged_models
from tests.runtime.paged_models import answer_logits, build, image_ids, paged_experts, plan_of, room

Turn = tuple[list[int], list[Patches], list[int]]


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


@pytest.fixture(scope="module")
def resident(directory: Path) -> ErnieModel:
    return build(directory, None)


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """A test that hangs fails after two minutes."""

    def expired(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def two_levels(directory: Path, upper: float, lower: float, rule: MissRule, beside: int) -> ErnieModel:
    """Each level has this share of the memory above the floor."""
    plan = plan_of(directory)

    def share(of: float) -> int:
        return plan.least_bytes + int(of * (plan.most_bytes - plan.least_bytes))

    return build(directory, share(lower), share(upper) + beside, PagingOptions(rule))


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(10, 400, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("rule", MISS_RULES)
@pytest.mark.parametrize(("upper", "lower"), [(0.0, 0.0), (0.2, 0.5), (0.0, 1.0), (0.5, 0.0)])
def test_a_conversation_is_that_of_the_resident_model(
    directory: Path, resident: ErnieModel, rule: str, upper: float, lower: float
) -> None:
    image = paged_models.image(resident, 9, 4)
    turns: list[Turn] = [
        (ids(23, 1), [], ids(6, 2)),
        ([*ids(4, 3), *image_ids(resident, image), *ids(9, 4)], [image], ids(9, 5)),
    ]
    expected = answer_logits(resident, turns, 25)
    model = two_levels(directory, upper, lower, MISS_RULES[rule], room(resident))
    assert torch.equal(answer_logits(model, turns, 25), expected)
    experts = paged_experts(model)
    above = experts.stats.gpu
    assert above is not None
    text = above.banks["text"]
    assert text.decode_hits + text.decode_misses == experts.stats.decoded_tokens * top_k_of_all_layers(model)
    if rule == "fetch":  # what the upper memory lacks, and nothing else, is asked of the lower one
        below = experts.stats.banks["text"]
        assert below.decode_hits + below.decode_misses == text.decode_misses
    if lower == 1.0:  # every page is read once
        assert experts.stats.banks["text"].bytes_read <= experts.num_bytes


def top_k_of_all_layers(model: ErnieModel) -> int:
    return model.config.text.experts_per_token * sum(model.config.text.moe_layers)


def test_computed_below_pages_come_up_when_they_are_hot(directory: Path, resident: ErnieModel) -> None:
    model = two_levels(directory, 0.3, 1.0, COMPUTE, room(resident))
    experts = paged_experts(model)
    engine = Engine(model, 200)
    engine.prefill(ids(5, 1))
    for _ in range(3):
        before = experts.stats.gpu
        assert before is not None
        before = before.copy()
        for token in [50] * 12:
            engine.decode(token)
        assert experts.stats.gpu is not None
        spent = experts.stats.gpu.since(before).banks["text"]
    assert spent.decode_hits > spent.decode_misses
    assert experts.stats.banks["text"].bytes_read > 0


def test_a_disk_that_fails_at_one_page_loses_nothing(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = room(resident)
    for rule in MISS_RULES.values():
        model = two_levels(directory, 0.0, 0.0, rule, beside)
        engine, other = Engine(model, 64), Engine(resident, 64)
        assert torch.equal(engine.prefill(ids(20, 1)), other.prefill(ids(20, 1)))
        with monkeypatch.context() as patch:

            def broken(self: uncached_file.UncachedFile, offset: int, into: memoryview) -> None:
                raise ModelUnusable("a", "b", "c")

            patch.setattr(uncached_file.UncachedFile, "read", broken)
            with pytest.raises(ModelUnusable):
                decode_all(engine, range(60, 80))
        decode_all(other, range(60, 60 + engine.length - other.length))
        assert torch.equal(engine.decode(90), other.decode(90))


def decode_all(engine: Engine, tokens: range) -> None:
    for token in tokens:
        engine.decode(token)


@pytest.mark.parametrize("when", [0, 3, 11])
@pytest.mark.parametrize("rule", MISS_RULES)
def test_ctrl_c_while_pages_are_copied(
    directory: Path, resident: ErnieModel, monkeypatch: pytest.MonkeyPatch, rule: str, when: int
) -> None:
    model = two_levels(directory, 0.0, 0.2, MISS_RULES[rule], room(resident))
    wait, calls = PageCopier.wait, [0]

    def interrupted(self: PageCopier, keys: Sequence[ExpertKey]) -> None:
        calls[0] += 1
        if calls[0] == when + 1:
            raise KeyboardInterrupt
        wait(self, keys)

    monkeypatch.setattr(PageCopier, "wait", interrupted)
    turns: list[Turn] = [(ids(20, 1), [], ids(5, 2))]
    with pytest.raises(KeyboardInterrupt):
        answer_logits(model, turns)
    assert torch.equal(answer_logits(model, turns), answer_logits(resident, turns))


class Books:
    """A PageReader that copies names: what is in which slot of which memory, as its caller believes."""

    def __init__(self, source: dict[int, ExpertKey] | None) -> None:
        self.memory: dict[int, ExpertKey] = {}
        self.traffic: PageTraffic | None = None
        self.below: PageTraffic | None = None
        self.source = source
        self.coming: list[ExpertKey] = []

    def start(self, key: ExpertKey) -> None:
        self.coming.append(key)

    def wait(self, keys: Sequence[ExpertKey]) -> None:
        assert self.traffic is not None
        for key in keys:
            if self.source is not None:
                assert self.below is not None
                offset = self.below.cache.offset(key)
                assert self.source.get(offset) == key or key in self.below._coming
            self.coming.remove(key)
            self.memory[self.traffic.cache.offset(key)] = key

    def abandon(self) -> None:
        self.coming.clear()


def books(plan: PagingPlan, page_bytes: dict[ExpertKey, int], upper: int, lower: int) -> tuple[Books, Books]:
    disk = Books(None)
    disk.traffic = PageTraffic(plan.build(lower), plan, page_bytes, disk)
    copier = Books(disk.memory)
    copier.below = disk.traffic
    lending = LendingReader(disk.traffic, copier)
    copier.traffic = PageTraffic(plan.build(upper), plan, page_bytes, lending)
    return copier, disk


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_page_is_where_it_is_computed(data: st.DataObject) -> None:
    keys = [
        ExpertKey(layer, bank, expert)
        for layer in range(3)
        for bank in ("text", "vision")
        for expert in range(8)
    ]
    page_bytes = {key: 12288 if key.bank == "text" else 4096 for key in keys}
    plan = PagingPlan(page_bytes, 2)
    most = plan.most_bytes - plan.least_bytes
    upper, lower = (plan.least_bytes + int(data.draw(st.floats(0, 1)) * most) for _ in range(2))
    copier, disk = books(plan, page_bytes, upper, lower)
    assert copier.traffic is not None
    assert disk.traffic is not None
    rule = data.draw(st.sampled_from(list(MISS_RULES.values())))
    levels = TwoLevels(copier.traffic, disk.traffic, rule)
    memories = [copier, disk]
    for _ in range(data.draw(st.integers(1, 12))):
        with_vision = data.draw(st.booleans())
        tokens = data.draw(st.integers(1, 30))
        banks = {"text": tokens, "vision": 40} if with_vision else {"text": tokens}
        is_decode = levels.begin(banks)
        assert is_decode == (banks == {"text": 1})
        for layer in range(3):
            for bank, count in banks.items():
                ids = st.lists(st.integers(0, 7), min_size=2, max_size=2, unique=True)
                chosen = [ExpertKey(layer, bank, expert) for _ in range(count) for expert in data.draw(ids)]
                if is_decode:
                    groups = levels.decode(bank, chosen)
                else:
                    groups = levels.stream(layer, bank, chosen, count)
                computed: list[ExpertKey] = []
                for group in groups:
                    books_of = memories[group.level]
                    assert books_of.traffic is not None
                    for key in group.keys:
                        assert books_of.memory[books_of.traffic.cache.offset(key)] == key
                    computed += group.keys
                    assert group.is_last == (len(computed) == len(set(chosen)))
                assert sorted(computed) == sorted(set(chosen))
        for one in memories:
            assert one.traffic is not None
            assert not one.traffic.cache.is_in_use or one.traffic._coming or one is disk
    levels.give_up()
    for one in memories:
        assert one.traffic is not None
        assert not one.coming
        assert not one.traffic.cache.is_in_use


@pytest.mark.parametrize(
    ("rule", "counts"), [(FETCH, [0, 1, 2, 3]), (COMPUTE, [0, 0, 0, 0]), (SPLIT, [0, 0, 1, 1])]
)
def test_a_rule_says_how_many_pages_are_copied(rule: MissRule, counts: list[int]) -> None:
    assert [rule.num_to_copy(missing) for missing in range(4)] == counts
