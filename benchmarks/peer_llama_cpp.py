"""Full-size prefill and decode beside llama.cpp, in turn, on one machine: medians of rounds, and ratios.

    python benchmarks/peer_llama_cpp.py --work DIR --peer-python PYTHON [--pair w4+w8] [--rounds 3]

PYTHON has gguf and llama-cpp-python; DIR needs 36 GB, for one pair after the other. Of llama.cpp's two
layouts (see llama_cpp_speed.py) the better one counts, figure by figure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Experts and dense weights: ours, and the nearest of llama.cpp's.
PAIRS = {
    "w4+w8": (("w4", "w8"), ("Q4_K", "Q8_0")),
    "w4+w4": (("w4", "w4"), ("Q4_K", "Q4_K")),
    "w2+w4": (("w2", "w4"), ("Q2_K", "Q4_K")),
}


def run(python: str, script: str, *arguments: object) -> dict[str, float]:
    command = [python, str(HERE / script), *map(str, arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    last: dict[str, float] = json.loads(output.splitlines()[-1])
    return last


def make(work: Path, pair: str, peer_python: str) -> tuple[Path, Path]:
    (experts, dense), (peer_experts, peer_dense) = PAIRS[pair]
    ours, theirs = work / pair, work / f"{pair}.gguf"
    if not (ours / "config.json").exists():
        shutil.rmtree(ours, ignore_errors=True)
        script = [sys.executable, HERE / "synthesize.py", ours, "--experts", experts, "--dense", dense]
        subprocess.run(list(map(str, script)), check=True)
    if not theirs.exists():
        script = [
            peer_python,
            HERE / "llama_cpp_model.py",
            theirs,
            "--experts",
            peer_experts,
            "--dense",
            peer_dense,
        ]
        subprocess.run(list(map(str, script)), check=True, stdout=subprocess.DEVNULL)
    return ours, theirs


def compare(work: Path, pair: str, arguments: argparse.Namespace) -> dict[str, object]:
    ours, theirs = make(work, pair, arguments.peer_python)
    measured: dict[str, list[float]] = {}
    sizes = ("--prompt", arguments.prompt, "--decode", arguments.decode, "--threads", arguments.threads)
    for _ in range(arguments.rounds):
        peers = [
            run(arguments.peer_python, "llama_cpp_speed.py", theirs, *sizes, *layout)
            for layout in ((), ("--no-repack",))
        ]
        mine = run(sys.executable, "full_size.py", ours, *sizes, "--image", arguments.image)
        figures = {
            "llama.cpp prefill": max(peer["prefill_tok_s"] for peer in peers),
            "llama.cpp decode": max(peer["decode_tok_s"] for peer in peers),
            "prefill": mine["prefill_tok_s"],
            "decode": mine["decode_tok_s"],
            "decode GB/s": mine["decode_gb_s"],
            "plain read GB/s": mine["plain_read_gb_s"],
            "eight busiest of 64 experts": mine["busiest_8_of_64"],
        }
        if "tower_s" in mine:
            figures |= {"image tokens": mine["image_tok_s"], "vision tower, s": mine["tower_s"]}
            figures["float32 product, G mac/s"] = mine["float32_gmac_s"]
        print(pair, json.dumps({name: round(value, 2) for name, value in figures.items()}), flush=True)
        for name, value in figures.items():
            measured.setdefault(name, []).append(value)
    result: dict[str, object] = {name: statistics.median(values) for name, values in measured.items()}
    for name, ratio in (
        ("decode", ("decode", "llama.cpp decode")),
        ("prefill", ("prefill", "llama.cpp prefill")),
        ("image tokens", ("image tokens", "llama.cpp prefill")),
        ("share of the read", ("decode GB/s", "plain read GB/s")),
    ):
        if ratio[0] not in measured:
            continue
        pairs = zip(measured[ratio[0]], measured[ratio[1]], strict=True)
        result[f"ratio: {name}"] = statistics.median(mine / other for mine, other in pairs)
    if not arguments.keep:
        shutil.rmtree(ours)
        theirs.unlink()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--pair", choices=PAIRS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image", default="1000x700", help="WIDTHxHEIGHT of the image, or none")
    parser.add_argument("--keep", action="store_true", help="leave the models in DIR")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = {pair: compare(arguments.work, pair, arguments) for pair in arguments.pair or PAIRS}
    names = list(next(iter(results.values())))
    print("| | " + " | ".join(results) + " |\n|---|" + "---:|" * len(results))
    for name in names:
        print(f"| {name} | " + " | ".join(f"{result[name]:.2f}" for result in results.values()) + " |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
