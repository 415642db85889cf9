"""Keeps what a run has learnt in one byte a weight, so that another machine can go on with it.

    python calibration/nano/progress.py --work build/nano --out calibration/nano/progress
    python calibration/nano/train.py --work build/nano --progress calibration/nano/progress

Weights are rounded to 8 bits with a scale for each row; vectors keep float32. The optimizers begin anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

LARGEST_CODE = 127
PART_BYTES = 12_000_000  # of a file
_SCALE = ".row_scale"


def save_progress(folder: Path, network: dict[str, Tensor], step: int, tokenizer_path: Path) -> None:
    """Write the state of a network after `step` steps and its tokenizer, as files of `folder`, a new one."""
    folder.mkdir()
    shutil.copyfile(tokenizer_path, folder / "tokenizer.model")
    written: dict[str, Tensor] = {}
    num_files = 0
    for name, weight in network.items():
        if written and sum(one.nbytes for one in written.values()) + weight.numel() > PART_BYTES:
            save_file(written, folder / f"{num_files}.safetensors", {"step": str(step)})
            written, num_files = {}, num_files + 1
        if weight.dim() < 2:
            written[name] = weight.float().contiguous()
            continue
        scale = weight.abs().amax(-1, keepdim=True) / LARGEST_CODE  # (..., 1)
        codes = (weight / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
        written[name] = codes.to(torch.int8).contiguous()
        written[name + _SCALE] = scale.float().contiguous()
    save_file(written, folder / f"{num_files}.safetensors", {"step": str(step)})


def load_progress(folder: Path) -> tuple[dict[str, Tensor], int]:
    """The state of the network, in float32, and the steps that it has done."""
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = {
        name: tensor if tensor.dim() < 2 else tensor * found[name + _SCALE]
        for name, tensor in found.items()
        if not name.endswith(_SCALE)
    }
    return network, step


def write_progress() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="folder of a run")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    state = torch.load(arguments.work / "checkpoint.pt")
    save_progress(arguments.out, state["network"], state["step"], arguments.work / "tokenizer.model")


if __name__ == "__main__":
    write_progress()
