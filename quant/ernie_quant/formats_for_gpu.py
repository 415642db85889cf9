"""Chooses formats for a GPU of a size, by the planner: so that a usual conversation runs there.

Where every expert of decode fits, measured mixed bits fill the GPU. Where experts have to be paged, all of
them get one format: the one of most bits of which enough are on the GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ernie_local.checkpoint.format_tables import FormatChoice, format_tables
from ernie_local.config import ModelConfig, QuantizationConfig
from ernie_local.errors import DoesNotFit, parameter
from ernie_local.media.processor_config import ImageProcessorConfig
from ernie_local.media.video_config import published_video_processor
from ernie_local.packing.formats import find_format, formats_by_bits, formats_for, largest_first
from ernie_local.planner.gpu import GpuPlan, plan_gpu
from ernie_local.planner.gpus import usable_bytes
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.sizes import GIB, format_bytes
from ernie_quant.mixed_tables import SMALLEST_EXPERTS

USUAL_TOKENS = 8192
# Of the text experts, to be on the GPU in decode: fewer bits would bring less than they cost.
_ENOUGH = 0.25
# Of paged experts, as `--bits` names them: more change no answer (docs/performance.md), and take RAM. w2t
# loses less than w2 in fewer bytes.
_PAGED_BITS = ("4", "3", "w2t")
_LARGEST_GIB = 1024


@dataclass(frozen=True, slots=True)
class GpuFit:
    """bits: of all experts as `--bits` names them, None where measured mixed bits fill the GPU.

    dense: the format of other matrices, or `auto`. plan: of the model in these formats, the smallest ones
    where bits are mixed.
    """

    bits: str | None
    dense: str
    plan: GpuPlan
    has_experts: bool = True

    @property
    def lines(self) -> Iterator[str]:
        """For people."""
        limit = format_bytes(self.plan.vram.limit_bytes or 0)
        if self.bits is None:
            yield f"every text expert fits into the {limit} that such a GPU has: bits are mixed to fill it"
            return
        if not self.has_experts:
            yield f"in the {limit} that such a GPU has: all matrices in {self.dense}"
            return
        yield (
            f"in the {limit} that such a GPU has: experts with --bits {self.bits}, the rest in {self.dense}; "
            f"{USUAL_TOKENS} tokens leave {format_bytes(self.plan.slots_bytes)} for experts, "
            f"{self.plan.resident_share:.0%} of those of text"
        )
        yield f"with {format_bytes(self.plan.host_bytes)} of RAM no expert is read from disk"


def fit_gpu(config: ModelConfig, processor: ImageProcessorConfig, size: int, dense: str | None) -> GpuFit:
    """The formats for a GPU that is sold with `size` bytes. dense: given, None or `auto` to choose it.

    DoesNotFit where not even the smallest formats run there.
    """
    dense_formats = [one.name for one in largest_first(formats_for("dense"))]
    wanted = [dense] if dense in dense_formats else dense_formats
    vram = usable_bytes(size)

    def planned(experts: str, dense_format: str) -> GpuPlan:
        return plan_in(config, processor, _uniform(config, experts, dense_format), vram)

    if not config.text.banks:
        plans = ((one, planned("w4", one)) for one in wanted)
        best = next(((one, plan) for one, plan in plans if plan.fits), None)
        if best is None:
            raise _too_small(planned("w4", wanted[-1]), size, wanted[-1])
        return GpuFit(str(find_format(best[0]).bits), *best, has_experts=False)
    if planned(SMALLEST_EXPERTS, wanted[-1]).holds_text_experts:
        is_enough = planned(SMALLEST_EXPERTS, wanted[0]).holds_text_experts
        chosen = "auto" if dense == "auto" or not is_enough else wanted[0]
        return GpuFit(None, chosen, planned(SMALLEST_EXPERTS, wanted[-1] if chosen == "auto" else chosen))
    fewest: GpuFit | None = None
    for bits in _PAGED_BITS:
        for dense_format in wanted:
            plan = planned(formats_by_bits()[bits].name, dense_format)
            if plan.fits:
                fewest = GpuFit(bits, dense_format, plan)
                if plan.resident_share >= _ENOUGH:
                    return fewest
    if fewest is None:
        raise _too_small(planned(SMALLEST_EXPERTS, wanted[-1]), size, wanted[-1])
    return fewest


def plan_in(
    config: ModelConfig, processor: ImageProcessorConfig, tables: QuantizationConfig, vram_bytes: int
) -> GpuPlan:
    """A usual conversation with the model in these tables, with RAM enough."""
    packed = config.packed_by(tables)
    model = ModelSize("the quantized model", packed, processor, published_video_processor(processor))
    context_size = min(USUAL_TOKENS, config.text.max_position_embeddings)
    chat = ChatPlan(context_size, "bfloat16", "bfloat16", may_shrink_cache=True)
    return plan_gpu(model, chat, vram_bytes, Budget(None))


def _uniform(config: ModelConfig, experts: str, dense: str) -> QuantizationConfig:
    return format_tables(config, FormatChoice(experts, dense, "w8", "w8"))


def _too_small(plan: GpuPlan, size: int, dense: str) -> DoesNotFit:
    enough = next(
        (gib for gib in range(1, _LARGEST_GIB) if usable_bytes(gib * GIB) >= plan.least_bytes), _LARGEST_GIB
    )
    or_less = "" if dense == "w4" else f", or smaller dense weights: {parameter('dense', 'auto')}"
    return DoesNotFit(
        f"the smallest formats need {format_bytes(plan.least_bytes)} of a GPU, one of {format_bytes(size)} "
        f"has {format_bytes(plan.vram.limit_bytes or 0)} for programs",
        f"the weights that every token reads, a chat of {USUAL_TOKENS} tokens, an image if the model reads "
        "any, and the experts of one token have to be there together",
        f"{parameter('fit', f'{enough}GiB')} or more{or_less}",
    )
