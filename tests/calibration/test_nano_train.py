"""nano's trainer: its loss falls, and a run that was stopped goes on as the whole one would have."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nano import progress, train
from nano.network import NanoNetwork
from nano.progress import load_progress, save_progress
from nano.shape import NanoShape
from nano.stages import Stage
from nano.streams import NUM_CHARACTER_CLASSES, Stream

SHAPE = replace(
    NanoShape(),
    hidden_size=96,
    dense_size=64,
    num_experts=8,
    text_expert_size=32,
    vision_expert_size=16,
    mrope_section=(4, 4, 4),
    vision_size=64,
)
LINES = Stream(("text card",), (1, 2), batch=4, weight=1.0)
CLIP = Stream(("clip",), (5, 8), batch=2, weight=0.1, num_frames=2)
STEPS = 12


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "NanoShape", lambda: SHAPE)
    monkeypatch.setattr(train, "REPORT_EVERY", 4)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 4)
    monkeypatch.setattr(train, "DataLoader", lambda maker, *_, **__: maker)  # without a process of its own
    monkeypatch.setattr(train, "WARM_UP_STEPS", 4)
    monkeypatch.setattr(train, "evaluate_and_report", lambda *_: None)


def weights(work: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(work / "checkpoint.pt")["network"]
    return loaded


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage("lines", STEPS, (LINES, CLIP), 3e-3, 3e-3, 1.0, 0.3)
    train.train(tmp_path / "whole", seed=3, stages=(stage,))
    answers = [
        float(found) for found in re.findall(r"answer (\S+)", (tmp_path / "whole/log.txt").read_text())
    ]
    assert len(answers) == STEPS // 4
    assert answers[-1] < 0.9 * answers[0]

    step = train.train_step
    done: list[None] = []

    def interrupted(network: NanoNetwork, *rest: object, **options: object) -> list[float]:
        done.append(None)
        if len(done) == 7:  # two steps behind a checkpoint
            raise KeyboardInterrupt
        return step(network, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "parts", seed=3, stages=(stage,))
    assert torch.load(tmp_path / "parts/checkpoint.pt")["step"] == 4
    monkeypatch.setattr(train, "train_step", step)
    train.train(tmp_path / "parts", seed=3, stages=(stage,))
    again = torch.load(tmp_path / "parts/checkpoint.pt")
    assert again["step"] == STEPS
    first, second = weights(tmp_path / "whole"), again["network"]
    # A run draws new batches where it goes on, so that the two are near each other, and not equal.
    fresh = NanoNetwork(SHAPE, NUM_CHARACTER_CLASSES).state_dict()
    assert torch.equal(first["embed"], second["embed"]) is False
    near, far = (float((first["embed"] - one["embed"]).norm()) for one in (second, fresh))
    assert near < 0.5 * far
    report = (tmp_path / "parts/log.txt").read_text()
    assert re.search(rf"^lines {STEPS} ", report, re.MULTILINE)
    losses = [float(found) for found in re.findall(r"answer (\S+)", report)]
    assert losses[-1] < 0.9 * losses[0]


def test_progress_keeps_weights_within_half_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PART_BYTES", 200_000)
    state = NanoNetwork(SHAPE, NUM_CHARACTER_CLASSES).state_dict()
    state["embed"][3] = 0
    (tmp_path / "tokenizer.model").write_bytes(b"pieces")
    save_progress(tmp_path / "progress", state, 2000, tmp_path / "tokenizer.model")
    files = [path.stat().st_size for path in (tmp_path / "progress").glob("*.safetensors")]
    assert len(files) > 3
    assert max(files) < 240_000
    found, step = load_progress(tmp_path / "progress")
    assert step == 2000
    assert found.keys() == state.keys()
    for name, weight in state.items():
        bound = weight.abs().amax(-1, keepdim=True) / 127 * 0.501 if weight.dim() > 1 else 0
        assert torch.all((found[name] - weight).abs() <= bound), name


@pytest.mark.slow
def test_a_run_goes_on_from_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its optimizers begin anew, and slowly; a run of it that was stopped goes on as any other."""
    stage = Stage("lines", 10, (LINES, CLIP), 3e-3, 3e-3, 1.0, 0.3)
    train.train(tmp_path / "first", seed=3, stages=(replace(stage, steps=8),))
    tokenizer = tmp_path / "first/tokenizer.model"
    save_progress(tmp_path / "progress", weights(tmp_path / "first"), 8, tokenizer)
    monkeypatch.setattr(train, "train_tokenizer", None)  # it must be the same
    train.train(tmp_path / "second", 3, (stage,), progress=tmp_path / "progress")
    assert (tmp_path / "second/tokenizer.model").read_bytes() == tokenizer.read_bytes()
    ended = torch.load(tmp_path / "second/checkpoint.pt")
    assert (ended["step"], ended["first_step"]) == (10, 8)
    rates = [group["lr"] / group["share"] for one in ended["optimizers"] for group in one["param_groups"]]
    assert rates == [pytest.approx(3e-3 / 2)] * len(rates)  # the second of four steps of warming up
    before, after = weights(tmp_path / "first")["embed"], ended["network"]["embed"]
    assert 0 < (after - before).norm() < 0.1 * before.norm()
    train.train(tmp_path / "second", 3, (replace(stage, steps=11),), progress=tmp_path / "none")
    assert torch.load(tmp_path / "second/checkpoint.pt")["step"] == 11


@pytest.mark.slow
def test_a_later_stage_changes_no_other_experts_than_its_own(tmp_path: Path) -> None:
    """Nor where their optimizer has a momentum from the stage before."""
    stage = Stage("lines", 4, (CLIP,), 3e-3, 3e-3, 1.0, 0.3)
    train.train(tmp_path, seed=3, stages=(stage,))
    before = weights(tmp_path)
    train.train(tmp_path, seed=3, stages=(stage, replace(stage, banks=1)))
    after = weights(tmp_path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    experts = {name for name in before if ".banks." in name and "router" not in name}
    assert changed & experts == {f"layers.1.banks.vision.{part}" for part in ("gate_up", "down")}
    assert changed >= {"embed", "layers.2.qkv", "layers.2.banks.text.router"}


@pytest.mark.parametrize("is_started", [False, True])
def test_only_new_heads_move_while_a_started_run_waits(is_started: bool) -> None:
    """From nothing they are AdamW's like the rest, and all groups move from the first step on."""
    optimizers = train.make_optimizers(NanoNetwork(SHAPE, NUM_CHARACTER_CLASSES))
    stage = Stage("skills", 1000, (), 1e-3, 1e-3, 1.0, 1.0)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for step in (train.STARTED_WAIT - 1, train.STARTED_WAIT + train.STARTED_WARM_UP):
        train.set_rate(optimizers, stage, step, step, is_started=is_started)
        waits = is_started and step < train.STARTED_WAIT
        for group in groups:
            share = train.HEADS_SHARE if waits and group["is_new"] else group["share"]
            assert group["lr"] == (0.0 if waits and not group["is_new"] else pytest.approx(1e-3 * share))
    assert {group["share"] for group in groups} == {1.0, train.BANK_SHARE, train.ADAM_SHARE}
