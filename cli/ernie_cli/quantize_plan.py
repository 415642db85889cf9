"""What `ernie-local quantize --dry-run` tells: size, disk, memory and time of a job that is not done."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ernie_cli.console import Console
    from ernie_quant.job import Job


def tell_plan(job: Job, console: Console, json_object: dict[str, object] | None) -> None:
    """Four lines on stdout, or the key `plan` of the object."""
    from ernie_cli.progress import duration
    from ernie_local.sizes import format_bytes
    from ernie_quant.pipeline import plan_checkpoint

    plan = plan_checkpoint(job)
    if json_object is not None:
        json_object["plan"] = {
            "weight_bytes": plan.weight_bytes,
            "small_page_bytes": plan.small_page_bytes,
            "scratch_bytes": plan.scratch_bytes,
            "memory_bytes": plan.memory_bytes,
            "seconds": plan.seconds,
        }
        return
    free = shutil.disk_usage(job.out.resolve().parent).free
    disk = plan.weight_bytes + plan.scratch_bytes
    small = f", {format_bytes(plan.small_page_bytes)} of them small pages" if plan.small_page_bytes else ""
    console.answer(f"weights:  {format_bytes(plan.weight_bytes)}, {plan.weight_bytes:,} bytes{small}\n")
    console.answer(f"disk:     {format_bytes(disk)} while it is made, {format_bytes(free)} are free\n")
    console.answer(f"memory:   at most about {format_bytes(plan.memory_bytes)}\n")
    if plan.seconds is not None:
        told = f"about {duration(plan.seconds)}"
    else:
        searches = job.recipe.method == "quanto-hqq"
        told = f"{'some 9 hours' if searches else 'a few minutes'} for 30 billion weights"
    console.answer(f"time:     {told}\n")
