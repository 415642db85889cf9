"""The instruction sets that the CPU kernels are written for: which can run here, and the choice of one.

The compiled module owns the list and what each set needs (csrc/runtime.cpp). Knows no environment variable
and no option: whoever lets a user choose gives the name for the message. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.errors import DoesNotFit, UsageError
from ernie_local.kernels.native import native_absence, native_module


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """`lacking` are the features that it needs and that processor or operating system do not offer."""

    name: str
    is_built: bool
    lacking: tuple[str, ...]

    @property
    def is_available(self) -> bool:
        """Whether its kernels can run here."""
        return self.is_built and not self.lacking


def known_instruction_sets() -> tuple[InstructionSet, ...]:
    """Every set with kernels, those of other processors too, fastest first; none without the module."""
    module = native_module()
    if module is None:
        return ()
    present = set(module.cpu_features())
    return tuple(
        InstructionSet(name, is_built, tuple(feature for feature in features if feature not in present))
        for name, features, is_built in module.known_instruction_sets()
    )


def choose_instruction_set(name: str, option: str = "instruction set") -> None:
    """Let the kernels of this process use `name` from now on; `option` names the choice in errors.

    Raises UsageError for a name that means nothing, DoesNotFit for a set that cannot run here.
    """
    module = native_module()
    if module is None:
        absence = native_absence()
        assert absence is not None
        raise DoesNotFit(
            f"{option} {_shown(name)} chooses nothing: {absence.what}", absence.why, absence.hint
        )
    known = {each.name: each for each in known_instruction_sets()}
    available = [each.name for each in known.values() if each.is_available]
    hint = f"one of {', '.join(available)}; without {option} it is {available[0]}"
    if name not in known:
        raise UsageError(
            f"{option} {_shown(name)} is no instruction set, here are {', '.join(available)}",
            f"kernels are written for {', '.join(known)}",
            hint,
        )
    if name not in available:
        lacking = ", ".join(known[name].lacking)
        raise DoesNotFit(
            f"{option} {_shown(name)} cannot run on this machine, {', '.join(available)} can",
            f"the processor or its operating system lacks {lacking}"
            if known[name].is_built
            else "its kernels were not built: they are for another kind of processor or another compiler",
            hint,
        )
    module.use_instruction_set(name)


def _shown(name: str) -> str:
    return ascii(name[:40])
