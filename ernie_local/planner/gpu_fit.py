"""Decides what of a model a GPU holds, with one measure after the other where experts would get too little.

`load` places a model by this function, and `vram` predicts with the same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ernie_local.defaults import ANSWER_TOKENS, AUTO
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.planner.fit import SLACK_BYTES, AvailableMemory, unpaged_refusal
from ernie_local.planner.gpu_need import GpuLayout, GpuNeed
from ernie_local.sizes import MIB, format_bytes

# Of the experts of decode, the share that shall have slots: below a third of them more than half of a token's
# experts come over the link. What gains less than a 64th of them is not worth what it costs.
_FLOOR_SHARE, _WORTH_SHARE = 3, 64
_CALM = 2  # times the least, what experts shall have in a prompt: half of it is read ahead


@dataclass(frozen=True, slots=True)
class GpuPlacement:
    """Where a model with a GPU goes.

    paged_bytes: RAM for experts, of which the GPU has a part; None where all of them are on the GPU.
    shared_bytes: of the GPU, for experts, a KV cache of at most cache_bytes, and room_bytes of workspace; at
    least least_bytes. swapped_bytes: of vision tower and resampler where they lie in RAM; host_bytes: of all
    there but experts, of which host_cache_bytes are for KV caches. spare_bytes: RAM that is left. decisions:
    a line for each, for people.
    """

    layout: GpuLayout
    paged_bytes: int | None
    shared_bytes: int = 0
    least_bytes: int = 0
    cache_bytes: int = 0
    room_bytes: int = 0
    swapped_bytes: int = 0
    host_bytes: int = 0
    host_cache_bytes: int = 0
    spare_bytes: int = 0
    decisions: tuple[str, ...] = ()

    @property
    def chunk_tokens(self) -> int:
        """Tokens of a prompt that are computed at a time."""
        return self.layout.chunk_tokens


def place_on_gpu(need: GpuNeed, ram: AvailableMemory, gpu: AvailableMemory) -> GpuPlacement:
    """Keep a model on a GPU, and experts that do not fit there in RAM or on disk.

    DoesNotFit, with the numbers, where even paging and every measure do not help.
    """
    left = gpu.total - gpu.used - SLACK_BYTES
    _check_free(gpu, need)
    layout = _resident(need, left)
    host = ram.total - ram.used - SLACK_BYTES
    if layout is not None:
        host -= need.host_bytes(layout)
        return GpuPlacement(
            layout,
            None,
            host_bytes=need.host_bytes(layout),
            spare_bytes=max(0, host),
            decisions=tuple(_decisions(need, layout, left)),
        )
    layout = _paged(need, left)
    if layout is None:
        raise _refusal(gpu, need)
    assert need.plan is not None
    host -= need.host_bytes(layout)
    if host < need.plan.least_bytes:
        least = ram.used + SLACK_BYTES + need.host_bytes(layout) + need.plan.least_bytes
        raise DoesNotFit(
            f"{format_bytes(max(0, host))} of RAM are left for experts besides the GPU, "
            f"{format_bytes(need.plan.least_bytes)} are needed",
            "experts that are not on the GPU pass through RAM, at least those of one token",
            f"{parameter('ram', f'{-(-least // MIB)}MiB')} or more"
            + (f", or less {parameter('context_size')}" if layout.host.num_layers else ""),
        )
    return GpuPlacement(
        layout,
        host,
        shared_bytes=left - need.dense_bytes(layout),
        least_bytes=need.paged_bytes(layout),
        cache_bytes=need.cache_bytes(layout),
        room_bytes=need.room_bytes(layout),
        swapped_bytes=need.weights.for_images if layout.swaps_image_weights else 0,
        host_bytes=need.host_bytes(layout),
        host_cache_bytes=need.host_cache_bytes(layout),
        decisions=tuple(_decisions(need, layout, left)),
    )


def least_gpu_total(need: GpuNeed) -> int:
    """The smallest `AvailableMemory.total` of a GPU that `place_on_gpu` accepts."""
    return SLACK_BYTES + need.least_bytes()


def _resident(need: GpuNeed, left: int) -> GpuLayout | None:
    """With all experts on the GPU, and the largest chunk; None where they do not fit.

    A smaller cache is a measure against paging nothing: only where nothing can be paged.
    """
    plain, *others = need.layouts()
    for layout in (plain, *others) if need.plan is None else (plain,):
        for chunk in need.chunks():
            chosen = replace(layout, chunk_tokens=chunk)
            if need.dense_bytes(chosen) + need.resident_bytes(chosen) <= left:
                return chosen
    return None


def _paged(need: GpuNeed, left: int) -> GpuLayout | None:
    """The first layout with enough slots in decode, or else the one with most; None where none fits.

    The processor takes over no more than lets it fit: what every token reads is best on the GPU.
    """
    best: GpuLayout | None = None
    most = 0
    for layout in need.layouts() if need.plan is not None else ():
        shared = left - need.dense_bytes(layout)
        chosen = _with_chunk(need, layout, shared)
        if chosen is None:
            continue
        slots = need.slots_bytes(chosen, shared)
        if best is None or slots >= most + _floor_bytes(need) * _FLOOR_SHARE // _WORTH_SHARE:
            best, most = chosen, slots
        if most >= _floor_bytes(need):
            break
    if best is not None:
        return best
    fitting = (one for one in need.last_layouts() if need.dense_bytes(one) + need.paged_bytes(one) <= left)
    return next(fitting, None)


def _with_chunk(need: GpuNeed, layout: GpuLayout, shared_bytes: int) -> GpuLayout | None:
    """With the largest chunk beside which experts can be read ahead, else the smallest if it fits."""
    layouts = [replace(layout, chunk_tokens=chunk) for chunk in need.chunks()]
    for one in layouts:
        if need.paged_bytes(one, _CALM) <= shared_bytes:
            return one
    return layouts[-1] if need.paged_bytes(layouts[-1]) <= shared_bytes else None


def _floor_bytes(need: GpuNeed) -> int:
    assert need.plan is not None
    return need.plan.bytes_of("text") // _FLOOR_SHARE


def _decisions(need: GpuNeed, layout: GpuLayout, left: int) -> Iterator[str]:
    if need.host_embedding_bytes:
        yield f"embedding: {format_bytes(need.host_embedding_bytes)} in RAM; a token reads one row of it"
    plain = next(iter(need.layouts()))
    why = "it does not fit otherwise"
    if need.plan is not None:
        floor = format_bytes(_floor_bytes(need))
        why = f"as experts of decode would have less than {floor}, a third of them"
    if layout.swaps_image_weights:
        size, window = format_bytes(need.weights.for_images), format_bytes(need.window_bytes(layout))
        yield (
            f"vision tower and resampler: {size} in RAM, on the GPU part by part ({window}) while images are "
            f"encoded, {why}"
        )
    if layout.kv_dtype == plain.kv_dtype != need.chat.kv_dtype:
        yield f"KV cache: {layout.kv_dtype}, as this GPU has no products of {need.chat.kv_dtype}"
    if layout.kv_dtype != plain.kv_dtype:
        before, after = (format_bytes(need.cache_bytes(one)) for one in (plain, layout))
        yield f"KV cache: {layout.kv_dtype}, {after} instead of {before} in {plain.kv_dtype}, {why}"
    yield from _host_decisions(need, layout)
    if need.plan is not None and _resident(need, left) is None:
        most = need.most_tokens_with_image(layout, left - need.dense_bytes(layout))
        if most < need.chat.context_size:
            yield f"images: conversations of more than {most} tokens leave no room for one"
    if layout.chunk_tokens < need.chunks()[0]:
        yield f"prompts: {layout.chunk_tokens} tokens at a time, as larger chunks leave too little to experts"


def _host_decisions(need: GpuNeed, layout: GpuLayout) -> Iterator[str]:
    why, (num_layers, has_head) = "it does not fit otherwise", layout.host
    if has_head:
        size = format_bytes(need.moved_parts(layout)[need.head_part])
        yield f"head: {size} in RAM, where the CPU computes the logits of a token, as {why}"
    if num_layers:
        weights = format_bytes(sum(one.on_host for one in need.weights.projections[:num_layers]))
        yield (
            f"attention: {num_layers} of {need.config.text.num_hidden_layers} layers attend on the CPU, with "
            f"{weights} of weights and {format_bytes(need.host_cache_bytes(layout))} of the KV cache in RAM, "
            f"as {why}"
        )


def _check_free(gpu: AvailableMemory, need: GpuNeed) -> None:
    plain = next(iter(need.layouts()))
    wanted = need.dense_bytes(plain) + need.resident_bytes(plain)
    if gpu.free is not None and gpu.limit_name is not None and gpu.free < min(gpu.total, wanted):
        raise DoesNotFit(
            f"{parameter(gpu.limit_name)} is {format_bytes(gpu.total)}, "
            f"but {format_bytes(gpu.free)} are free on the GPU",
            "the model would take more than is free",
            f"{parameter(gpu.limit_name, f'{gpu.free // MIB}MiB')} or less, or close other programs that use "
            "the GPU",
        )


def _refusal(gpu: AvailableMemory, need: GpuNeed) -> DoesNotFit:
    least = gpu.used + least_gpu_total(need)
    hints = lowering_settings(need)
    if gpu.limit_name is None:
        available = f"{format_bytes(gpu.total)} are available"
        hints.append("close other programs that use the GPU")
    else:
        available = f"{parameter(gpu.limit_name)} is {format_bytes(gpu.total)}"
        hints.insert(0, parameter(gpu.limit_name, f"{-(-least // (64 * MIB)) * 64}MiB"))
    what = f"the model needs at least {format_bytes(least)} of the GPU's memory, {available}"
    if need.weights.experts and need.plan is None:
        return unpaged_refusal(what, need.weights.experts, ", or ".join(hints))
    *_, last = (*need.layouts(), *need.last_layouts())
    return DoesNotFit(
        what,
        f"with all measures {format_bytes(need.dense_bytes(last))} of weights stay on the GPU, the KV cache "
        f"takes {format_bytes(need.cache_bytes(last))}, workspace {format_bytes(need.room_bytes(last))}, and "
        "the rest is the experts of one token",
        ", or ".join(hints),
    )


def lowering_settings(need: GpuNeed) -> list[str]:
    """The two settings that lower the least memory most, the better one first; fewer where fewer do."""
    chat, least = need.chat, need.least_bytes()
    half = max(chat.image_tokens + ANSWER_TOKENS, chat.context_size // 2)
    changed = {
        parameter("context_size", half): replace(need, chat=replace(chat, context_size=half)),
        parameter("kv_dtype", AUTO): replace(need, chat=replace(chat, may_shrink_cache=True)),
        "fewer or smaller images": replace(need, chat=replace(chat, images=())),
    }
    gains = {text: least - other.least_bytes() for text, other in changed.items()}
    return sorted((text for text, gain in gains.items() if gain > 0), key=lambda text: -gains[text])[:2]
