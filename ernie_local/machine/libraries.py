"""Says why a library cannot be loaded here: what the machine, a container or a limit keeps from it."""

from __future__ import annotations

from collections.abc import Iterator

from ernie_local.errors import DoesNotFit
from ernie_local.planner.free_memory import address_limit
from ernie_local.sizes import MIB, format_bytes

_OURS = ("__main__", "ernie_")
_NAMES = {"torch": "PyTorch"}
# PyTorch 2.13 for CPUs maps 587 MiB; with up to 630 MiB it ended by signals or errors without a text.
_LEAST_ADDRESSES = 640 * MIB
_MOUNTED = "; a container or a sandbox may hide it"
# What a library cannot open, by its words, and the advice. It may look there long after it was loaded.
_MISSING = {
    "/dev/urandom": ("it draws random numbers from /dev/urandom", f"run where /dev is mounted{_MOUNTED}"),
    "cpuinfo": (
        "it reads what the processor can do from /proc/cpuinfo",
        f"run where /proc is mounted{_MOUNTED}",
    ),
}


def load_failure(error: BaseException) -> DoesNotFit | None:
    """What a user is told of a library that this machine cannot load; None for any other error."""
    if not isinstance(error, Exception):  # Ctrl-C while a library is imported
        return None
    library = next(_importing(error), None)
    if library is None and isinstance(error, ImportError) and not (error.name or "").startswith(_OURS):
        library = error.name or "a library"
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    if isinstance(error, RuntimeError):
        for word, (why, hint) in _MISSING.items():
            if word in line:
                return DoesNotFit(f"PyTorch cannot run here: {line}", why, hint)
    if library is None:
        return None
    what = f"{_NAMES.get(library, library)} cannot be loaded: {line}"
    limit = address_limit()
    if limit is not None and not isinstance(error, ModuleNotFoundError):
        return _limited(what, limit)
    if isinstance(error, MemoryError):
        return None
    # It takes a tenth of the time of --help to import.
    from importlib.metadata import packages_distributions

    return DoesNotFit(
        what,
        "its installation is damaged, or the system lacks what it needs",
        f"pip install --force-reinstall {packages_distributions().get(library, [library])[0]}",
    )


def torch_failure() -> DoesNotFit | None:
    """The error for a limit of addresses that is too small for PyTorch, which may end the process then."""
    limit = address_limit()
    if limit is None or limit >= _LEAST_ADDRESSES:
        return None
    least = format_bytes(_LEAST_ADDRESSES)
    return _limited(f"PyTorch cannot be loaded: it takes {least} of addresses", limit)


def _limited(what: str, limit: int) -> DoesNotFit:
    return DoesNotFit(
        what,
        f"the addresses that this process may use are limited to {format_bytes(limit)} (ulimit -v)",
        "raise that limit, or start without it",
    )


def _importing(error: BaseException) -> Iterator[str]:
    """The libraries that were being imported when it was raised, the outermost first."""
    place = error.__traceback__
    while place is not None:
        frame = place.tb_frame
        module = frame.f_globals.get("__name__", "__main__")
        if frame.f_code.co_name == "<module>" and not module.startswith(_OURS):
            yield module.partition(".")[0]
        place = place.tb_next
