"""Checks that a model's directory is whole: every file, tensor, page and number, each byte read once.

`checkpoint` goes through the directory, `weights` through one weight file, `templates` compares the chat
template, `finding` collects the faults.
"""

from __future__ import annotations

from ernie_local.verify.checkpoint import Verification, verify
from ernie_local.verify.finding import Finding

__all__ = ["Finding", "Verification", "verify"]
