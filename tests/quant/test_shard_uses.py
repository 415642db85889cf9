"""Which files of a source are fetched when: each once if the layers come in order, and few at any time."""

from __future__ import annotations

import random

import pytest

from ernie_local.checkpoint.hub import NANO_DIRECTORY
from ernie_local.checkpoint.reader import open_checkpoint
from ernie_local.checkpoint.writer import TensorEntry
from ernie_local.config import read_config
from ernie_quant.shard_uses import MOST_SHARDS, ShardUses
from ernie_quant.stages import make_stages, source_files


def simulate(uses: ShardUses, generator: random.Random) -> int:
    """Fetch at a random pace, finish stages as their files are there; the number of fetches.

    No stage ends without its files, and there are never more than `most`.
    """
    present: set[str] = set()
    stage = fetches = 0
    while stage < len(uses.stages):
        step = uses.next_fetch(stage, present)
        is_ready = present >= set(uses.stages[stage])
        assert step is not None or is_ready, "nothing can be fetched, and the stage waits"
        if is_ready and (step is None or generator.random() < 0.5):
            stage += 1
            present &= uses.needed(stage).keys()
            continue
        assert step is not None
        wanted, dropped = step
        assert wanted not in present
        assert dropped not in uses.stages[stage]
        present -= {dropped or ""}
        present.add(wanted)
        fetches += 1
        assert len(present) <= uses.most
    return fetches


def in_order(num_layers: int, num_files: int, tail: int) -> ShardUses:
    """Layers of equal size one behind the other; the first stage needs the first file and the last ones."""
    last = num_files - 1
    layers = [
        [str(file) for file in range(layer * last // num_layers, (layer + 1) * last // num_layers + 1)]
        for layer in range(num_layers)
    ]
    return ShardUses([["0", *(str(last - file) for file in range(tail))], *layers])


@pytest.mark.parametrize("tail", [1, 2])
@pytest.mark.parametrize("num_files", [12, 29])
def test_files_in_the_order_of_layers_are_fetched_once(num_files: int, tail: int) -> None:
    uses = in_order(28, num_files, tail)
    assert uses.most == MOST_SHARDS
    fetched = uses.fetches(())
    assert sorted(fetched, key=int) == [str(file) for file in range(num_files)]
    assert all(simulate(uses, random.Random(seed)) == num_files for seed in range(50))


@pytest.mark.parametrize("seed", range(60))
def test_whatever_lies_where_every_stage_gets_its_files(seed: int) -> None:
    generator = random.Random(seed)
    names = [str(file) for file in range(generator.randint(1, 30))]
    stages = [
        generator.sample(names, generator.randint(0, min(7, len(names))))
        for _ in range(generator.randint(1, 30))
    ]
    uses = ShardUses(stages)
    assert uses.most == max([MOST_SHARDS, *map(len, stages)])
    num_fetches = simulate(uses, generator)
    assert num_fetches <= len(uses.fetches(()))
    assert set(uses.fetches(())) == {name for stage in stages for name in stage}
    kept = ShardUses(stages, keeps=True)
    assert sorted(kept.fetches(())) == sorted(set(kept.needed(0)))


def test_what_goes_is_what_is_needed_last() -> None:
    uses = ShardUses([["a", "b", "c", "d"], ["e"], ["b"], ["c"], ["d"], ["a"]])
    assert uses.next_fetch(0, {"a", "b", "c", "d"}) is None  # not ahead of time
    assert uses.next_fetch(1, {"a", "b", "c", "d"}) == ("e", "a")
    assert uses.next_fetch(1, {"b", "c", "d"}) == ("e", None)
    assert uses.fetches(()) == ["a", "b", "c", "d", "e", "a"]
    assert uses.fetches(("a", "b", "c", "d")) == ["e", "a"]


def test_stages_need_the_files_of_their_layers_until_they_are_done() -> None:
    """nano lies in two files, of which the second begins within a layer and ends with the tower."""
    config = read_config(NANO_DIRECTORY)
    with open_checkpoint(NANO_DIRECTORY, config) as checkpoint:
        fixed = [
            TensorEntry(name, checkpoint.dtype(name), checkpoint.shape(name)) for name in checkpoint.names()
        ]
        stages = make_stages(fixed, config.text)
        one, two = (f"model-{number:05}-of-00002.safetensors" for number in (1, 2))
        files = source_files(stages, checkpoint.accounts, (), calibrates=True)
        assert [stage.layer_id for stage in stages] == [None, *range(6)]
        assert sorted(entry.name for stage in stages for entry in stage.fixed) == sorted(checkpoint.names())
        assert {name for names in files for name in names} == {one, two}
        assert files[1] == [one]
        assert files[-1] == [two]
        done = {entry.name for entry in stages[1].fixed}
        assert source_files(stages, checkpoint.accounts, done, calibrates=False)[1] == []
        # With calibration, the exact layer is run too.
        assert source_files(stages, checkpoint.accounts, done, calibrates=True)[1] == [one]
        done.add("layer 0")
        assert source_files(stages, checkpoint.accounts, done, calibrates=True)[1] == []
