"""Makes small videos whose frames tell their number by their gray, for tests."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

GRAY_STEP = 7  # of frame i is (i * GRAY_STEP) % 200 + 20


def gray_of(index: int) -> int:
    return index * GRAY_STEP % 200 + 20


def write_video(
    path: Path,
    num_frames: int = 24,
    fps: int | Fraction = 10,
    size: tuple[int, int] = (64, 48),
    *,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    gop: int = 12,
) -> Path:
    """times: of each frame in 1 / 1000 s, instead of even ones."""
    with av.open(path, "w") as container:
        options = {"preset": "ultrafast", "bf": "2"} if codec == "libx264" else {}
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.bit_rate = 4_000_000
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(num_frames):
            pixels = np.full((size[1], size[0], 3), gray_of(index), dtype=np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.time_base, frame.pts = Fraction(1, 1000), times[index]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def spoil_video(path: Path, numbers: Collection[int]) -> Path:
    """Destroy the packets of these numbers, in the order of the file."""
    with av.open(path) as container:
        packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
        places = [(packet.pos, packet.size) for number, packet in enumerate(packets) if number in numbers]
    data = bytearray(path.read_bytes())
    for start, size in places:
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    return path


def turn_video(path: Path, quarter_turns_right: int) -> None:
    """Set the rotation in the header of an MP4, as phones do."""
    data = bytearray(path.read_bytes())
    a, b, c, d = {0: (1, 0, 0, 1), 1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarter_turns_right]
    place = data.index(b"tkhd") + 4 + 40
    fixed = 1 << 16
    data[place : place + 36] = struct.pack(
        ">9i", a * fixed, b * fixed, 0, c * fixed, d * fixed, 0, 0, 0, 1 << 30
    )
    path.write_bytes(data)


def write_audio(path: Path) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono"
        )
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return path


def write_animation(path: Path, milliseconds: Sequence[int], size: tuple[int, int] = (60, 40)) -> Path:
    frames = [Image.new("RGB", size, (gray_of(index),) * 3) for index in range(len(milliseconds))]
    extra: dict[str, Any] = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(
        path, save_all=True, append_images=frames[1:], duration=list(milliseconds), loop=0, **extra
    )
    return path
