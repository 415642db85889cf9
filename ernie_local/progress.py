"""How long work tells how far it is, and where it lets itself be stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ernie_local.errors import Interrupted

if TYPE_CHECKING:
    import torch

# Gets the name of the part that is worked on, how much of it is done, and all of it, in any measure.
OnProgress = Callable[[str, int, int], None]
StopQuestion = Callable[[], bool]  # asked often, between pieces of work: whether to stop
Pause = Callable[[], None]  # called between pieces of work, which end where it raises
OnEncoded = Callable[[int, "torch.Tensor"], None]  # gets the index of an image and its (tokens, hidden_size)


@dataclass(frozen=True, slots=True)
class Pauses:
    """What happens between pieces of work on a prompt."""

    should_stop: StopQuestion | None = None
    on_progress: OnProgress | None = None
    on_encoded: OnEncoded | None = None

    def reach(self, unit: str, num_done: int, num_all: int) -> None:
        """So many units of the prompt are done; Interrupted where a stop was asked for."""
        self.ask(unit, num_done, num_all)
        if self.on_progress is not None:
            self.on_progress(unit, num_done, num_all)

    def ask(self, unit: str, num_done: int, num_all: int) -> None:
        """As `reach`, where no more units are done than when it was called."""
        if self.should_stop is not None and self.should_stop():
            raise Interrupted(
                f"stopped after {num_done} of {num_all} {unit} of the prompt",
                "a stop was asked for",
                "ask again; the conversation is as it was before this prompt",
            )
