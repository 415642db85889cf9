"""What `main` and the command it runs share: where the JSON object of this run is put together.

A command fills `json_object` as it learns things; `main` alone prints it, once, whatever the end was.
Knows nothing of any one command's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Invocation:
    """One run of the command line.

    `wants_json` and `debug` are looked up in the raw arguments, since a wrong option must be reported
    in the right form before the options are parsed.
    """

    wants_json: bool = False
    debug: bool = False
    command: str | None = None
    json_object: dict[str, object] | None = None

    @classmethod
    def from_arguments(cls, arguments: Sequence[str]) -> Invocation:
        """The flags and the command name in `arguments` (without the program's name)."""
        words = list(arguments)
        if "--" in words:
            words = words[: words.index("--")]
        command = next((word for word in words if not word.startswith("-")), None)
        return cls(wants_json="--json" in words, debug="--debug" in words, command=command)
