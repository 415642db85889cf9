"""The peak of memory that `ernie-local vram` predicts, beside the one that a conversation really has.

    python benchmarks/predicted_memory.py nano                 # settings of bits x context x image x budget
    python benchmarks/predicted_memory.py DIRECTORY            # a full-size checkpoint of synthesize.py

Each setting runs in a process of its own (conversation_memory.py). Prints a table, and one JSON object last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from ernie_local import defaults
from ernie_local.checkpoint.hub import resolve_model
from ernie_local.media.image_size import ImageReport, measure_image
from ernie_local.planner.model_size import read_model
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget, plan_cpu
from ernie_local.sizes import MIB, parse_bytes

PROGRAM = Path(__file__).with_name("conversation_memory.py")
# context, dtype, image, budget: for nano, and for checkpoints of the real size.
SMALL = [
    ("256", "float32", None, None),
    ("1024", "float32", "1000x700", None),
    ("4096", "float32", None, None),
    ("2048", "bfloat16", None, None),
    ("1024", "bfloat16", "640x480", None),
    ("1024", "float32", None, "400MiB"),
    ("2048", "float32", "640x480", "420MiB"),
]
LARGE = [
    ("512", "float32", None, None),
    ("1536", "float32", "1000x700", None),
    ("4096", "float32", None, None),
    ("512", "float32", None, "8GiB"),
    ("3500", "float32", "1240x1754", "8GiB"),
    ("8192", "float32", None, "5GiB"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model", nargs="+")
    parser.add_argument("--only", type=int, action="append", help="numbers of settings, from 0")
    arguments = parser.parse_args()
    rows = []
    print("| model | context | dtype | image | budget | predicted, MiB | measured, MiB | error |")
    print("|---|---:|---|---|---|---:|---:|---:|")
    for name in arguments.model:
        settings = SMALL if name == "nano" else LARGE
        for index, (context, dtype, image, ram) in enumerate(settings):
            if arguments.only and index not in arguments.only:
                continue
            predicted = predict(name, int(context), dtype, image, ram)
            measured = measure(name, context, dtype, image, ram)
            error = predicted / measured - 1
            cells = (name, context, dtype, image or "", ram or "", predicted // MIB, measured // MIB)
            print(f"| {' | '.join(map(str, cells))} | {100 * error:+.1f} % |", flush=True)
            within = abs(predicted - measured) <= max(0.03 * measured, 64 * MIB) and error >= -0.01
            rows.append({"model": name, "context": int(context), "error": error, "within": within})
    print(json.dumps({"settings": rows, "all_within": all(row["within"] for row in rows)}))


def predict(name: str, context: int, dtype: str, image: str | None, ram: str | None) -> int:
    model = read_model(resolve_model(name))
    images: tuple[ImageReport, ...] = ()
    if image is not None:
        width, height = map(int, image.split("x"))
        images = (measure_image(image, (width, height), model.processor),)
    kv_dtype = defaults.kv_dtype(dtype, is_packed=model.config.quantization is not None)
    budget = Budget(None if ram is None else parse_bytes(ram))
    return plan_cpu(model, ChatPlan(context, dtype, kv_dtype, images), budget).memory.peak.best


def measure(name: str, context: str, dtype: str, image: str | None, ram: str | None) -> int:
    command = [sys.executable, str(PROGRAM), name, "--ctx-size", context, "--dtype", dtype]
    command += ["--image", image] if image else []
    command += ["--ram", ram] if ram else []
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


if __name__ == "__main__":
    main()
