"""Trains nano from a seed, resumably; writes checkpoints and a log.

    python calibration/nano/train.py --work build/nano          # starts, or resumes
    python calibration/nano/export.py --work build/nano --out ernie_local/nano

About four hours on two cores with bfloat16 products (AVX-512 BF16 or AMX). These environment variables make
it several times faster: MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184
ONEDNN_PRIMITIVE_CACHE_CAPACITY=8192
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.data import DataLoader

from ernie_local.files import replaced
from nano.batches import BatchMaker, stand_back
from nano.layers import TrainedBank, product
from nano.network import Batch, NanoNetwork
from nano.optimizer import Muon
from nano.progress import load_progress
from nano.shape import NanoShape
from nano.stages import HELD_OUT, READING_STAGES, STARTED_STAGES, Stage
from nano.streams import NUM_CHARACTER_CLASSES, Stream
from nano.tokenizer import train_tokenizer
from nano.warm_start import start_from

Optimizers = list[torch.optim.Optimizer]
REPORT_EVERY = 20
SHOWN = ("answer", "reading", "pointing", "tokens", "characters", "pointers")  # how a report names `Losses`
CHECKPOINT_EVERY = 100
EVALUATE_EVERY = 200
WARM_UP_STEPS = 60
# With --start only the heads that read characters, which begin anew, move for so many steps: what they ask
# for before they can read would spoil the rest, and so would balancing banks that do not learn.
STARTED_WAIT, STARTED_WARM_UP = 70, 130
HEADS_SHARE = 3.0
BALANCE_SPEED = 2e-3
ADAM_SHARE = 0.5
BANK_SHARE = 2.5  # an expert's word counts a quarter; at the shared expert's rate the banks stay idle


def make_optimizers(network: NanoNetwork) -> Optimizers:
    """Muon for weight matrices, AdamW for embedding, heads, routers, norms and biases.

    A group's `share` is its learning rate as a share of the stage's.
    """
    groups: dict[str, list[torch.nn.Parameter]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        is_matrix = parameter.dim() >= 2 and "router" not in name and name != "embed"
        if name == "reading_heads":
            groups["heads"].append(parameter)
        else:
            groups["rest" if not is_matrix else "banks" if "banks" in name else "matrices"].append(parameter)

    def group(name: str, share: float) -> dict[str, object]:
        return {"params": groups[name], "share": share, "is_new": name == "heads"}

    return [
        Muon([group("matrices", 1.0), group("banks", BANK_SHARE)], weight_decay=0.03),
        torch.optim.AdamW(
            [group("rest", ADAM_SHARE), group("heads", ADAM_SHARE)],
            lr=0.0,
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        ),
    ]


def set_rate(
    optimizers: Optimizers, stage: Stage, step_in_stage: int, step: int, *, is_started: bool
) -> float:
    """Linear inside the stage, warm-up over the first steps; step: since the optimizers began."""
    progress = step_in_stage / max(1, stage.steps)
    rate = stage.first_rate + (stage.last_rate - stage.first_rate) * progress
    from_nothing = min(1.0, (step + 1) / WARM_UP_STEPS)
    from_start = min(1.0, max(0.0, (step + 1 - STARTED_WAIT) / STARTED_WARM_UP))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            share, warm_up = group["share"], from_nothing
            if is_started and not group["is_new"]:
                warm_up = from_start
            elif is_started and step < STARTED_WAIT:
                share = HEADS_SHARE
            group["lr"] = rate * share * warm_up
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


def choose_banks(network: NanoNetwork, banks: int | None) -> None:
    """Let experts learn as `Stage.banks` says."""
    layers = [layer for layer in network.layers if layer.banks]
    for index, layer in enumerate(layers):
        for name, bank in layer.banks.items():  # type: ignore[union-attr, operator]
            learns = banks is None or (name == "vision" and index < banks)
            for weights in (bank.gate_up, bank.down):
                weights.requires_grad_(learns)
                weights.grad = None


def train_step(
    network: NanoNetwork, optimizers: Optimizers, batch: Batch, stage: Stage, *, balances: bool = True
) -> list[float]:
    """One update; the values of `Losses` in their order. balances: whether to even out expert loads."""
    losses = network.losses(batch)
    total = losses.answer + stage.reading_weight * losses.reading + stage.pointing_weight * losses.pointing
    total.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    for module in network.modules():
        if isinstance(module, TrainedBank) and balances:
            module.balance(BALANCE_SPEED)
    return [value.item() for value in losses]


@dataclass
class TrainingRun:
    """A network in training. first_step: at which its optimizers began anew."""

    network: NanoNetwork
    optimizers: Optimizers
    step: int = 0
    first_step: int = 0

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "first_step": self.first_step, "network": self.network.state_dict()}
        with replaced(path) as new:
            torch.save({**state, "optimizers": states}, new)

    def load(self, path: Path) -> None:
        """Go on with a checkpoint."""
        state = torch.load(path)
        self.step, self.first_step = state["step"], state["first_step"]
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def locate(stages: Sequence[Stage], step: int) -> tuple[Stage, int]:
    """The stage that `step` falls into, and the step within it."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError(f"step beyond the last stage by {step}")


def report(log: Path, line: str) -> None:
    """Print a line and append it to the log."""
    print(line, flush=True)
    with log.open("a") as file:
        file.write(line + "\n")


def open_run(work: Path, seed: int, start: Path | None, progress: Path | None = None) -> TrainingRun:
    """Of the last checkpoint in `work`, else of `progress` or of the weights in `start`, else a new one."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_path = work / "tokenizer.model"
    if progress is not None and not tokenizer_path.exists():
        shutil.copyfile(progress / tokenizer_path.name, tokenizer_path)
    if not tokenizer_path.exists():
        train_tokenizer(tokenizer_path)
    torch.manual_seed(seed)
    network = NanoNetwork(NanoShape(), NUM_CHARACTER_CLASSES)
    run = TrainingRun(network, make_optimizers(network))
    if (work / "checkpoint.pt").exists():
        run.load(work / "checkpoint.pt")
    elif progress is not None:
        weights, run.step = load_progress(progress)
        run.first_step = run.step
        network.load_state_dict(weights)
    elif start is not None:
        for note in start_from(network, tokenizer_path, start):
            report(work / "log.txt", note)
    return run


def evaluate_and_report(network: NanoNetwork, work: Path, num_batches: int) -> None:
    """A line of the log."""
    counts = evaluate_held_out(network, work / "tokenizer.model", num_batches, seed=7)
    right, asked = (sum(pair[i] for pair in counts.values()) for i in (0, 1))
    kinds = ", ".join(f"{kind} {a}/{b}" for kind, (a, b) in counts.items())
    report(work / "log.txt", f"held out {right}/{asked} = {right / asked:.3f}: {kinds}")


def train(
    work: Path, seed: int, stages: Sequence[Stage], start: Path | None = None, progress: Path | None = None
) -> None:
    """Train to the end of the last stage from where `open_run` begins."""
    run = open_run(work, seed, start, progress)
    network, optimizers = run.network, run.optimizers
    total = sum(stage.steps for stage in stages)
    while run.step < total:
        stage, step_in_stage = locate(stages, run.step)
        maker = BatchMaker(
            stage.streams, str(work / "tokenizer.model"), network.shape, seed * 1_000_003 + run.step
        )
        loader = DataLoader(maker, None, num_workers=2, prefetch_factor=4, worker_init_fn=stand_back)
        batches = iter(loader)
        choose_banks(network, stage.banks)
        recent: list[list[float]] = []
        started = time.perf_counter()
        for offset in range(stage.steps - step_in_stage):
            since_first, is_started = run.step - run.first_step, start is not None
            rate = set_rate(optimizers, stage, step_in_stage + offset, since_first, is_started=is_started)
            balances = stage.banks is None and (not is_started or since_first >= STARTED_WAIT)
            recent.append(train_step(network, optimizers, next(batches), stage, balances=balances))
            run.step += 1
            if run.step % REPORT_EVERY == 0 or run.step == total:
                means = torch.tensor(recent).nanmean(0).tolist()
                seconds = (time.perf_counter() - started) / len(recent)
                shown = " ".join(f"{name} {mean:.3f}" for name, mean in zip(SHOWN, means, strict=True))
                line = f"{stage.name} {run.step} rate {rate:.1e} {shown} seconds {seconds:.2f}"
                report(work / "log.txt", line)
                recent, started = [], time.perf_counter()
            if run.step % CHECKPOINT_EVERY == 0 or run.step == total:
                run.save(work / "checkpoint.pt")
            if stage.name != "lines" and (run.step % EVALUATE_EVERY == 0 or run.step == total):
                evaluate_and_report(network, work, 20 if run.step == total else 6)


def time_streams(seed: int, steps: int) -> None:
    """Print CPU seconds of a step on each stream, and of all stages by the streams' shares.

    CPU seconds of all threads hardly depend on what else the machine does; the run's own time is theirs over
    the number of cores, as rendering goes on beside.
    """
    work = Path(tempfile.mkdtemp())
    run = open_run(work, seed, None)
    stages = (*READING_STAGES, *STARTED_STAGES)
    stage_of = {stream: stage for stage in stages for stream in stage.streams}
    measured: dict[Stream, float] = {}
    for stream, stage in stage_of.items():
        batches = iter(BatchMaker((stream,), str(work / "tokenizer.model"), run.network.shape, seed))
        train_step(run.network, run.optimizers, next(batches), stage)  # compiles its shapes
        render = train = 0.0
        for _ in range(steps):
            started = time.process_time()
            batch = next(batches)
            rendered = time.process_time()
            train_step(run.network, run.optimizers, batch, stage)
            render, train = render + rendered - started, train + time.process_time() - rendered
        measured[stream] = (render + train) / steps
        what = f"{', '.join(stream.kinds)} {stream.grid} {stream.num_frames or ''}"
        print(
            f"{what}: {tuple(batch.ids.shape)} render {render / steps:.2f} train {train / steps:.2f}",
            flush=True,
        )
    for stage in stages:
        weights = sum(stream.weight for stream in stage.streams)
        mean = sum(stream.weight * measured[stream] for stream in stage.streams) / weights
        print(f"{stage.name}: {mean:.2f} CPU s a step, {stage.steps * mean / 3600:.2f} CPU h")


def train_nano() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, help="folder for checkpoints and the log")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--start", type=Path, help="begin with the weights of this nano, and skip its stages")
    begin.add_argument("--progress", type=Path, help="go on with what progress.py wrote of a started run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--time", type=int, metavar="STEPS", help="measure so many steps of each stream, and end"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.time:
        time_streams(arguments.seed, arguments.time)
        return
    if arguments.work is None:
        parser.error("--work is needed")
    is_started = arguments.start or arguments.progress
    stages = STARTED_STAGES if is_started else (*READING_STAGES, *STARTED_STAGES)
    train(arguments.work, arguments.seed, stages, arguments.start, arguments.progress)


if __name__ == "__main__":
    train_nano()
