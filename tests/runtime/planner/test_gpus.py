"""The table of GPUs, the GPU of this machine, the published capacity rule, and what speed is made of."""

from __future__ import annotations

import pytest

from ernie_local.checkpoint.format_tables import FormatChoice
from ernie_local.errors import UsageError
from ernie_local.experts.options import MISS_RULES
from ernie_local.planner.gpu import plan_gpu, session_terms
from ernie_local.planner.gpus import find_gpu_model, gpu_models, last_pytorch, match_gpu_model
from ernie_local.planner.model_size import published_model, with_formats
from ernie_local.planner.need import ChatPlan
from ernie_local.planner.ram import Budget
from ernie_local.planner.rates import GpuRates, Rates
from ernie_local.planner.rental import RentedServer, our_sessions, published_sessions
from ernie_local.planner.speed import (
    ASSUMED,
    HitRates,
    cpu_speed,
    gpu_sensitivity,
    gpu_speed,
    operations_per_token,
)
from ernie_local.planner.tiers import ExpertTimes, layer_seconds
from ernie_local.sizes import GIB, MIB

# The published page's table for 4 bits: GPU, GPUs, GB of each, sessions.
RENTAL_ROWS = """teslat4 2 16 1.471
teslaa2 2 16 1.471
rtx2080ti 3 11 1.242
teslaa10 2 24 3.528
rtx2080ti 4 11 2.299
teslav100 1 32 1.828
rtxa5000 2 24 3.528
rtx3090 2 24 3.528
rtx5090 1 32 1.828
rtx3080 4 10 1.785
rtx4090 2 24 3.528
teslaa100 1 80 7.999
h100 1 80 7.999
h100nvl 1 94 9.799
h200 1 141 15.842"""
ROWS = [row.split() for row in RENTAL_ROWS.splitlines()]
W4 = with_formats(published_model(), FormatChoice(), "--bits 4")
W2 = with_formats(published_model(), FormatChoice("w2", "w4"), "--bits 2")
SHORT = ChatPlan(1024, "float32", "bfloat16")
SHORT_ON_GPU = ChatPlan(1024, "bfloat16", "bfloat16")
# Two cores of a Xeon as measured (docs/performance.md): disk while decoding, a plain read of memory, prefill.
XEON = Rates(1.5e9, 27e9, 0.62e12, 0.001, 0.00022)


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_the_published_rule_gives_the_published_numbers(row: list[str]) -> None:
    gpu, count, size, sessions = row
    assert f"{published_sessions(RentedServer(int(count), float(size)), '4'):.3f}" == sessions
    assert find_gpu_model(gpu).vram_gb == int(size)


@pytest.mark.parametrize(
    ("bits", "count", "size", "sessions"),
    [
        ("8", 2, 24, 1.599),
        ("8", 1, 80, 6.07),
        ("16", 2, 80, 11.451),
        ("16", 1, 80, 1.523),
        ("16", 1, 141, 9.366),
    ],
)
def test_the_rule_for_8_and_16_bits(bits: str, count: int, size: float, sessions: float) -> None:
    """By hand: (0.9 n V - 2.5 n - W) / 7 with W = 29e9 bytes, and 58.84."""
    weights = {"8": 29e9 / 2**30, "16": 58.84}[bits]
    by_hand = (0.9 * count * size - 2.5 * count - weights) / 7
    assert published_sessions(RentedServer(count, size), bits) == round(by_hand, 3) == sessions


def test_the_rule_knows_no_other_bits() -> None:
    with pytest.raises(UsageError, match=r"mixed.* with sessions"):
        published_sessions(RentedServer(2, 16), "mixed")


def test_ours_counts_what_the_page_leaves_out() -> None:
    terms = session_terms(W4, ChatPlan(131072, "bfloat16", "bfloat16"), 2)
    by_name = {term.name: term.most.best for term in terms}
    assert by_name["vision tower"] > 600 * MIB
    assert by_name["CUDA context and kernels"] == 900 * MIB
    assert "KV cache" not in by_name
    beside = sum(by_name.values())
    counted = our_sessions(RentedServer(2, 24), terms, 7 * GIB)
    assert counted.best == round(1000 * (48 * GIB - beside) / (7 * GIB))
    assert counted.low < counted.best < counted.high


def test_the_table_has_the_gpus_that_people_have() -> None:
    gpus = gpu_models()
    assert len({gpu.gpu_id for gpu in gpus}) == len({gpu.name for gpu in gpus}) == len(gpus)
    kinds = [gpu.kind for gpu in gpus]
    assert (kinds.count("desktop") >= 25, kinds.count("laptop") >= 20, kinds.count("server") >= 8) == (
        True,
    ) * 3
    for generation in ("GTX 10", "GTX 16", "RTX 20", "RTX 30", "RTX 40", "RTX 50"):
        assert sum(generation in gpu.name for gpu in gpus) >= 3, generation
    for gpu in gpus:
        share = gpu.usable_bytes / (gpu.vram_gb * GIB)
        assert 0.9 < share <= 1, gpu
        assert 6 <= float(gpu.compute_capability) <= 12
        assert 4e9 < gpu.rates.link_bytes_per_second < gpu.rates.memory_bytes_per_second < 4.8e12
        assert 3.5e11 < gpu.rates.operations_per_second < 7e14


def test_the_last_pytorch_for_old_gpus_is_known() -> None:
    """pytorch/pytorch issue 190385."""
    assert [last_pytorch(one) for one in ((6, 0), (6, 1), (7, 0))] == ["2.14"] * 3
    assert [last_pytorch(one) for one in ((7, 5), (8, 6), (12, 0), None)] == [None] * 4
    told = {gpu.name: gpu.last_pytorch for gpu in gpu_models()}
    assert (told["GeForce GTX 1060 6GB"], told["Tesla V100 32GB"]) == ("2.14", "2.14")
    assert told["GeForce RTX 3090"] is None


# What torch named as total capacity in public error messages, GiB.
@pytest.mark.parametrize(
    ("name", "reported"),
    [
        ("gtx1660super", 5.61),
        ("rtx2080ti", 10.57),
        ("rtx3050-laptop", 3.68),
        ("rtx3060-12gb", 11.62),
        ("rtx3080", 9.62),
        ("rtx3090", 23.56),
        ("rtx4050-laptop", 5.65),
        ("rtx4060", 7.59),
        ("rtx4060ti-16gb", 15.57),
        ("rtx4070", 11.56),
        ("rtx4090", 23.49),
        ("rtx5050-laptop", 7.53),
        ("rtx5060ti-16gb", 15.48),
        ("rtx5080", 15.47),
        ("rtx5090", 31.34),
        ("teslat4", 14.56),
        ("teslav100", 31.73),
        ("teslaa10", 22.06),
        ("l40s", 44.39),
        ("h100nvl", 93.09),
        ("h200", 139.8),
    ],
)
def test_no_more_memory_is_usable_than_drivers_reported(name: str, reported: float) -> None:
    assert 0.98 * reported < find_gpu_model(name).usable_bytes / GIB <= reported


@pytest.mark.parametrize(
    "name",
    [
        "rtx3060-12gb",
        "RTX3060-12GB",
        "GeForce RTX 3060",
        "NVIDIA GeForce RTX 3060",
        "RTX 3060",
        "rtx 3060 12gb",
    ],
)
def test_a_gpu_is_found_however_it_is_written(name: str) -> None:
    assert find_gpu_model(name).gpu_id == "rtx3060-12gb"


def test_an_unknown_gpu_is_told_the_near_ones() -> None:
    with pytest.raises(UsageError, match=r"rtx3061.*\n.*rtx3060-12gb"):
        find_gpu_model("rtx3061")
    with pytest.raises(UsageError, match="no name in the table"):
        find_gpu_model("!")


@pytest.mark.parametrize(
    ("name", "total", "gpu_id"),
    [
        ("NVIDIA H100 80GB HBM3", None, "h100"),
        ("NVIDIA A100-SXM4-80GB", None, "teslaa100"),
        ("NVIDIA A100-PCIE-40GB", 40 << 30, "teslaa100-40gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 16380 << 20, "rtx4060ti-16gb"),
        ("NVIDIA GeForce RTX 4060 Ti", 8188 << 20, "rtx4060ti"),
        ("NVIDIA GeForce RTX 3080", 12288 << 20, "rtx3080-12gb"),
        ("NVIDIA GeForce RTX 3080", None, "rtx3080"),
        ("NVIDIA GeForce RTX 3060", 12288 << 20, "rtx3060-12gb"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", 6144 << 20, "rtx3060-laptop"),
        ("Tesla T4", 15360 << 20, "teslat4"),
        ("Tesla V100-SXM2-16GB", None, None),  # the table has the one of 32
        ("NVIDIA GeForce RTX 4060 Ti", None, None),
    ],
)
def test_a_driver_names_a_gpu_in_its_own_way(name: str, total: int | None, gpu_id: str | None) -> None:
    found = match_gpu_model(name, total)
    assert (None if found is None else found.gpu_id) == gpu_id


def test_a_gpu_is_known_by_its_driver_s_name() -> None:
    found = match_gpu_model("NVIDIA GeForce RTX 4060 Laptop GPU")
    assert found is not None
    assert found.gpu_id == "rtx4060-laptop"
    assert match_gpu_model("NVIDIA H200") is not None
    assert match_gpu_model("Some GPU") is None


def test_a_token_reads_what_the_reference_counts() -> None:
    """1.9 B routed and 1.44 B other weights of a text token, 6.7 GFLOP at most."""
    work = published_model().decode_work("bfloat16")
    assert work.expert_bytes == work.page_bytes == 2 * 11_796_480
    assert (work.num_layers, work.moe_layers, work.experts_per_token) == (28, 27, 6)
    dense = 440_401_920 + 637_009_920 + 94_371_840 + 264_765_440 + 145_920
    assert work.always_bytes == {"bfloat16": 2 * dense, "float32": 4 * 8_850_816 // 2}
    assert 6e9 < operations_per_token(published_model()) < 6.7e9


# Measured on two cores of a Xeon (docs/performance.md), behind short prompts.
def test_decode_in_memory_is_predicted_within_a_fifth() -> None:
    assert cpu_speed(W4, SHORT, None, XEON).decode.best == pytest.approx(10.6, rel=0.2)
    assert cpu_speed(W2, SHORT, None, XEON).decode.best == pytest.approx(17.6, rel=0.2)


@pytest.mark.parametrize(
    ("model", "hit_share", "gb_s", "measured"),
    [(W4, 0.45, 1.75, 3.2), (W2, 0.45, 1.5, 4.5)],
    ids=["w4", "w2"],
)
def test_decode_from_disk_is_predicted_within_a_fifth(
    model: object, hit_share: float, gb_s: float, measured: float
) -> None:
    assert model in (W4, W2)
    rates = Rates(gb_s * 1e9, 27e9, 0.62e12, 0.001, 0.00022)
    speed = cpu_speed(W4 if model is W4 else W2, SHORT, hit_share, rates, is_measured=True)
    assert speed.decode.best == pytest.approx(measured, rel=0.2)
    assert speed.decode.low < measured < speed.decode.high
    assert speed.is_measured


def test_more_of_anything_is_never_slower() -> None:
    speeds = [cpu_speed(W4, SHORT, share / 10, XEON).decode.best for share in range(11)]
    assert speeds == sorted(speeds)
    for share in (0.0, 0.1, 0.3, 0.5, 0.77, 1.0, 1.5):
        hits = HitRates.of(share)
        assert 0 <= hits.uniform <= hits.traced <= hits.sticky <= 1
    assert HitRates.of(0.5).traced == 0.6
    assert HitRates.of(0.4).traced == pytest.approx(0.51)


def test_what_is_assumed_has_a_wider_band_than_what_is_measured() -> None:
    measured, assumed = cpu_speed(W4, SHORT, 1.0, is_measured=True), cpu_speed(W4, SHORT, 1.0)
    assert measured.decode.best == assumed.decode.best
    assert assumed.decode.low < measured.decode.low < measured.decode.high < assumed.decode.high
    assert (measured.is_measured, assumed.is_measured) == (True, False)


def test_a_gpu_reads_what_every_token_reads_and_then_waits_for_its_experts() -> None:
    gpu = find_gpu_model("rtx3060-12gb")
    chat = ChatPlan(1024, "bfloat16", "bfloat16")
    plan = plan_gpu(W4, chat, gpu.usable_bytes, Budget(64 * GIB))
    rates = GpuRates(288e9, 24e9, 18e12)
    work, hits = W4.decode_work("bfloat16"), HitRates.of(plan.resident_share)
    always = sum(work.always_bytes.values()) + 57344 * 512
    times = ExpertTimes.of(work, rates, ASSUMED)
    seconds = {
        name: 0.004
        + 28 * 0.0001
        + always / 288e9
        + 27 * layer_seconds(times, 6, hits.traced, 1.0, MISS_RULES[name])
        for name in MISS_RULES
    }
    speed = gpu_speed(W4, plan, rates)
    assert speed.by_miss_rule == {name: pytest.approx(1 / found) for name, found in seconds.items()}
    assert speed.decode.best == max(speed.by_miss_rule.values()) == speed.by_miss_rule[str(speed.miss_rule)]
    assert 40 < speed.decode.best < 80
    assert speed.prefill is not None
    assert speed.prefill.best < 18e12 / 6e9


def test_less_ram_beside_a_gpu_is_slower_and_named() -> None:
    """Experts that RAM does not hold come from the disk."""
    chat = SHORT_ON_GPU
    rates = find_gpu_model("rtx4060-laptop").rates
    plans = [plan_gpu(W4, chat, 8 * GIB, Budget(gib * GIB)) for gib in (4, 8, 12, 20)]
    assert [plan.tier for plan in plans] == ["paged from disk"] * 3 + ["paged"]
    speeds = [gpu_speed(W4, plan, rates) for plan in plans]
    assert [speed.decode.best for speed in speeds] == sorted(speed.decode.best for speed in speeds)
    assert speeds[0].decode.best < speeds[-1].decode.best / 2
    assert speeds[0].prefill is not None
    assert speeds[-1].prefill is not None
    assert speeds[0].prefill.best < speeds[-1].prefill.best
    changed = gpu_sensitivity(W4, plans[0], rates)
    assert changed.keys() == {"link", "cpu", "disk", "hits"}
    assert gpu_sensitivity(W4, plans[-1], rates).keys() == {"link", "cpu", "hits"}
    for name, band in changed.items():
        assert band.low <= speeds[0].decode.best <= band.high, name
    assert changed["disk"].low < 0.8 * speeds[0].decode.best, "it waits for the disk above all"


def test_nothing_is_missing_where_all_experts_are_on_the_gpu() -> None:
    rates = find_gpu_model("rtx3090").rates
    plan = plan_gpu(W4, SHORT_ON_GPU, 24 * GIB, Budget(8 * GIB))
    speed = gpu_speed(W4, plan, rates)
    assert (plan.tier, speed.miss_rule, gpu_sensitivity(W4, plan, rates)) == (
        "resident",
        None,
        {},
    )
