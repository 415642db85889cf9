"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

# Gets the name of the part that is worked on, how much of it is done, and all of it, in any measure.
OnProgress = Callable[[str, int, int], None]
