"""Write a checkpoint of a published model's sizes with random packed weights, to run and time them.

    python benchmarks/synthesize.py OUT                                   # 16.8 GB: experts w4, the rest w8
    python benchmarks/synthesize.py OUT --experts w2 --dense w4           # about 9.7 GB
    python benchmarks/synthesize.py OUT --dual w2                         # 24.6 GB: small pages too
    python benchmarks/synthesize.py OUT --plain --layers 3 --vision-depth 2   # 5 GB of bfloat16
    python benchmarks/synthesize.py OUT --model ernie-4.5-vl-424b-a47b --layers 2 --bank 8

Its answers mean nothing. Router weights are random with a mean of zero, so that tokens spread over experts.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import parse_config
from ernie_local.machine.random_model import write_random
from ernie_local.planner import model_size
from ernie_local.planner.model_size import PUBLISHED_NAMES
from ernie_local.strict_json import read_json_object

PLANNER = Path(model_size.__file__).parent


def full_size_config(
    num_layers: int, vision_depth: int = 32, model: str = PUBLISHED_NAMES[0], num_experts: int = 64
) -> dict[str, object]:
    """config.json of a published model of the package, with as many layers, blocks and experts of a bank.

    Where layers are left out, only the first is dense.
    """
    raw = read_json_object(PLANNER / f"{model}.json")
    vision = raw["vision_config"]
    assert isinstance(vision, dict)
    if num_layers != raw["num_hidden_layers"]:
        raw["moe_layer_start_index"] = 1
    return raw | {
        "num_hidden_layers": num_layers,
        "moe_num_experts": [num_experts, num_experts],
        "vision_config": vision | {"depth": vision_depth},
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
    parser.add_argument("--model", choices=PUBLISHED_NAMES, default=PUBLISHED_NAMES[0])
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--bank", type=int, default=64, help="experts of each bank of a layer")
    parser.add_argument("--vision-depth", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    raw = full_size_config(arguments.layers, arguments.vision_depth, arguments.model, arguments.bank)
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
