"""Kills `ernie-local extract` again and again, and checks that it ends with each document once.

    python benchmarks/killed_runs.py --documents 1000 --broken 50 --kills 30

The documents are small copies of examples/invoice.png, some of them cut off; nano reads a field of each. A
third of the kills (SIGKILL) comes while the model is loaded, the others soon after a new record. After each,
all lines but the last must be whole records. The run that is left alone then reads the rest, names each
broken file, and ends with exit code 1 and their count, or with 0 under --skip-errors. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

_INVOICE = Path(__file__).parents[1] / "examples" / "invoice.png"
_SIZE = (200, 260)
_LONGEST_WAIT = 60.0


def main() -> None:
    """Run, check and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--broken", type=int, default=50)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch, "documents"), Path(scratch, "out.jsonl")
        broken = write_documents(folder, options.documents, options.broken)
        fields = ("--ask", "each", "--fields", 'date "What is the date?"')
        command = [sys.executable, "-m", "ernie_cli.main", "extract", str(folder), *fields]
        command += ["--out", str(out), "--threads", "1", "--parallel", "2"]
        counts = [kill_once(command, out, moments, soon=number % 3 == 0) for number in range(options.kills)]
        assert counts == sorted(counts), counts
        last = subprocess.run(command, check=False, capture_output=True, text=True)
        records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        files = [record["file"] for record in records]
        errors = {record["file"] for record in records if record["error"] is not None}
        assert sorted(files) == sorted(path.name for path in folder.iterdir()), "not each document once"
        assert errors == broken
        assert f"{len(broken)} of {options.documents} documents have no fields" in last.stderr
        again = subprocess.run([*command, "--skip-errors"], check=False, capture_output=True, text=True)
        assert (last.returncode, again.returncode) == (1 if broken else 0, 0)
    print(f"lines after each kill: {', '.join(map(str, counts))}")
    print(json.dumps({"documents": len(files), "errors": len(errors), "kills": options.kills,
                      "exit_codes": [last.returncode, again.returncode],
                      "seconds": round(time.perf_counter() - began)}))  # fmt: skip


def write_documents(folder: Path, count: int, num_broken: int) -> set[str]:
    """Write the images; returns the names of those that are cut off."""
    folder.mkdir()
    image = Image.open(_INVOICE).convert("RGB").resize(_SIZE)
    broken = {f"{number * count // num_broken}.png" for number in range(num_broken)}
    for number in range(count):
        path = folder / f"{number}.png"
        image.save(path)
        if path.name in broken:
            path.write_bytes(path.read_bytes()[: 10 + number])
    return broken


def kill_once(command: list[str], out: Path, moments: random.Random, *, soon: bool) -> int:
    """Start and kill; returns the number of whole lines. soon: without waiting for a record."""
    size = out.stat().st_size if out.exists() else 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started = time.monotonic()
    if not soon:
        while (out.stat().st_size if out.exists() else 0) <= size:
            if process.poll() is not None or time.monotonic() - started > _LONGEST_WAIT:
                break
            time.sleep(0.005)
    time.sleep(moments.uniform(0, 4 if soon else 1.5))
    process.kill()
    process.wait()
    lines = out.read_bytes().splitlines(keepends=True) if out.exists() else []
    for line in lines[:-1]:
        json.loads(line)
        assert line.endswith(b"\n"), line
    return sum(line.endswith(b"\n") for line in lines)


if __name__ == "__main__":
    main()
