"""The object of `ernie-local vram --json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Literal

from ernie_cli.json_object import fill_result
from ernie_local.model.memory_use import encoding_bytes
from ernie_local.planner.gpu import Tier, session_terms
from ernie_local.planner.model_size import ModelSize
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.rental import SESSION_TOKENS, RentedServer, our_sessions, published_sessions
from ernie_local.planner.speed import Band, HitRates
from ernie_local.planner.start import Start
from ernie_local.planner.terms import Amount, Provenance, Term
from ernie_local.sizes import GIB, parse_bytes

if TYPE_CHECKING:
    from ernie_cli.vram.command import VramOptions
    from ernie_cli.vram.report import GpuRow, Report
    from ernie_local.media.video_size import VideoReport


@dataclass
class MemoryPlanObject:
    """Memory of RAM or of a GPU."""

    limit_bytes: int | None  #: That may be used; null if unknown.
    peak_phase: str  #: The phase that needs most.
    peak: Amount  #: In that phase.
    terms: list[Term]


@dataclass
class SpeedEstimateObject:
    """Tokens per second."""

    decode_tok_s: Annotated[Band, "decode"]
    prefill_tok_s: Annotated[Band | None, "prefill"]
    hit_rates: Annotated[HitRates, "hits"]
    memory_hit_rates: Annotated[HitRates | None, "memory_hits"]
    """Shares that are on the GPU or in RAM; null without a GPU."""
    by_miss_rule: dict[str, float]
    """Likely decode by the rule for experts that the GPU lacks (`--misses`), the fastest of which the other
    figures are of; empty where it lacks none."""
    is_measured: bool  #: By the rates that `bench` measured on this machine; else by assumed rates.


@dataclass
class ModelPartObject:
    """A part of the model."""

    name: str
    weights: int
    bytes: Annotated[int, "num_bytes"]  #: In files.
    bits_per_weight: float
    formats: dict[str, int]  #: Weights by number type or low-bit format.


@dataclass
class ModelSizeObject:
    """The model."""

    name: str
    origin: Literal["headers", "config"]  #: Where sizes come from: headers of its files, or its config.
    weights: int
    file_bytes: int  #: Of all weight files, as they are or as `quantize` would write them.
    parts: list[ModelPartObject]


@dataclass
class ConversationObject:
    """The chat that was planned: one that fills `ctx_size`, images first."""

    ctx_size: Annotated[int, "context_size"]
    dtype: str
    kv_dtype: str
    kv_bytes_per_token: int  #: Over all layers.
    parallel: int  #: Chats like this that are answered at once.


@dataclass
class PricedImageObject:
    """An image. Sizes are [width, height] in pixels."""

    name: str
    original_size: list[int]
    resized_size: list[int]  #: As the model sees it.
    crop: list[int] | None
    """[left, top, right, bottom] of the part that `--trim` left, in pixels of `original_size`; null for all
    of it."""
    patches: int
    tokens: int
    max_tokens: int | None  #: The bound that `--image-tokens` or `--detail` has set; null without one.
    kv_bytes: int  #: In the KV cache.
    encoder_bytes: int  #: Kept free while it is encoded.


@dataclass
class PricedVideoObject:
    """A video. Sizes are [width, height] in pixels."""

    name: str
    original_size: list[int]
    resized_size: list[int]  #: Each frame as the model sees it.
    seconds: Annotated[float, "duration"]
    num_frames: int  #: Of the video.
    seen_frames: int  #: Those that the model sees.
    patches: int
    tokens: int
    kv_bytes: int  #: In the KV cache.
    reader_bytes: int  #: About the memory that reading it takes, before the model is loaded.
    stored_bytes: int  #: Of the chosen frames, on disk until they have been encoded.


@dataclass
class ZoomObject:
    """What `--zoom` adds; `images` has the parts, too: NAME (zoom 1)."""

    rounds: int
    tokens: int  #: Of a part, at most.
    kv_bytes: int  #: Of all parts, in the KV cache.
    vision_bank_bytes: int  #: Experts of images alone, read again for each part where they were paged out.


@dataclass
class CpuPlanObject:
    """The plan for RAM."""

    fits: bool
    experts: Literal["resident", "paged"] | None  #: Null where it does not fit.
    chunk_tokens: int | None  #: Tokens of a prompt that are computed at a time.
    slots_bytes: int | None  #: Memory for paged experts in decode.
    swapped_bytes: int  #: Of vision tower and resampler if they are there only while images are encoded.
    resident_share: float  #: Share of the text experts that are in it.
    least_bytes: int  #: The smallest limit that works.
    resident_bytes: int  #: The smallest limit with all experts in memory.
    memory: MemoryPlanObject
    speed: SpeedEstimateObject
    start: Start | None  #: Null where it does not fit, or `bench` has stored no rates of this machine.


@dataclass(kw_only=True)
class GpuVerdictObject:
    """The plan for a GPU; a prediction."""

    name: str
    last_pytorch: str | None  #: The last version that is built for it; null if newer ones are, or unknown.
    verdict: Annotated[Tier, "tier"]
    slots_bytes: int  #: Memory of the GPU for paged experts in decode.
    resident_share: float  #: Share of the text experts that are in it.
    host_bytes: int  #: RAM with which all experts are in it; 0 where all are on the GPU.
    host_least_bytes: int  #: RAM that is needed for paged experts.
    ram_slots_bytes: int  #: RAM for experts that are not on the GPU.
    memory_share: float  #: Share of the text experts that are on the GPU or in RAM; the rest is on disk.
    least_bytes: int  #: Memory of the GPU that is needed, CUDA's own and the headroom included.
    speed: SpeedEstimateObject | None  #: Null where it does not fit.


@dataclass(kw_only=True)
class GpuPlanObject(GpuVerdictObject):
    """The plan for one GPU; a prediction."""

    chunk_tokens: int  #: Tokens of a prompt that are computed at a time.
    decisions: list[str]  #: What was chosen so that experts have enough of the GPU, a line for each.
    vram: MemoryPlanObject
    ram: MemoryPlanObject
    sensitivity: dict[str, Band]
    """Decode with 30 % less and more of `link`, `cpu`, `disk` (rates), or `hits` (the share of experts found
    in memory); empty where the GPU lacks none."""


@dataclass(kw_only=True)
class KnownGpuObject(GpuVerdictObject):
    """A GPU of the table."""

    id: Annotated[str, "gpu_id"]
    kind: str
    compute_capability: str
    usable_bytes: int
    longest_ctx_size: Annotated[int | None, "context_size"]
    """The longest context that fits, with the images that were given; null where none does."""
    largest_a4_dpi: int | None
    """The resolution of the largest A4 page that fits into the context that was asked for; null where none
    does, or the model's files do not say how it reads images."""
    largest_a4_tokens: int | None  #: Tokens of that page.


@dataclass
class ContextChoiceObject:
    """A context that fits."""

    ctx_size: int
    resident_share: float  #: Share of the text experts that are in fast memory in decode.
    peak_bytes: int
    decode_tok_s: Band


@dataclass
class ObstacleObject:
    """The one number in the way."""

    of: Literal["ram", "vram", "context_size", "model_context", "image_size"]
    """Bytes of memory; tokens of the chat, or those that the model was made for; pixels of an image that the
    model looks at."""
    needed: int
    available: int
    asked: str  #: For what it is needed.


@dataclass
class SessionTermObject:
    """Something that takes memory of the server's GPUs."""

    name: str
    provenance: Provenance
    low: Annotated[int, "most.low"]
    best: Annotated[int, "most.best"]
    high: Annotated[int, "most.high"]


@dataclass
class OurSessionsObject:
    """Sessions by our own rule."""

    low: float
    best: float
    high: float
    session_bytes: int  #: Of one session.
    terms: list[SessionTermObject]  #: What takes memory besides sessions.


@dataclass
class SessionsObject:
    """Full-context sessions of a server."""

    rule: Literal["rental", "ours"]
    gpus: int
    vram_gib: float
    bits: str
    tokens: int  #: Of a session.
    max_concurrency: float  #: Sessions by the published rule.
    ours: OurSessionsObject | None = None  #: Null with `--rule rental`.


@dataclass
class VramResult:
    """One object, whatever the end of the run. Bytes are whole numbers.

    A run fills what it was asked for: `gpu` with one GPU, `gpus` with `--gpu all`, `sessions` with
    `--sessions`. `ok` is true when it fits, or nothing had to fit. Where it does not fit, `error` has exit
    code 3 (`does_not_fit`).
    """

    model: ModelSizeObject | None = None
    conversation: ConversationObject | None = None
    images: list[PricedImageObject] = field(default_factory=list)
    videos: list[PricedVideoObject] = field(default_factory=list)  #: `images` has them, too: NAME (video).
    zoom: ZoomObject | None = None  #: With `--zoom`.
    cpu: CpuPlanObject | None = None
    gpu: GpuPlanObject | None = None
    gpus: list[KnownGpuObject] = field(default_factory=list)
    solved: dict[str, str | int | None] | None = None
    """What `--solve` found: `bits`, `ctx_size`, or `a4_dpi` with `width`, `height` and `image_tokens` of that
    page (null where none fits), or `experts_per_layer` and `of`, the number of all; the plans are those of
    what was found."""
    in_the_way: ObstacleObject | None = None
    """With `--solve`: what keeps more from fitting, or all; null where nothing does."""
    contexts: list[ContextChoiceObject] = field(default_factory=list)
    """With `--solve ctx`: what contexts up to the longest one cost."""
    sessions: SessionsObject | None = None
    make_it_fit: list[str] = field(default_factory=list)
    """Options, each of which alone makes it fit, the mildest first; empty where it fits."""

    def set_model(self, model: ModelSize, conversation: ChatPlan) -> None:
        """Fill in the model, its conversation and its images."""
        token_bytes = conversation.kv_size(model.config.text).bytes_per_token
        self.model = fill_result(ModelSizeObject, model, weights=count_model_weights(model))
        self.conversation = fill_result(ConversationObject, conversation, kv_bytes_per_token=token_bytes)
        self.images = [
            fill_result(
                PricedImageObject,
                image,
                kv_bytes=image.tokens * token_bytes,
                encoder_bytes=encoding_bytes(model.config.tower, [image.patches], conversation.item_bytes),
            )
            for image in conversation.images
        ]

    def set_videos(self, videos: Sequence[VideoReport]) -> list[tuple[VideoReport, int]]:
        """Fill in the videos, after `set_model`; each with its bytes in the KV cache."""
        assert self.conversation is not None, "set_model has filled it in"
        token_bytes = self.conversation.kv_bytes_per_token
        self.videos = [
            fill_result(
                PricedVideoObject,
                video,
                seen_frames=len(video.frames),
                kv_bytes=video.tokens * token_bytes,
            )
            for video in videos
        ]
        return [(video, video.tokens * token_bytes) for video in videos]

    def set_zoom(self, model: ModelSize, chat: ChatPlan, rounds: int | None) -> ZoomObject | None:
        """Fill in what the parts take, which are the last images of `chat`; after `set_model`."""
        if rounds is None:
            return None
        assert self.conversation is not None, "set_model has filled it in"
        tokens, token_bytes = chat.images[-1].tokens, self.conversation.kv_bytes_per_token
        weights = model.weights(chat.item_bytes)
        bank_bytes = weights.experts - weights.text_experts
        self.zoom = ZoomObject(rounds, tokens, rounds * tokens * token_bytes, bank_bytes)
        return self.zoom

    def set_report(self, report: Report) -> None:
        """Fill in plans and speeds."""
        self.set_model(report.model, report.conversation)
        if self.zoom is not None:  # of the bits that were solved for
            weights = report.model.weights(report.conversation.item_bytes)
            self.zoom.vision_bank_bytes = weights.experts - weights.text_experts
        placement, gpu = report.cpu.placement, report.gpu
        experts = None if placement is None else "resident" if placement.paged_bytes is None else "paged"
        self.cpu = fill_result(
            CpuPlanObject,
            report.cpu,
            experts=experts,
            chunk_tokens=None if placement is None else placement.chunk_tokens,
            swapped_bytes=0 if placement is None else placement.swapped_bytes,
            speed=report.cpu_speed,
            start=report.start,
        )
        self.solved, self.make_it_fit = report.solved, list(report.flags)
        if report.obstacle is not None:
            self.in_the_way = fill_result(ObstacleObject, report.obstacle)
        self.contexts = [fill_result(ContextChoiceObject, choice) for choice in report.choices]
        if gpu is not None:
            speed = report.gpu_speed if gpu.fits else None
            name, last = report.target.gpu_name, report.target.last_pytorch
            self.gpu = fill_result(
                GpuPlanObject,
                gpu,
                name=name,
                last_pytorch=last,
                speed=speed,
                sensitivity=report.sensitivity(),
            )

    def set_gpus(self, gpus: Iterable[GpuRow]) -> None:
        """Fill in the table of GPUs."""
        self.gpus = [
            fill_result(
                KnownGpuObject,
                row.gpu,
                row.plan,
                row,
                speed=row.speed if row.plan.fits else None,
                largest_a4_dpi=None if row.page is None else row.page.dpi,
                largest_a4_tokens=None if row.page is None else row.page.image.tokens,
            )
            for row in gpus
        ]

    def set_sessions(
        self, options: VramOptions, ours: tuple[ModelSize, ChatPlan] | None = None
    ) -> SessionsObject:
        """Fill in full-context sessions by the published rule; for `ours` also by our own, term by term.

        UsageError for bits that the published rule does not know.
        """
        assert options.vram is not None, "the command refuses this"
        server = RentedServer(options.gpus, parse_bytes(options.vram, "vram") / GIB)
        bits = options.bits or "16"  # of the model as it is published
        self.sessions = SessionsObject(
            options.rule,
            server.num_gpus,
            server.gib_a_gpu,
            bits,
            SESSION_TOKENS,
            published_sessions(server, bits),
        )
        if ours is not None:
            model, conversation = ours
            session = replace(conversation, context_size=SESSION_TOKENS)
            session_bytes = session.kv_size(model.config.text).num_bytes
            terms = session_terms(model, session, server.num_gpus)
            counted = our_sessions(server, terms, session_bytes)
            low, best, high = (count / 1000 for count in (counted.low, counted.best, counted.high))
            self.sessions.ours = OurSessionsObject(
                low, best, high, session_bytes, [fill_result(SessionTermObject, term) for term in terms]
            )
        return self.sessions


def count_model_weights(model: ModelSize) -> int:
    """Of all parts; small pages hold weights of other parts once more."""
    return sum(part.weights for part in model.parts if not part.name.startswith("small"))
