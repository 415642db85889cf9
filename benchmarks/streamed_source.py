"""Measure the disk that `quantize hf:...` takes of a model of the published widths, from a hub on loopback.

    PYTHONPATH=. python benchmarks/streamed_source.py DIR              # 29 files; 12 GB in DIR, some minutes
    PYTHONPATH=. python benchmarks/streamed_source.py DIR --files 6    # a layer in 3 of them, as published

The weights are random, the layers few. The same source is quantized from its directory, too, and all weights
must be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from synthesize import full_size_config

from ernie_local.machine.random_model import write_random
from tests.hub_double import HubDouble
from tests.sharded import NUM_FILES, write_files

NAME = "org/wide"


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below it take on the disk; holes take none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except OSError:  # it was just deleted
            continue
    return total


class DiskWatch(threading.Thread):
    """Looks at a folder ten times a second, and keeps what it took at most."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.most_bytes, self.most_files, self.is_over = folder, 0, 0, False

    def run(self) -> None:
        """Until `is_over`."""
        while not self.is_over:
            self.most_bytes = max(self.most_bytes, disk_bytes(self.folder))
            self.most_files = max(self.most_files, len(list(self.folder.glob("work/shards/*"))))
            time.sleep(0.1)


def quantize(source: str, out: Path, environment: dict[str, str] | None = None) -> float:
    """Run the command; the seconds it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "ernie_cli.main", "quantize", source, str(out), "--method", "rtn"]
    subprocess.run([*command, "--bits", "2"], check=True, env=environment)
    return time.perf_counter() - began


def weights_hash(folder: Path) -> str:
    """Of all weight files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("work", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--files", type=int, default=NUM_FILES)
    arguments = parser.parse_args()
    work: Path = arguments.work
    plain, source = work / "plain", work / "source"
    write_random(plain, full_size_config(arguments.layers, vision_depth=2), None, seed=0)
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(plain.glob("*.safetensors")):
        tensors |= load_file(path)
    source.mkdir()
    shutil.copy(plain / "config.json", source)
    write_files(source, tensors, arguments.files)
    del tensors
    shutil.rmtree(plain)
    sizes = sorted(path.stat().st_size for path in source.glob("*.safetensors"))
    here = quantize(str(source), work / "here")
    with HubDouble() as hub:
        hub.add_folder(NAME, source)
        watch = DiskWatch(work / "streamed.partial")
        watch.start()
        streamed = quantize(f"hf:{NAME}", work / "streamed", hub.environment(work / "home"))
        watch.is_over = True
        watch.join()
        sent = hub.bytes_sent("/cdn/*")
    num_made = sum(path.stat().st_size for path in (work / "streamed").glob("*.safetensors"))
    source_size, largest, most, made, fetched = (
        f"{size / 1e9:.3f} GB" for size in (sum(sizes), sum(sizes[-4:]), watch.most_bytes, num_made, sent)
    )
    print(f"source: {source_size} in {len(sizes)} files, the largest 4 {largest}")
    print(f"made: {made}; disk at most {most}, {watch.most_files} files of the source")
    print(f"fetched: {fetched}; {streamed:.0f} s, from a directory {here:.0f} s")
    print(f"weights equal: {weights_hash(work / 'here') == weights_hash(work / 'streamed')}")


if __name__ == "__main__":
    main()
