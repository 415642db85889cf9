"""Holds what was measured on a machine, and reads and writes the file that keeps it: JSON with every key."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ernie_local.errors import ErnieLocalError, InputUnreadable, ModelUnusable
from ernie_local.files import read_plain, written_whole
from ernie_local.planner.rates import Rate, Rates, Seconds
from ernie_local.sizes import GIB
from ernie_local.strict_json import parse_json_object, show

PROFILE_SCHEMA = "ernie-local.machine/1"
# Names of rates with all cores and with performance cores alone, of a token and of a prompt.
EFFICIENCY_CORE_MEASUREMENTS = (
    ("all_cores_token_bytes_per_second", "performance_cores_token_bytes_per_second"),
    ("all_cores_prompt_operations_per_second", "performance_cores_prompt_operations_per_second"),
)
_LARGEST_FILE = 1 << 20
# Names are shown in a terminal, so they hold no control characters and no marks that turn text around.
_UNPRINTABLE = r"\x00-\x1f\x7f-\xa0\xad\u061c\u200b-\u200f\u2028-\u202f\u205f-\u206f\ufeff\ud800-\uf8ff"
Line = Annotated[str, Meta(min_length=1, max_length=200, pattern=f"^[^{_UNPRINTABLE}]*$")]
Count = Annotated[int, Meta(ge=0, le=1 << 60)]


@dataclass(frozen=True, slots=True)
class HardwareKey:
    """What a measurement is tied to. gpu: None without one."""

    cpu: Line
    cores: Count
    ram_bytes: Count
    gpu: Line | None

    def difference(self, other: HardwareKey) -> str | None:
        """What is different on `other`, for people; None if they are alike. Memory counts in whole GiB."""
        pairs = (
            ("processor", self.cpu, other.cpu),
            ("cores", self.cores, other.cores),
            ("GiB of memory", round(self.ram_bytes / GIB), round(other.ram_bytes / GIB)),
            ("GPU", self.gpu or "none", other.gpu or "none"),
        )
        named = [f"{name} {mine}, here {theirs}" for name, mine, theirs in pairs if mine != theirs]
        return "; ".join(named) or None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number measured several times: its median and the extremes."""

    median: Seconds
    low: Seconds
    high: Seconds
    rounds: Count

    @staticmethod
    def of(values: Sequence[float]) -> Measurement:
        """Of at least one value."""
        return Measurement(statistics.median(values), min(values), max(values), len(values))


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """How fast one model ran, and what the rates of the same profile predict.

    Tokens a second. weight_bytes: of all weights in their formats. expert_memory_bytes: memory for experts
    where they were paged, with the share of them that decode found there; None where all were resident.
    """

    name: Line
    weight_bytes: Count
    prefill_tokens_per_second: Rate
    decode_tokens_per_second: Rate
    predicted_decode_tokens_per_second: Rate
    expert_memory_bytes: Count | None
    hit_rate: Seconds | None


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """One machine, measured once. date: as in 2026-11-27, UTC.

    rates: of packed weights; plain_rates: of float32 and bfloat16 ones, which PyTorch computes, and whose
    experts cost a few calls each. measurements: by name, with what the rates were taken from and more.
    miss_rules: tokens a second by the rule for experts that a GPU lacks, empty if not tried.
    """

    hardware: HardwareKey
    date: Line
    rates: Rates
    plain_rates: Rates
    measurements: Mapping[Line, Measurement]
    model: ModelSpeed | None = None
    miss_rules: Mapping[Line, Seconds] = field(default_factory=dict)

    @property
    def best_miss_rule(self) -> str | None:
        """The rule under which most tokens were decoded; None where none was tried."""
        return max(self.miss_rules, key=self.miss_rules.__getitem__, default=None)

    @property
    def efficiency_cores(self) -> bool | None:
        """Whether they made computing faster; None where that was not measured."""
        return efficiency_cores_help(self.measurements)

    @property
    def summary(self) -> str:
        """One line for people."""
        rates, gpu = self.rates, self.rates.gpu
        text = (
            f"measured {self.date}: disk {rates.disk_bytes_per_second / 1e9:.2f} GB/s, "
            f"packed weights {rates.memory_bytes_per_second / 1e9:.1f} GB/s, "
            f"prompts {rates.operations_per_second / 1e9:.0f} G operations/s"
        )
        if gpu is None:
            return text
        memory, link = gpu.memory_bytes_per_second / 1e9, gpu.link_bytes_per_second / 1e9
        return f"{text}, {self.hardware.gpu} {memory:.0f} GB/s behind {link:.1f} GB/s"

    def rates_for(self, *, is_packed: bool) -> Rates:
        """Of a model whose weights are packed, or plain."""
        return self.rates if is_packed else self.plain_rates


def efficiency_cores_help(measurements: Mapping[str, Measurement]) -> bool | None:
    """Whether token and prompt, taken together, were faster with them; None where that was not measured."""
    gain = 1.0
    for with_all, without in EFFICIENCY_CORE_MEASUREMENTS:
        if with_all not in measurements or without not in measurements:
            return None
        gain *= measurements[with_all].median / measurements[without].median
    return gain > 1.0


def write_profile(path: Path, profile: MachineProfile) -> None:
    """Write the file, whole or not at all, and its folder; ErnieLocalError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ErnieLocalError(
            f"cannot make the folder {path.parent} for the profile of this machine",
            error.strerror or str(error),
            "run `ernie-local bench --no-save`, or make the folder",
        ) from error
    text = json.dumps(profile_to_json(profile), indent=1, allow_nan=False) + "\n"
    with written_whole(path, "the machine's profile") as file:
        file.write(text.encode())


def profile_to_json(profile: MachineProfile) -> dict[str, object]:
    """The object that the file holds."""
    return {"schema": PROFILE_SCHEMA, **dataclasses.asdict(profile)}


def read_profile(path: Path) -> MachineProfile | None:
    """What was stored; None if there is no such file. InputUnreadable for a file that is no such profile."""
    try:
        fields = parse_json_object(read_plain(path, _LARGEST_FILE), path.name)
        schema = fields.pop("schema", None)
        if schema != PROFILE_SCHEMA:
            raise _unusable(path, f"schema is {show(schema)}, not {PROFILE_SCHEMA}")
        profile = msgspec.convert(fields, MachineProfile)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    except ModelUnusable as error:
        raise _unusable(path, error.why) from error
    except msgspec.ValidationError as error:
        raise _unusable(path, str(error)) from error
    stray = _stray_key(fields, dataclasses.asdict(profile), "$")
    if stray is not None:
        raise _unusable(path, stray)
    return profile


def _stray_key(found: Mapping[str, Any], known: Mapping[str, Any], where: str) -> str | None:
    """The first key that only one of two objects has: a profile is read with all its keys, and no others."""
    for name in found.keys() ^ known.keys():
        fault = f"missing key `{name}`" if name in known else f"unknown key {show(name)}"
        return f"{fault} - at `{where}`"
    for name, value in known.items():
        if isinstance(value, dict) and (stray := _stray_key(found[name], value, f"{where}.{name}")):
            return stray
    return None


def _unusable(path: Path, reason: str) -> InputUnreadable:
    return InputUnreadable(
        f"{path} is no profile of a machine that this version can read",
        reason,
        "run `ernie-local bench`, which writes a new one",
    )
