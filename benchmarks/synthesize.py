"""Write a checkpoint of ERNIE-4.5-VL-28B-A3B's sizes with random packed weights, to run and time them.

    python benchmarks/synthesize.py OUT                                   # 16.8 GB: experts w4, the rest w8
    python benchmarks/synthesize.py OUT --experts w2 --dense w4           # about 9.7 GB
    python benchmarks/synthesize.py OUT --dual w2                         # 24.6 GB: small pages too
    python benchmarks/synthesize.py OUT --plain --layers 3 --vision-depth 2   # 5 GB of bfloat16

Its answers mean nothing. Router weights are random with a mean of zero, so that tokens spread over experts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import parse_config
from ernie_local.machine.random_model import write_random


def full_size_config(num_layers: int, vision_depth: int = 32) -> dict[str, object]:
    """config.json as transformers writes it; sizes that it leaves out are those of the published model."""
    return {
        "model_type": "ernie4_5_vl_moe",
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "ernie4_5_vl_moe_text",
            "vocab_size": 103424,
            "hidden_size": 2560,
            "num_hidden_layers": num_layers,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "vision_config": {"model_type": "ernie4_5_vl_moe_vision", "depth": vision_depth, "hidden_size": 1280},
    }


def peak_mib() -> int:
    """Of this process since it became this program (getrusage would count its parent's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", default="w4", help="format of the experts' pages, such as w4 or w2-w2l")
    parser.add_argument("--dual", metavar="FORMAT", help="give each expert a second, small page, in w2 say")
    parser.add_argument("--dense", default="w8", help="attention, shared experts, dense layer, head")
    parser.add_argument("--embedding", default="w8")
    parser.add_argument("--vision", default="w8", help="a format, or none for bfloat16")
    parser.add_argument("--plain", action="store_true", help="everything in bfloat16, as it is published")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--vision-depth", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raw = full_size_config(arguments.layers, arguments.vision_depth)
    config = parse_config(raw, "config.json")
    vision = None if arguments.vision == "none" else arguments.vision
    choice = FormatChoice(
        arguments.experts, arguments.dense, arguments.embedding, vision, small_experts=arguments.dual
    )
    start = time.perf_counter()
    tables = None if arguments.plain else format_tables(config, choice)
    write_random(arguments.out, raw, tables, arguments.seed)
    num_bytes = sum(path.stat().st_size for path in arguments.out.iterdir())
    seconds = time.perf_counter() - start
    print(f"{arguments.out}: {num_bytes / 1e9:.2f} GB in {seconds:.0f} s, peak memory {peak_mib()} MiB")


if __name__ == "__main__":
    main()
