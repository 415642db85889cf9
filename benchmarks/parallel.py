"""How fast several sequences of one model are decoded together, beside one, turn about in one run.

    python benchmarks/parallel.py MODEL [--ram 8GiB] [--sequences 1 2 4 8] [--rounds 5] [--tokens 16]

Each sequence has a thread of its own, which samples as a chat does. Tokens are random, so that answers of a
model with random weights do not repeat themselves. A first round fills the memory. The last line is one JSON
object: medians over all others of tokens a second, and of their ratio to one sequence in the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from pathlib import Path

import torch

from ernie_local import load
from ernie_local.engine import Engine
from ernie_local.loading import LoadedModel
from ernie_local.machine.random_model import text_ids
from ernie_local.sampling import Sampler, SamplingOptions


def run(engines: list[Engine], ids: list[list[int]], options: SamplingOptions) -> float:
    """Tokens a second of all together."""
    start = threading.Barrier(len(engines) + 1)

    def decode(engine: Engine, own: list[int]) -> None:
        sampler = Sampler(options)
        start.wait()
        for token_id in own:
            sampler.pick(engine.decode(token_id))

    threads = [threading.Thread(target=decode, args=pair) for pair in zip(engines, ids, strict=True)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    return sum(map(len, ids)) / (time.perf_counter() - began)


def make_engines(model: LoadedModel, count: int, prompt: int, context_size: int) -> list[Engine]:
    engines = [model.engine(context_size=context_size) for _ in range(count)]
    for number, engine in enumerate(engines):
        engine.prefill(text_ids(model.config, prompt, number))
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("--ram", default="auto")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16, help="of each sequence in a round")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--parallel", type=int, help="conversations that memory is planned for")
    arguments = parser.parse_args()
    most = max(arguments.sequences)
    total = (arguments.rounds + 1) * len(arguments.sequences) * arguments.tokens
    context_size = arguments.prompt + total + 1
    model = load(
        arguments.model,
        ram=arguments.ram,
        threads=arguments.threads,
        context_size=context_size,
        parallel=arguments.parallel or most,
    )
    model.wait_until_resident()
    print(*model.paging_notes(), sep="\n")
    options = SamplingOptions(temperature=arguments.temperature, top_p=arguments.top_p)
    engines = make_engines(model, most, arguments.prompt, context_size)
    speeds: dict[int, list[float]] = {count: [] for count in arguments.sequences}
    stream = iter(text_ids(model.config, most * total, 99))
    for number in range(arguments.rounds + 1):
        for count in arguments.sequences:
            ids = [[next(stream) for _ in range(arguments.tokens)] for _ in range(count)]
            before = model.paging
            speed = run(engines[:count], ids, options)
            if number:
                speeds[count].append(speed)
            if (after := model.paging) is not None and before is not None:
                read = (after.decode_bytes_read - before.decode_bytes_read) / sum(map(len, ids))
                print(f"{count} sequences: {speed:.2f} tokens/s, {read / 1e6:.0f} MB read a token")
    first = arguments.sequences[0]
    result = {
        "tokens_per_second": {count: statistics.median(found) for count, found in speeds.items()},
        f"times_{first}": {
            count: statistics.median(one / base for one, base in zip(found, speeds[first], strict=True))
            for count, found in speeds.items()
        },
    }
    print(json.dumps(result))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
