"""Trains nano from a seed, resumably; writes checkpoints and a log.

    python calibration/nano/train.py --work build/nano          # starts, or resumes
    python calibration/nano/export.py --work build/nano --out ernie_local/nano

About two hours on two cores with bfloat16 products (AVX-512 BF16 or AMX). These environment variables make it
several times faster: MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
ONEDNN_PRIMITIVE_CACHE_CAPACITY=8192
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader

from ernie_local.files import replaced
from nano.bank import TrainedBank
from nano.batches import NUM_CHARACTER_CLASSES, BatchMaker
from nano.layers import product
from nano.network import Batch, NanoNetwork
from nano.optimizer import Muon
from nano.shape import NanoShape
from nano.stages import HELD_OUT, STAGES, Stage
from nano.tokenizer import train_tokenizer

REPORT_EVERY = 20
CHECKPOINT_EVERY = 100
EVALUATE_EVERY = 200
WARM_UP_STEPS = 60
BALANCE_SPEED = 2e-3
ADAM_SHARE = 0.5
BANK_SHARE = 2.5  # an expert's word counts a quarter; at the shared expert's rate the banks stay idle


def make_optimizers(network: NanoNetwork) -> list[torch.optim.Optimizer]:
    """Muon for weight matrices, AdamW for embedding, heads, routers, norms and biases.

    A group's `share` is its learning rate as a share of the stage's.
    """
    banks: list[torch.nn.Parameter] = []
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in network.named_parameters():
        is_matrix = parameter.dim() >= 2 and "router" not in name and name not in ("embed", "reading_heads")
        (rest if not is_matrix else banks if "banks" in name else matrices).append(parameter)
    muon_groups = [{"params": matrices, "share": 1.0}, {"params": banks, "share": BANK_SHARE}]
    return [
        Muon(muon_groups, lr=0.0, weight_decay=0.03),
        torch.optim.AdamW(
            [{"params": rest, "share": ADAM_SHARE}], lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        ),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], stage: Stage, step_in_stage: int, step: int) -> float:
    """Linear inside the stage, warm-up over the whole run's first steps."""
    progress = step_in_stage / max(1, stage.steps)
    rate = stage.first_rate + (stage.last_rate - stage.first_rate) * progress
    rate *= min(1.0, (step + 1) / WARM_UP_STEPS)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
    return rate


@torch.no_grad()
def evaluate_held_out(
    network: NanoNetwork, tokenizer_path: Path, num_batches: int, seed: int
) -> dict[str, tuple[int, int]]:
    """Right and asked per question kind on held-out images.

    An answer is right when every one of its tokens is the most likely one after the true prefix: the same as
    greedy decoding giving exactly the answer.
    """
    network.eval()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    maker = iter(BatchMaker(HELD_OUT, str(tokenizer_path), network.shape, seed, held_out=True))
    for _ in range(num_batches):
        batch = next(maker)
        hidden, labels, _, _ = network(batch)
        wrong = product(hidden, network.embed).argmax(-1) != labels
        rows = (batch.labels[:, 1:] >= 0).nonzero()[:, 0]
        wrong_per_row = torch.zeros(len(batch.kinds), dtype=torch.long).index_add_(0, rows, wrong.long())
        for kind, errors in zip(batch.kinds, wrong_per_row.tolist(), strict=True):
            counts[kind][0] += errors == 0
            counts[kind][1] += 1
    network.train()
    return {kind: (right, asked) for kind, (right, asked) in sorted(counts.items())}


def train_step(
    network: NanoNetwork, optimizers: list[torch.optim.Optimizer], batch: Batch, stage: Stage
) -> list[float]:
    """One update; the values of `Losses` in their order."""
    losses = network.losses(batch)
    (
        losses.answer + stage.reading_weight * losses.reading + stage.pointing_weight * losses.pointing
    ).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    for module in network.modules():
        if isinstance(module, TrainedBank):
            module.balance(BALANCE_SPEED)
    return [getattr(losses, field.name).item() for field in fields(losses)]


def save(path: Path, network: NanoNetwork, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Write a checkpoint atomically."""
    state = {
        "step": step,
        "network": network.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    with replaced(path) as new:
        torch.save(state, new)


def locate(step: int) -> tuple[Stage, int, int]:
    """The stage that `step` falls into, its index, and the step within it."""
    for index, stage in enumerate(STAGES):
        if step < stage.steps:
            return stage, index, step
        step -= stage.steps
    raise IndexError(f"step beyond the last stage by {step}")


def report(log: Path, line: str) -> None:
    """Print a line and append it to the log."""
    print(line, flush=True)
    with log.open("a") as file:
        file.write(line + "\n")


def train(work: Path, seed: int) -> None:
    """Train from the last checkpoint in `work` to the end of the last stage."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_path = work / "tokenizer.model"
    if not tokenizer_path.exists():
        train_tokenizer(tokenizer_path)
    torch.manual_seed(seed)
    network = NanoNetwork(NanoShape(), NUM_CHARACTER_CLASSES)
    optimizers = make_optimizers(network)
    step, checkpoint = 0, work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint)
        step = state["step"]
        network.load_state_dict(state["network"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    total = sum(stage.steps for stage in STAGES)
    while step < total:
        stage, index, step_in_stage = locate(step)
        maker = BatchMaker(stage.streams, str(tokenizer_path), network.shape, seed * 1_000_003 + step)
        loader = iter(
            DataLoader(
                maker,
                batch_size=None,
                num_workers=1,
                prefetch_factor=4,
                worker_init_fn=lambda _: torch.set_num_threads(1),
            )
        )
        recent: list[list[float]] = []
        started = time.perf_counter()
        for offset in range(stage.steps - step_in_stage):
            rate = set_rate(optimizers, stage, step_in_stage + offset, step)
            recent.append(train_step(network, optimizers, next(loader), stage))
            step += 1
            if step % REPORT_EVERY == 0:
                means = torch.tensor(recent).nanmean(0).tolist()
                seconds = (time.perf_counter() - started) / len(recent)
                report(
                    work / "log.txt",
                    f"{stage.name} {step} rate {rate:.1e} answer {means[0]:.3f} reading {means[1]:.3f} "
                    f"pointing {means[2]:.3f} tokens {means[3]:.3f} characters {means[4]:.3f} "
                    f"pointers {means[5]:.3f} seconds {seconds:.2f}",
                )
                recent, started = [], time.perf_counter()
            if step % CHECKPOINT_EVERY == 0 or step == total:
                save(checkpoint, network, optimizers, step)
            if index > 0 and (step % EVALUATE_EVERY == 0 or step == total):
                counts = evaluate_held_out(network, tokenizer_path, 12 if step == total else 4, seed=7)
                right, asked = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
                kinds = ", ".join(f"{kind} {a}/{b}" for kind, (a, b) in counts.items())
                report(work / "log.txt", f"held out {right}/{asked} = {right / asked:.3f}: {kinds}")


def train_nano() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.work, arguments.seed)


if __name__ == "__main__":
    train_nano()
