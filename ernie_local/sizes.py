"""Converts sizes as people write them ("6GiB", "512MiB", "32k") to integers, and bytes back to text.

GiB is 2^30 everywhere in this project.
"""

from __future__ import annotations

import re

from ernie_local.errors import UsageError, parameter

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
HUGE_PAGE = 2 * MIB  # the unit of memory that is allocated for streamed weights and states
CACHE_LINE = 64

# "G" and "GB" mean the binary unit too, as memory is sold: two meanings would make a limit a guess.
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
_LARGEST = 1 << 60  # more than any machine has; sums of sizes still fit into 64 bits


def parse_bytes(text: str, name: str = "size", least: int = 1) -> int:
    """Bytes of "6GiB", "512MiB", "1.5g" or "1048576"; `name` is the argument that the UsageError names.

    Refuses a plain number below a MiB: it was meant in another unit. 0 is taken where `least` is 0.
    """
    value = _parse(text, name, _BYTE_UNITS, "6GiB, 512MiB or a plain number of bytes", least)
    plain = text.strip()
    if 0 < value < MIB and not plain[-1].isalpha():
        meant = f"{plain}{'GiB' if value < KIB else 'MiB'}"
        raise UsageError(
            f"{parameter(name, plain)} is {format_bytes(value)}, less than {format_bytes(MIB)}",
            "a number without a unit counts bytes",
            f"{parameter(name, meant)}? A limit that small takes its unit: {parameter(name, f'{plain}b')}",
        )
    return value


def parse_count(text: str, name: str = "count") -> int:
    """A count such as "32k" (32768), "1m" or "4096"; `name` is the argument that the UsageError names."""
    return _parse(text, name, _COUNT_UNITS, "32k or 32768", 1)


def aligned(num_bytes: int, unit: int = CACHE_LINE) -> int:
    """Rounded up to a multiple of `unit`."""
    return -(-num_bytes // unit) * unit


def format_bytes(num_bytes: int) -> str:
    """Text for people: "5.93 GiB", "12.0 MiB", "812 bytes"."""
    for unit, name, digits in ((GIB, "GiB", 2), (MIB, "MiB", 1), (KIB, "KiB", 1)):
        if abs(num_bytes) >= unit:
            return f"{num_bytes / unit:.{digits}f} {name}"
    return f"{num_bytes} bytes"


def _parse(text: str, name: str, units: dict[str, int], examples: str, least: int) -> int:
    match = _SIZE.fullmatch(text.strip().lower())
    shown = ascii(text[:40])
    if match is None or match.group(2) not in units:
        raise UsageError(
            f"{parameter(name)} {shown} is not a size",
            f"a size is a number and one of the units {', '.join(unit for unit in units if unit)}",
            f"write it as {examples}",
        )
    number, unit = match.groups()
    # A float only where there is a point, so that large integers stay exact.
    value = int(float(number) * units[unit]) if "." in number else int(number) * units[unit]
    if value < least:
        raise UsageError(
            f"{parameter(name)} {shown} is {value}, at least {least} is needed",
            "a limit of 0 leaves nothing to work with",
            f"omit {parameter(name)} for its default, or write it as {examples}",
        )
    if value > _LARGEST:
        raise UsageError(
            f"{parameter(name)} {shown} is {value}, outside of {least} to {_LARGEST}",
            "a size must be within what a machine can have",
            f"write it as {examples}",
        )
    return value
