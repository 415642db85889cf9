"""Converts sizes as people write them ("6GiB", "512MiB", "32k") to integers, and bytes back to text.

GiB is 2^30 everywhere in this project. The word "auto" is the caller's to understand.
"""

from __future__ import annotations

import re

from ernie_local.errors import UsageError, parameter

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40
HUGE_PAGE = 2 * MIB  # what the system gives memory in where weights or states are streamed

# A bare letter or a decimal-looking "GB" means the binary unit too: memory is sold and reported that
# way, and two meanings five percent apart would make a hard limit a guess.
_BYTE_UNITS = {
    "": 1,
    "b": 1,
    **dict.fromkeys(("k", "kb", "kib"), KIB),
    **dict.fromkeys(("m", "mb", "mib"), MIB),
    **dict.fromkeys(("g", "gb", "gib"), GIB),
    **dict.fromkeys(("t", "tb", "tib"), TIB),
}
_COUNT_UNITS = {"": 1, "k": KIB, "m": MIB}
_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([a-z]*)", re.ASCII)
# Past any machine, and small enough that every sum of sizes stays exact in 64 bits.
_LARGEST = 1 << 60


def parse_bytes(text: str, name: str = "size") -> int:
    """Bytes of "6GiB", "512MiB", "1.5g" or "1048576"; `name` is the argument that the UsageError names."""
    return _parse(text, name, _BYTE_UNITS, "6GiB, 512MiB or a plain number of bytes")


def parse_count(text: str, name: str = "count") -> int:
    """A count such as "32k" (32768), "1m" or "4096"; `name` is the argument that the UsageError names."""
    return _parse(text, name, _COUNT_UNITS, "32k or 32768")


def format_bytes(num_bytes: int) -> str:
    """Text for people: "5.93 GiB", "12.0 MiB", "812 bytes"; the next smaller unit below one."""
    if abs(num_bytes) >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    if abs(num_bytes) >= MIB:
        return f"{num_bytes / MIB:.1f} MiB"
    if abs(num_bytes) >= KIB:
        return f"{num_bytes / KIB:.1f} KiB"
    return f"{num_bytes} bytes"


def _parse(text: str, name: str, units: dict[str, int], examples: str) -> int:
    match = _SIZE.fullmatch(text.strip().lower())
    shown = ascii(text[:40])
    if match is None or match.group(2) not in units:
        raise UsageError(
            f"{parameter(name)} {shown} is not a size",
            f"a size is a number and one of the units {', '.join(unit for unit in units if unit)}",
            f"write it as {examples}",
        )
    number, unit = match.groups()
    # Integers keep every digit; a float is needed only for "1.5g".
    value = int(float(number) * units[unit]) if "." in number else int(number) * units[unit]
    if not 0 < value <= _LARGEST:
        raise UsageError(
            f"{parameter(name)} {shown} is {value}, outside of 1 to {_LARGEST}",
            "a size must be above zero and within what a machine can have",
            f"write it as {examples}",
        )
    return value
