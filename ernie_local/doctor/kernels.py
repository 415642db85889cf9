"""The check of the compiled module: whether it is there, and how it was built."""

from __future__ import annotations

from ernie_local.doctor.finding import Finding
from ernie_local.kernels.native import native_absence, native_module

NAME = "kernels"
_BUILD_KEYS = ("version", "build_type", "compiler", "nanobind", "python")


def check() -> Finding:
    """Slow without the module, and where it was built without optimization."""
    module = native_module()
    if module is None:
        absence = native_absence()
        assert absence is not None
        facts = {"present": False, "reason": absence.why, "build": dict.fromkeys(_BUILD_KEYS)}
        return Finding(NAME, "slow", f"not there, PyTorch computes: {absence.why}", absence.hint, facts)
    build = module.build_info()
    facts = {"present": True, "reason": None, "build": {key: build[key] for key in _BUILD_KEYS}}
    text = (
        f"{build['version']} {build['build_type']} by {build['compiler']}, nanobind {build['nanobind']}, "
        f"Python {build['python']}"
    )
    if build["build_type"] == "Debug":
        return Finding(
            NAME, "slow", text, "build it as Release: `pip install --force-reinstall --no-deps .`", facts
        )
    return Finding(NAME, "ok", text, None, facts)
