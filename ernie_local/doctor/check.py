"""Defines what a check of the doctor may look at, and what it tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ernie_local.errors import InputUnreadable, ModelUnusable
from ernie_local.machine.hardware import GpuStatus, compare_profile, installed_gpus
from ernie_local.planner.control_groups import SYSTEM_ROOT

if TYPE_CHECKING:
    from ernie_local.planner.profile import MachineProfile

Verdict = Literal["ok", "slow", "fails"]
_BY_WEIGHT: tuple[Verdict, ...] = ("ok", "slow", "fails")
Facts = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One line for people with its verdict, one line on what to do unless that is "ok", facts for programs.

    name: of the check, empty until `examine` sets it. The keys of `facts` are those of docs/json.md, always
    all of them. Line breaks become blanks.
    """

    name: str
    verdict: Verdict
    text: str
    fix: str | None
    facts: Facts

    def __post_init__(self) -> None:
        assert (self.fix is None) == (self.verdict == "ok"), "a fix is for what is not ok"
        object.__setattr__(self, "text", " ".join(self.text.split()))
        if self.fix is not None:
            object.__setattr__(self, "fix", " ".join(self.fix.split()))

    @staticmethod
    def ok(text: str, facts: Facts) -> Diagnosis:
        """All is well."""
        return Diagnosis("", "ok", text, None, facts)

    @staticmethod
    def slow(text: str, fix: str, facts: Facts) -> Diagnosis:
        """It runs here, but could run faster or has little room."""
        return Diagnosis("", "slow", text, fix, facts)

    @staticmethod
    def fails(text: str, fix: str, facts: Facts) -> Diagnosis:
        """It cannot run here, or not correctly."""
        return Diagnosis("", "fails", text, fix, facts)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Weight files of a whole checkpoint, with the tensors and bytes in them."""

    paths: list[Path]
    num_tensors: int
    num_bytes: int


@dataclass
class Subject:
    """What the checks of one run look at; what several of them need is looked up once, when it is needed.

    model: whose files are checked, None for none. temporary_folder: on the disk that is timed without one.
    profile_path: where `bench` stores what it measured. isa_setting: what a user sets to force an instruction
    set; isa_is_forced: whether it is set. system_root: the folder that holds proc and sys.
    """

    model: str | None
    temporary_folder: Path
    profile_path: Path
    isa_setting: str = ""
    isa_is_forced: bool = False
    system_root: Path = SYSTEM_ROOT

    @cached_property
    def gpus(self) -> tuple[GpuStatus, ...] | None:
        """GPUs that the NVIDIA driver names; None where no driver answers."""
        return installed_gpus()

    @cached_property
    def stored_profile(self) -> tuple[MachineProfile | None, str | None] | InputUnreadable:
        """The stored profile and how its hardware differs from this; or why it cannot be read."""
        try:
            return compare_profile(self.profile_path)
        except InputUnreadable as error:
            return error

    @property
    def own_profile(self) -> MachineProfile | None:
        """The stored profile if it is of this machine."""
        if isinstance(self.stored_profile, InputUnreadable):
            return None
        profile, difference = self.stored_profile
        return profile if difference is None else None

    @cached_property
    def model_files(self) -> WeightFiles | ModelUnusable | None:
        """Files of the model by its headers, or what is wrong with them; None where none is looked for."""
        if self.model is None or self.model.startswith("hf:"):
            return None
        from ernie_local.checkpoint.hub import resolve_model
        from ernie_local.checkpoint.reader import open_checkpoint
        from ernie_local.config import read_config
        from ernie_local.text.tokenizer import ErnieTokenizer

        try:
            directory = resolve_model(self.model)
            config = read_config(directory)
            with open_checkpoint(directory, config) as checkpoint:
                sources = checkpoint.accounts.sources.values()
                stored = [part for source in sources for part in source.stored_parts]
                stored += checkpoint.packed.values()
                num_bytes = checkpoint.total_bytes
            ErnieTokenizer.from_directory(directory)
        except ModelUnusable as error:
            return error
        return WeightFiles(sorted({one.path for one in stored}), len(stored), num_bytes)


def worst_verdict(diagnoses: Iterable[Diagnosis]) -> Verdict:
    """The verdict that outweighs the others; "ok" where nothing was checked."""
    return max((one.verdict for one in diagnoses), key=_BY_WEIGHT.index, default="ok")
