"""Whether a model's directory is whole: every file, tensor, page and number, each byte read once.

`finding` is what can be wrong, `stream` reads a file and hashes it on the way, `weights` looks at tensors,
`companions` at tokenizer and processor, `checkpoint` puts them in order.
"""

from __future__ import annotations

from ernie_local.verify.checkpoint import Verification, verify
from ernie_local.verify.finding import Finding

__all__ = ["Finding", "Verification", "verify"]
