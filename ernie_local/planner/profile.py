"""What was measured on a machine, and the hardware that it belongs to.

Knows neither who measures nor how a profile is stored (profile_file.py). No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ernie_local.planner.rates import Rates
from ernie_local.sizes import GIB


@dataclass(frozen=True, slots=True)
class HardwareKey:
    """What a measurement is tied to. GPU: None without one."""

    cpu: str
    cores: int
    ram_bytes: int
    gpu: str | None

    def difference(self, other: HardwareKey) -> str | None:
        """What `other` has differently, for people; None if they are alike. Memory counts in whole GiB."""
        pairs = (
            ("processor", self.cpu, other.cpu),
            ("cores", self.cores, other.cores),
            ("GiB of memory", round(self.ram_bytes / GIB), round(other.ram_bytes / GIB)),
            ("gpu", self.gpu or "none", other.gpu or "none"),
        )
        named = [f"{name} {mine}, here {theirs}" for name, mine, theirs in pairs if mine != theirs]
        return "; ".join(named) or None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A number measured several times: its median and the extremes."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True, slots=True)
class ModelSpeed:
    """How fast one model ran, and what the rates of the same profile predict.

    Tokens a second. weight_bytes: of all weights in their formats. expert_memory_bytes: memory for experts
    where they were paged, with the share of them that decode found there; None where all were resident.
    """

    name: str
    weight_bytes: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    predicted_decode_tokens_per_second: float
    expert_memory_bytes: int | None
    hit_rate: float | None


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """One machine, measured once. date: as in 2026-11-27, UTC.

    rates: of packed weights; plain_rates: of float32 and bfloat16 ones, which PyTorch computes, and whose
    experts cost a few calls each. measurements: by name, with what the rates were taken from and more.
    miss_rules: tokens a second by the rule for experts that a GPU lacks, empty if not tried.
    """

    hardware: HardwareKey
    date: str
    rates: Rates
    plain_rates: Rates
    measurements: Mapping[str, Measurement]
    model: ModelSpeed | None = None
    miss_rules: Mapping[str, float] = field(default_factory=dict)

    @property
    def best_miss_rule(self) -> str | None:
        """The rule under which most tokens were decoded; None where none was tried."""
        return max(self.miss_rules, key=self.miss_rules.__getitem__, default=None)

    @property
    def summary(self) -> str:
        """One line for people."""
        rates = self.rates
        text = (
            f"measured {self.date}: disk {rates.disk_bytes_per_second / 1e9:.2f} GB/s, "
            f"packed weights {rates.memory_bytes_per_second / 1e9:.1f} GB/s, "
            f"prompts {rates.operations_per_second / 1e9:.0f} G operations/s"
        )
        if rates.gpu is not None:
            gpu = rates.gpu
            text += (
                f", {self.hardware.gpu} {gpu.memory_bytes_per_second / 1e9:.0f} GB/s "
                f"behind {gpu.link_bytes_per_second / 1e9:.1f} GB/s"
            )
        return text

    def rates_for(self, *, is_packed: bool) -> Rates:
        """Of a model whose weights are packed, or plain."""
        return self.rates if is_packed else self.plain_rates
