"""What the driver's own tool, nvidia-smi, tells of GPUs, and of who holds their memory. No torch.

Owns the queries and the reading of their answers: every value may be `[N/A]`, `[Not Supported]` or an error
in brackets, and is None then. Fields are named as `nvidia-smi --help-query-gpu` names them.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ernie_local.sizes import MIB

_GPU_FIELDS = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "compute_cap",
    "memory.total",
    "memory.free",
    "pcie.link.gen.max",
    "pcie.link.width.max",
    "pcie.link.width.current",
    "driver_model.current",
)
_PROCESS_FIELDS = ("gpu_uuid", "process_name", "used_memory")
_SECONDS = 10


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A program with memory of a GPU; name: without its folder, bytes: None where the driver keeps it."""

    name: str
    bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU. link_generation: the most that GPU and slot can do; a GPU at rest runs at less.

    link_width: lanes in use now; link_width_most: that GPU and slot could use. driver_model: WDDM or TCC on
    Windows, None elsewhere. Everything but the name may be unknown.
    """

    index: int | None
    name: str
    driver_version: str | None
    compute_capability: tuple[int, int] | None
    total_bytes: int | None
    free_bytes: int | None
    link_generation: int | None
    link_width: int | None
    link_width_most: int | None
    driver_model: str | None
    processes: tuple[GpuProcess, ...]


def read_gpus() -> tuple[GpuReport, ...] | None:
    """All GPUs of the driver; None where there is no nvidia-smi, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    gpus = _ask(program, "--query-gpu", _GPU_FIELDS)
    processes = _ask(program, "--query-compute-apps", _PROCESS_FIELDS)
    return None if gpus is None else parse_gpus(gpus, processes or "")


def parse_gpus(gpus: str, processes: str) -> tuple[GpuReport, ...]:
    """The answers to both queries, in CSV without header and units; lines of another form are left out."""
    by_gpu: dict[str, list[GpuProcess]] = {}
    for row in _rows(processes, len(_PROCESS_FIELDS)):
        name = row[1].replace("\\", "/").rpartition("/")[2]
        by_gpu.setdefault(row[0], []).append(GpuProcess(name or "unknown", _mib(row[2])))
    return tuple(
        GpuReport(
            index=_whole(row[0]),
            name=row[2],
            driver_version=_text(row[3]),
            compute_capability=_capability(row[4]),
            total_bytes=_mib(row[5]),
            free_bytes=_mib(row[6]),
            link_generation=_whole(row[7]),
            link_width_most=_whole(row[8]),
            link_width=_whole(row[9]),
            driver_model=_text(row[10]),
            processes=tuple(by_gpu.get(row[1], ())),
        )
        for row in _rows(gpus, len(_GPU_FIELDS))
    )


def _ask(program: str, query: str, fields: Sequence[str]) -> str | None:
    command = [program, f"{query}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def _rows(text: str, width: int) -> list[list[str]]:
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return [[value.strip() for value in row] for row in rows if len(row) == width]


def _text(value: str) -> str | None:
    return None if not value or value.startswith("[") or value == "N/A" else value


def _whole(value: str) -> int | None:
    return int(value) if value.isascii() and value.isdigit() and len(value) < 16 else None


def _mib(value: str) -> int | None:
    whole = _whole(value)
    return None if whole is None else whole * MIB


def _capability(value: str) -> tuple[int, int] | None:
    major, point, minor = value.partition(".")
    whole = _whole(major), _whole(minor)
    return None if not point or whole[0] is None or whole[1] is None else (whole[0], whole[1])
