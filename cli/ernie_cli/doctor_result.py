"""The object of `ernie-local doctor --json`, with the facts of each check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, Literal

from ernie_cli.json_object import fill_result

if TYPE_CHECKING:
    from ernie_local.doctor import Diagnosis

CheckVerdict = Literal["ok", "slow", "fails"]


@dataclass
class CheckObject:
    """One check. Look it up by its name, not by its place."""

    name: str
    """Which check."""
    verdict: CheckVerdict
    """`slow`: it works here, but could be faster or has little room."""
    text: str
    """The line for people. Its words may change."""
    fix: str | None
    """What to do, for people; null exactly when the verdict is `ok`. Its words may change."""
    facts: dict[str, object]
    """What the check saw, below. Every key is always there; what is not known is null, or an empty list."""


@dataclass
class DoctorResult:
    """One object, whatever the end of the run. The lines for people go to stderr.

    `ok` is true when no check fails: the exit code is 0, or 1 where something is slow; `error` has exit code
    3 (`does_not_fit`) where a check fails.

    `--bundle FILE` writes a zip of `doctor.json` (this object), `packages.json` (versions of what ernie-local
    depends on), `platform.json` and `machine.json` (the profile, or null). Paths, the names of user, machine,
    model and of programs on the GPU are replaced by `<private>`; the environment and serial numbers are not
    read.
    """

    verdict: CheckVerdict | None = None
    """The worst of all checks; null when nothing was checked."""
    checks: list[CheckObject] = field(default_factory=list)
    """In the order in which they ran. `checkpoint` only with MODEL; without PyTorch only the first three."""

    def update(self, findings: Sequence[Diagnosis]) -> None:
        """Fill in the findings so far."""
        from ernie_local.doctor import worst_verdict

        self.verdict = worst_verdict(findings)
        self.checks = [fill_result(CheckObject, one) for one in findings]


def _object(title: str, text: str, /, **keys: Any) -> Any:
    """A dataclass of these keys, each with its type, or with its type and what it means."""
    pairs = {key: value if isinstance(value, tuple) else (value, "") for key, value in keys.items()}
    columns = [(key, hint, field(metadata={"text": meaning})) for key, (hint, meaning) in pairs.items()]
    return make_dataclass(title, columns, namespace={"__doc__": text})


def _list_of(kind: Any) -> Any:
    return list[kind]


_Build = _object(
    "BuildObject",
    "All null without it.",
    version=str | None,
    build_type=str | None,
    compiler=str | None,
    nanobind=str | None,
    python=str | None,
)
_InstructionSet = _object(
    "InstructionSetObject",
    "",
    name=str,
    is_built=(bool, "Whether its kernels are in the module."),
    lacking=(list[str], "Features that the processor or its operating system does not offer."),
)
_Difference = _object("DifferenceObject", "", instruction_set=str, largest_difference=float | None)
_CudaDevice = _object("CudaDeviceObject", "", name=str, total_bytes=int)
_Process = _object("ProcessObject", "", name=str, bytes=int | None)
_Gpu = _object(
    "GpuObject",
    "",
    name=str,
    compute_capability=str | None,
    last_pytorch=(str | None, "The last version that is built for it; null if newer ones are."),
    total_bytes=int | None,
    free_bytes=int | None,
    processes=(_list_of(_Process), "Programs that hold some of its memory."),
)

# Name of a check to its facts.
FACTS: Mapping[str, Any] = {
    "python": _object(
        "PythonFacts",
        "Python and PyTorch.",
        python=(str, "Version."),
        torch=(str | None, "Version; null where it cannot be imported."),
        threads=(int | None, "Threads that PyTorch and the kernels compute with."),
        usable_cpus=(int | None, "CPUs that this process may run on."),
        cpu_quota=(float | None, "CPUs whose time a container may have; null without a limit."),
        performance_cores=(int | None, "Cores of the faster kind that it may use; null where all are alike."),
    ),
    "memory": _object(
        "MemoryFacts",
        "RAM.",
        free_bytes=(int | None, "Without swapping. All null where the system does not tell."),
        total_bytes=int | None,
        is_limited=(bool | None, "Whether a container allows less than the machine has free."),
        swap_total_bytes=int | None,
        swap_used_bytes=int | None,
    ),
    "kernels": _object(
        "KernelsFacts",
        "The compiled module.",
        present=bool,
        reason=(str | None, "Why it is not there."),
        build=(_Build, "How it was built."),
    ),
    "cpu": _object(
        "CpuFacts",
        "Instruction sets.",
        in_use=(str | None, "The one that the kernels use; null without them."),
        is_forced=(bool, "By ERNIE_LOCAL_ISA."),
        available=(list[str], "Those that can run here, fastest first."),
        unavailable=(_list_of(_InstructionSet), "The others."),
        features=(list[str], "What the processor offers."),
    ),
    "self-test": _object(
        "SelfTestFacts",
        "Small products of every available instruction set against plain PyTorch.",
        limit=(float, "Relative to the size of the output."),
        largest_difference=(float | None, "Null without kernels, or where one gave no number."),
        differences=(_list_of(_Difference), "The same for each instruction set."),
    ),
    "cuda": _object(
        "CudaFacts",
        "What PyTorch says.",
        built_for=(str | None, "Version of CUDA."),
        driver=(str | None, "Version of the driver."),
        is_available=bool,
        devices=_list_of(_CudaDevice),
    ),
    "gpu": _object("GpuFacts", "What the driver says; what it does not tell is null.", gpus=_list_of(_Gpu)),
    "triton": _object(
        "TritonFacts",
        "Triton.",
        version=(str | None, "That is installed; null for none."),
        fallback=(str | None, "`torch` where there is a GPU on which its kernels cannot run."),
    ),
    "nf4": _object(
        "Nf4Facts",
        "bitsandbytes.",
        bitsandbytes=(str | None, "The version that is installed; null for none."),
        fallback=(
            str | None,
            "`torch` where there is a GPU and plain PyTorch would unpack nf4 experts on it.",
        ),
    ),
    "link": _object(
        "LinkFacts",
        "PCI Express of the first GPU; all null without one.",
        generation=(int | None, "That GPU and slot can do."),
        width=(int | None, "Lanes in use."),
        width_most=(int | None, "Lanes at most."),
        bytes_per_second=(float | None, "As `ernie-local bench` measured."),
    ),
    "pinned": _object(
        "PinnedFacts",
        "Page-locked memory.",
        limit_bytes=(int | None, "Of this process; null for none."),
        quota_bytes=(
            int | None,
            "With CUDA what the driver locked of 4 GiB, or of a fourth of the free memory if that is less.",
        ),
    ),
    "system": _object(
        "SystemFacts",
        "The operating system.",
        platform=(str, "As Python names it."),
        is_wsl=bool,
        driver_model=(str | None, "Of a GPU on Windows: `WDDM` or `TCC`."),
        spills=(bool, "Whether a full GPU silently continues in RAM."),
    ),
    "battery": _object(
        "BatteryFacts",
        "The battery; null where it is not known.",
        present=bool | None,
        power_plugged=bool | None,
    ),
    "checkpoint": _object(
        "CheckpointFacts",
        "With MODEL: its files.",
        complete=(bool, "Judged by config, headers, sizes and tokenizer."),
        bytes=(int | None, "Of its weight files."),
        tensors=int | None,
        files=int | None,
    ),
    "disk": _object(
        "DiskFacts",
        "The disk, read in pages of experts.",
        of_model=(bool, "Whether the model's largest file was read, else a temporary file of 48 MiB."),
        kind=Literal["solid", "rotating", "network", "memory", "unknown"],
        file_system=str | None,
        free_bytes=int | None,
        page_bytes=(int, "Of a page that was read."),
        bytes_per_second=float | None,
        is_direct=(bool | None, "Whether the reads went past the system's cache."),
    ),
    "profile": _object(
        "ProfileFacts",
        "What `ernie-local bench` stored.",
        present=bool,
        date=str | None,
        difference=(str | None, "Between its hardware and this machine's; null where it can be used."),
    ),
}
