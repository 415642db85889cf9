"""Paging for long: 200 turns that leave nothing behind, and threads that read beside it."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from ernie_local.engine import Engine
from ernie_local.experts.device import PageMemory
from tests.runtime import paged_models
from tests.runtime.paged_models import build, image_ids, paged_experts, plan_of, room

pytestmark = pytest.mark.slow
STRESS_SECONDS = 20.0


@pytest.fixture(scope="module")
def directory(packed_nano: Path) -> Path:
    return packed_nano


def test_200_turns_of_text_and_images_leave_nothing_behind(directory: Path) -> None:
    model = build(directory, plan_of(directory).most_bytes // 2 + room(build(directory, None)))
    process, samples = psutil.Process(), []
    for turn in range(200):
        engine = Engine(model, paged_models.CONTEXT_SIZE)
        patches = paged_models.image(model, 2 + turn % 5, 2 + turn % 3, turn)
        engine.prefill([*image_ids(model, patches), *range(20, 30 + turn % 20)], [patches])
        for token in range(30, 35):
            engine.decode(token)
        engine.prefill(list(range(40, 60)))
        samples.append(process.memory_info().rss)
    middle, end = sorted(samples[80:110])[15], sorted(samples[170:])[15]
    assert end - middle < 4 << 20, (middle, end)


def test_threads_that_read_while_memory_shrinks_and_grows(directory: Path) -> None:
    """Every page read by a thread is compared, and every logit: a slot that was used twice would show."""
    resident = build(directory, None)
    prompt = list(range(20, 60))
    expected = Engine(resident, 128).prefill(prompt)
    plan = plan_of(directory)
    spare = plan.most_bytes // 2
    model = build(directory, plan.least_bytes + spare + 2 * room(resident))
    experts = paged_experts(model)
    keys = list(experts.store.page_bytes)
    pages = {}
    for key in keys[::7]:
        pages[key] = PageMemory(-(-experts.store.page_bytes[key] // 4096) * 4096).bytes
        experts.store.read(key, pages[key][: experts.store.page_bytes[key]])
    errors: list[BaseException] = []
    until = time.monotonic() + STRESS_SECONDS

    def read(seed: int) -> None:
        chooser = random.Random(seed)
        into = PageMemory(1 << 20).bytes
        try:
            while time.monotonic() < until and not errors:
                key = chooser.choice(list(pages))
                size = experts.store.page_bytes[key]
                experts.store.read(key, into[:size])
                assert torch.equal(into[:size], pages[key][:size]), key
        except BaseException as error:  # noqa: BLE001  a thread's error is the test's
            errors.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    chooser, rounds = random.Random(9), 0

    class Owner:
        """Takes memory, and is gone."""

    while time.monotonic() < until and not errors:
        owner = Owner()
        experts.make_room(owner, chooser.randrange(spare))
        engine = Engine(model, 128)
        assert torch.equal(engine.prefill(prompt), expected)
        for token in range(60, 60 + chooser.randrange(8)):
            engine.decode(token)
        del owner, engine
        rounds += 1
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not errors, errors[0]
    assert rounds > 10
