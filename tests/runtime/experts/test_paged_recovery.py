"""A forward that ends anywhere, by an error or by Ctrl-C, leaves nothing behind: the next one is right."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.errors import DoesNotFit
from ernie_local.experts import cache
from ernie_local.media.patches import Patches
from ernie_local.model.ernie import ErnieModel
from tests.runtime import paged_models
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import build, gpu_share, ids, image_ids, paged_experts, plan_of, room, share

PAGING = Path(cache.__file__).parent
# What keeps account of slots and reads, where a step that is only half done matters most.
ACCOUNTS = tuple(str(PAGING / name) for name in ("cache.py", "slots.py", "readers.py"))
PROMPT, LATER = ids(30, 1), ids(8, 2)


class _Stop(BaseException):
    """As KeyboardInterrupt, which pytest takes for itself."""


@contextmanager
def stopped_at(count: int, times: int = 1, files: str | tuple[str, ...] = ACCOUNTS) -> Iterator[list[int]]:
    """Inside, lines of paging are counted, and `times` of them, behind the first `count`, raise."""
    seen = [0]
    raised = 0

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal raised
        if not frame.f_code.co_filename.startswith(files):
            return None
        if event == "line":
            seen[0] += 1
            if seen[0] > count and raised < times:
                raised += 1
                raise _Stop
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield seen
    finally:
        sys.settrace(before)


def prompt_with_image(model: ErnieModel) -> tuple[list[int], list[Patches]]:
    patches = paged_models.image(model, 3, 3)
    return [*image_ids(model, patches), *ids(6, 3)], [patches]


def all_logits(model: ErnieModel) -> list[torch.Tensor]:
    """Of a prompt, decoded tokens, and a prompt with an image: what touches every part of paging."""
    engine = Engine(model, 128)
    rows = [engine.prefill(PROMPT), *map(engine.decode, LATER)]
    return [*rows, engine.prefill(*prompt_with_image(model))]


def check(model: ErnieModel, expected: list[torch.Tensor]) -> None:
    assert all(map(torch.equal, all_logits(model), expected))
    experts = paged_experts(model)
    frames = experts.top.cache.slots
    assert not experts.top.cache.has_pins
    held = {(key, experts.top.cache.offset(key)) for key in experts.top.cache.keys()}  # noqa: SIM118  no dict
    assert len({offset for _, offset in held}) == len(held), "a slot is held twice"
    assert frames.num_frames * frames.frame_bytes <= experts.top.memory.num_bytes


@pytest.fixture(scope="module", params=["RAM", "GPU"])
def model(request: pytest.FixtureRequest, packed_nano: Path) -> ErnieModel:
    memory = share(packed_nano, 0.05) + room(build(packed_nano, None))
    if request.param == "RAM":
        return build(packed_nano, memory)
    gpu = FakeGpu()
    return build(packed_nano, memory, gpu=gpu_share(packed_nano, gpu, share(packed_nano, 0.02), 256))


@pytest.fixture(scope="module")
def expected(packed_nano: Path) -> list[torch.Tensor]:
    return all_logits(build(packed_nano, None))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.slow
def test_stopped_at_any_line_of_paging(model: ErnieModel, expected: list[torch.Tensor], times: int) -> None:
    check(model, expected)
    with stopped_at(sys.maxsize, files=str(PAGING)) as seen:
        all_logits(model)
    for count in range(times, seen[0], seen[0] // 40):
        with suppress(_Stop), stopped_at(count, times, str(PAGING)):
            all_logits(model)
        check(model, expected)


def test_stopped_at_some_lines_of_paging(model: ErnieModel, expected: list[torch.Tensor]) -> None:
    """Each stop loses at most a slot, so the answers are looked at after all of them."""

    def read() -> None:
        engine = Engine(model, 128)
        engine.prefill(PROMPT)
        for token in LATER:
            engine.decode(token)

    with stopped_at(sys.maxsize) as seen:
        read()
    for count in range(7, seen[0], seen[0] // 20):
        with suppress(_Stop), stopped_at(count):
            read()
    check(model, expected)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer")
def test_ctrl_c_at_any_moment(model: ErnieModel, expected: list[torch.Tensor]) -> None:
    before = time.perf_counter()
    check(model, expected)
    seconds = time.perf_counter() - before

    def interrupt(*_: object) -> None:
        raise _Stop

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        for part in range(1, 5):
            with suppress(_Stop):
                signal.setitimer(signal.ITIMER_REAL, seconds * part / 5)
                all_logits(model)
            signal.setitimer(signal.ITIMER_REAL, 0)
            check(model, expected)
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_stopped_while_an_attribute_of_the_model_is_set(
    model: ErnieModel, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Modules do so in Python, where a signal finds its way in: before the attribute is set, or behind it."""
    for count in range(1, 5):
        for behind in (False, True):
            stop = _stop_at_attribute(count, behind=behind)
            with monkeypatch.context() as patch, suppress(_Stop):
                patch.setattr(ErnieModel, "__setattr__", stop)
                all_logits(model)
            check(model, expected)


def _stop_at_attribute(count: int, *, behind: bool) -> Callable[[ErnieModel, str, Any], None]:
    """A `__setattr__` that raises the count-th time, before or behind its work."""
    left = count

    def set_attribute(model: ErnieModel, name: str, value: Any) -> None:
        nonlocal left
        left -= 1
        if left or behind:
            super(ErnieModel, model).__setattr__(name, value)
        if not left:
            raise _Stop

    return set_attribute


def test_a_refusal_leaves_what_was_kept_before(packed_nano: Path) -> None:
    plan = plan_of(packed_nano)
    experts = paged_experts(build(packed_nano, plan.least_bytes + 4 * plan.frame_bytes))

    class Owner:
        """Takes memory."""

    one, other = Owner(), Owner()
    experts.make_room(one, 3 * plan.frame_bytes)
    with pytest.raises(DoesNotFit):
        experts.make_room(one, 40 * plan.frame_bytes)
    with pytest.raises(DoesNotFit):
        experts.make_room(other, 3 * plan.frame_bytes)
    del one
    experts.make_room(other, 3 * plan.frame_bytes)


def test_owners_may_go_at_any_moment(packed_nano: Path) -> None:
    """As by garbage collection in another thread, while it is counted what all of them need."""
    plan = plan_of(packed_nano)
    experts = paged_experts(build(packed_nano, plan.most_bytes))
    until, errors = time.monotonic() + 0.7, list[BaseException]()

    class Owner:
        """Takes memory, and is gone."""

    def come_and_go() -> None:
        while time.monotonic() < until and not errors:
            owners = [Owner() for _ in range(30)]
            try:
                for owner in owners:
                    with lock:
                        experts.make_room(owner, 1)
            except RuntimeError as error:
                errors.append(error)

    lock = threading.Lock()  # the model's
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=come_and_go) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not errors
