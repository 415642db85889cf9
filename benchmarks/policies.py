"""Which pages to keep: LRU, LFU, ours, and Belady's optimum, on made-up routing and on nano's own.

    python benchmarks/policies.py                        # a table; the last line is one JSON object
    python benchmarks/policies.py --trace chat.trace     # and what `ernie-local chat --trace` recorded

Share of experts that a decoded token finds in memory, with so much memory as 25, 50 and 75 % of all text
experts take. nano's rows are chats about generated images, each read out whole and asked two questions.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from routings import make_trace, phases, uniform, zipf

import ernie_local
from ernie_calibration.generated import SampleFamily, held_out_samples
from ernie_local.replay.replay import Replayed, compare
from ernie_local.replay.trace import Trace, read_trace

SHARES = (0.25, 0.5, 0.75)
DECAYS = (0.0, 0.9, 0.95, 0.98, 0.995, 1.0)  # ours with a fixed one
BEHIND, OF_BELADY = 0.02, 0.8  # goals: at most so far behind LRU and LFU; at half, so much of Belady's hits


def nano_trace(num_images: int, family: SampleFamily) -> Trace:
    """One chat for each image; all turns are asked, the answers are the model's own."""
    model = ernie_local.load("nano", context_size=4096)
    recorder = model.record_trace()
    for sample in held_out_samples(num_images, families=(family,), questions_each=2, transcript_every=1):
        chat = ernie_local.Chat(model)
        for index, turn in enumerate(sample.turns):
            for _ in chat.ask(turn.question, images=() if index else sample.images, max_tokens=200):
                pass
    return recorder.trace()


def hit_rate(result: Replayed) -> float:
    """Of both banks together."""
    hits = sum(bank.decode_hits for bank in result.stats.banks.values())
    return hits / (hits + sum(bank.decode_misses for bank in result.stats.banks.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1000, help="of each made-up routing")
    parser.add_argument("--images", type=int, default=8, help="of nano's chats")
    parser.add_argument("--trace", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    make = partial(make_trace, num_tokens=arguments.tokens)
    traces = {
        "uniform": make(uniform),
        "Zipf 0.6": make(partial(zipf, exponent=0.6)),
        "Zipf 1": make(partial(zipf, exponent=1.0)),
        "Zipf 0.5, sticky": make(partial(zipf, exponent=0.5), pull=6.0),
        "phases of 32": make(partial(phases, length=32)),
        "phases of 128": make(partial(phases, length=128)),
        "phases of 400": make(partial(phases, length=400)),
        "nano, images": nano_trace(arguments.images, "images"),
        "nano, texts": nano_trace(arguments.images, "texts"),
        **{path.name: read_trace(path) for path in arguments.trace},
    }
    names = ["ours", *(f"{decay:g}" for decay in DECAYS)]
    print(f"| routing | memory | LRU | LFU | {' | '.join(names)} | Belady |")
    print("|---|---:|" + "---:|" * (len(names) + 3))
    rates = {}
    for name, trace in traces.items():
        for share in SHARES:
            *ours, lru, lfu, belady = map(
                hit_rate, compare(trace, int(share * trace.bank_bytes("text")), (None, *DECAYS))
            )
            least = max(max(lru, lfu) - BEHIND, OF_BELADY * belady if share == 0.5 else 0.0)
            cells = [f"{100 * rate:.1f}" if rate >= least else f"*{100 * rate:.1f}*" for rate in ours]
            print(
                f"| {name} | {share:.0%} | {100 * lru:.1f} | {100 * lfu:.1f} | "
                + " | ".join(cells)
                + f" | {100 * belady:.1f} |",
                flush=True,
            )
            rates[f"{name} {share:.0%}"] = [lru, lfu, *ours, belady]
    print(json.dumps({"columns": ["lru", "lfu", *names, "belady"], "rates": rates}))


if __name__ == "__main__":
    main()
