"""Names an adapter to be read: a directory, and a factor for all that it adds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ernie_local.config import ModelConfig
from ernie_local.errors import UsageError, parameter

if TYPE_CHECKING:
    from ernie_local.adapters.low_rank import Adapter


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A directory as PEFT, PaddleFormers or ERNIEKit writes it, and the scale that it is asked for with."""

    directory: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, given: str | os.PathLike[str]) -> AdapterSource:
        """From DIR or DIR:SCALE. A directory whose own name ends like that is taken as it is.

        UsageError for a scale that is 0 or no finite number.
        """
        text = os.fspath(given)
        directory, colon, after = text.rpartition(":")
        if not colon or Path(text).is_dir():
            return cls(Path(text))
        try:
            scale = float(after)
        except ValueError:
            return cls(Path(text))
        if not math.isfinite(scale) or scale == 0 or not directory:
            raise UsageError(
                f"{parameter('lora', text)} asks for an adapter times {after}",
                "what it adds is multiplied by a finite number other than 0",
                parameter("lora", f"{directory or 'DIR'}:0.5"),
            )
        return cls(Path(directory), scale)

    def read(self, config: ModelConfig) -> Adapter:
        """The adapter for the model of `config`; ModelUnusable as from `read_adapter`."""
        from ernie_local.adapters.reader import read_adapter

        return read_adapter(self.directory, config, self.scale)

    def stamp(self) -> str:
        """What tells this adapter from another, and from itself after a change, without reading its weights.

        Files that are not there say nothing; `read` refuses what cannot be used.
        """
        files = sorted(path for path in self.directory.glob("*") if path.is_file())
        stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return f"{self.directory.resolve()} {self.scale} {stamps}"

    def describe(self) -> str:
        """For people."""
        return f"adapter {self.directory}" + ("" if self.scale == 1 else f" times {self.scale:g}")
