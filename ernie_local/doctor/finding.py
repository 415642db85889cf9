"""The shape of what a check finds, and which verdict outweighs which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

# slow: it runs here, but could run faster or has little room; fails: it cannot run here, or not rightly.
Verdict = Literal["ok", "slow", "fails"]
_BY_WEIGHT: tuple[Verdict, ...] = ("ok", "slow", "fails")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line for people with its verdict, one line on what to do unless that is "ok", facts for programs.

    The keys of `facts` are those of docs/json.md, always all of them. Line breaks become blanks.
    """

    name: str
    verdict: Verdict
    text: str
    fix: str | None
    facts: Mapping[str, object]

    def __post_init__(self) -> None:
        assert (self.fix is None) == (self.verdict == "ok"), "a fix is for what is not ok"
        object.__setattr__(self, "text", " ".join(self.text.split()))
        if self.fix is not None:
            object.__setattr__(self, "fix", " ".join(self.fix.split()))


def worst_verdict(findings: Iterable[Finding]) -> Verdict:
    """The verdict that outweighs the others; "ok" where nothing was found."""
    return max((finding.verdict for finding in findings), key=_BY_WEIGHT.index, default="ok")
