"""How long a clip takes until its frames are ready, next to decoding it alone, and the memory of the reader.

    python benchmarks/video_reader.py [--seconds 60] [--size 1920x1080] [--fps 30] [--rounds 3] [--clip FILE]

Makes a clip with PyAV (or takes FILE), then in processes of their own decodes it alone, and reads it as
`chat --video` does. Prints wall and CPU seconds of the fastest round, and the most memory in use; the last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

_STEPS = ("nothing", "decode", "read")


def make_clip(path: Path, seconds: float, size: tuple[int, int], fps: int) -> None:
    """A moving pattern of squares with noise, as cameras give it."""
    width, height = size
    generator = np.random.default_rng(0)
    squares = generator.integers(0, 255, (height // 8 + 40, width // 8 + 400, 3), dtype=np.uint8)
    pattern = squares.repeat(8, 0).repeat(8, 1)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(round(seconds * fps)):
            top, left = index % 200, 3 * index % 2400
            pixels = np.ascontiguousarray(pattern[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def run_step(step: str, clip: Path) -> dict[str, float]:
    """Seconds and MiB of one step, in this process."""
    from ernie_local.media.open_video import open_video
    from ernie_local.media.processor_config import ImageProcessorConfig
    from ernie_local.media.video_config import read_video_processor

    wall, cpu = time.perf_counter(), time.process_time()
    if step == "decode":
        with av.open(clip) as container:
            container.streams.video[0].thread_type = "AUTO"
            for _ in container.decode(video=0):
                pass
    elif step == "read":
        open_video(clip, read_video_processor(Path(), ImageProcessorConfig()))
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure(clip: Path, rounds: int) -> dict[str, dict[str, float]]:
    """The best of some rounds for each step, each run in a new process, in turns."""
    results: dict[str, list[dict[str, float]]] = {step: [] for step in _STEPS}
    for _ in range(rounds):
        for step in _STEPS:
            command = [sys.executable, __file__, "--step", step, "--clip", str(clip)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[step].append(json.loads(done.stdout))
    return {
        step: {key: min(one[key] for one in several) for key in several[0]}
        for step, several in results.items()
    }


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--step", choices=_STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step is not None:
        print(json.dumps(run_step(options.step, options.clip)))
        return
    with tempfile.TemporaryDirectory() as folder:
        clip = options.clip or Path(folder) / "clip.mp4"
        if options.clip is None:
            width, height = map(int, options.size.split("x"))
            make_clip(clip, options.seconds, (width, height), options.fps)
        steps = measure(clip, options.rounds)
    print(f"{'':8} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}")
    for step, figures in steps.items():
        print(f"{step:8} {figures['wall_s']:8.2f} {figures['cpu_s']:8.2f} {figures['peak_mib']:9.0f}")
    ratios = {key: steps["read"][key] / steps["decode"][key] for key in ("wall_s", "cpu_s")}
    print(f"read / decode: {ratios['wall_s']:.2f} by the clock, {ratios['cpu_s']:.2f} of CPU time")
    print(json.dumps({"steps": steps, "ratios": ratios}))


if __name__ == "__main__":
    main()
