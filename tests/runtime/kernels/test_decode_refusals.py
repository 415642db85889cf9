"""What the operators of a decoded token refuse: Python in three lines, the native code by doing nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ernie_local.errors import UsageError
from ernie_local.kernels import native
from ernie_local.kernels.attention import decode_attention
from ernie_local.kernels.norm_route import rms_norm, route
from tests.runtime.decode_cases import Case, make_case, randn

MODULE = native.native_module()


@pytest.fixture(params=[True, False], ids=["native", "torch"])
def either_code(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled kernels, then what runs without them."""
    if request.param:
        if MODULE is None:
            pytest.skip("the native module was not built here")
    else:
        monkeypatch.setattr("ernie_local.kernels.operators.native_module", lambda: None)
        monkeypatch.setattr("ernie_local.kernels.operators.warn_without_native", lambda: None)


def check_lines(error: UsageError, op: str, message: str) -> None:
    lines = str(error).split("\n")
    assert len(lines) == 3
    assert lines[0].startswith(f"{op}: ")
    assert message in lines[0]
    assert lines[2].startswith("try: ")


@pytest.mark.parametrize(
    ("hidden", "weight", "message"),
    [
        (
            torch.ones(16),
            torch.ones(16),
            "hidden is torch.float32 (16,), wanted torch.float32 (tokens, size)",
        ),
        (torch.ones(1, 16).bfloat16(), torch.ones(16), "hidden is torch.bfloat16 (1, 16)"),
        (torch.ones(1, 16), torch.ones(15), "weight is torch.float32 (15,), wanted torch.float32 (16,)"),
        (torch.ones(1, 16), torch.ones(1, 16), "weight is torch.float32 (1, 16), wanted torch.float32 (16,)"),
        (
            torch.ones(1, 16),
            torch.ones(16).half(),
            "weight is torch.float16 (16,), wanted torch.float32 (16,)",
        ),
    ],
)
def test_norm_refuses(either_code: None, hidden: torch.Tensor, weight: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        rms_norm(hidden, weight, 1e-5)
    check_lines(caught.value, "rms_norm", message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": torch.ones(16)}, "hidden is torch.float32 (16,)"),
        ({"hidden": torch.tensor(1.0)}, "hidden is torch.float32 ()"),
        ({"hidden": torch.ones(2, 16).double()}, "hidden is torch.float64 (2, 16)"),
        ({"hidden": torch.ones(2, 15)}, "weight is torch.float32 (8, 16), wanted torch.float32 (8, 15)"),
        ({"weight": torch.ones(16)}, "weight is torch.float32 (16,)"),
        ({"weight": torch.ones(8, 16).half()}, "weight is torch.float16 (8, 16)"),
        ({"bias": torch.ones(7)}, "bias is torch.float32 (7,), wanted torch.float32 (8,)"),
        ({"bias": torch.ones(9)}, "bias is torch.float32 (9,), wanted torch.float32 (8,)"),
        ({"bias": torch.ones(8, 1)}, "bias is torch.float32 (8, 1), wanted torch.float32 (8,)"),
        ({"top_k": 0}, "top_k is 0, there are 8 experts"),
        ({"top_k": -1}, "top_k is -1, there are 8 experts"),
        ({"top_k": 9}, "top_k is 9, there are 8 experts"),
        ({"top_k": 1 << 60}, "top_k is 1152921504606846976, there are 8 experts"),
    ],
)
def test_route_refuses(either_code: None, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"hidden": torch.ones(2, 16), "weight": torch.ones(8, 16)}
    arguments |= {"bias": torch.ones(8), "top_k": 2, "norm_min": 1e-12} | changes
    with pytest.raises(UsageError) as caught:
        route(**arguments)
    check_lines(caught.value, "route", message)


FLOATS = make_case(4, 2, 16, torch.float32, 5, 8)
INT8 = make_case(4, 2, 16, torch.int8, 5, 8)
REFUSED: list[tuple[Case, str]] = [
    (FLOATS._replace(queries=randn(4, 18)), "keys is torch.float32 (2, 16), wanted torch.float32 (2, 18)"),
    (FLOATS._replace(queries=randn(64)), "queries is torch.float32 (64,)"),
    (FLOATS._replace(queries=randn(4, 16).half()), "queries is torch.float16 (4, 16)"),
    (FLOATS._replace(queries=randn(3, 16)), "queries is torch.float32 (3, 16) for 2 heads of keys"),
    (FLOATS._replace(queries=randn(0, 16)), "queries is torch.float32 (0, 16) for 2 heads of keys"),
    (FLOATS._replace(queries=randn(4, 15)), "queries is torch.float32 (4, 15) for 2 heads of keys"),
    (FLOATS._replace(queries=randn(4, 0)), "queries is torch.float32 (4, 0) for 2 heads of keys"),
    (FLOATS._replace(keys=randn(4, 16)), "keys is torch.float32 (4, 16), wanted torch.float32 (2, 16)"),
    (FLOATS._replace(values=randn(2, 15)), "values is torch.float32 (2, 15), wanted torch.float32 (2, 16)"),
    (FLOATS._replace(values=randn(2, 16).double()), "values is torch.float64 (2, 16)"),
    (FLOATS._replace(cosines=randn(16)), "cosines is torch.float32 (16,), wanted torch.float32 (8,)"),
    (FLOATS._replace(sines=randn(1, 8)), "sines is torch.float32 (1, 8), wanted torch.float32 (8,)"),
    (FLOATS._replace(cached_keys=randn(8, 16)), "cached_keys is torch.float32 (8, 16)"),
    (FLOATS._replace(cached_keys=randn(0, 8, 16)), "cached_keys is torch.float32 (0, 8, 16)"),
    (FLOATS._replace(cached_keys=randn(2, 8, 16).double()), "cached_keys is torch.float64 (2, 8, 16)"),
    (FLOATS._replace(cached_keys=randn(2, 8, 18)), "cached_keys is torch.float32 (2, 8, 18), wanted"),
    (FLOATS._replace(cached_values=randn(2, 7, 16)), "cached_values is torch.float32 (2, 7, 16), wanted"),
    (FLOATS._replace(cached_values=randn(2, 8, 16).half()), "cached_values is torch.float16 (2, 8, 16)"),
    (FLOATS._replace(cached_values=randn(2, 16, 16)[:, ::2]), "cached_values (2, 8, 16) has strides (256"),
    (FLOATS._replace(key_scales=randn(2, 8, 1)), "key_scales is torch.float32 (2, 8, 1) for a cache in"),
    (INT8._replace(key_scales=None), "key_scales is missing for a cache in torch.int8"),
    (INT8._replace(value_scales=None), "value_scales is missing for a cache in torch.int8"),
    (INT8._replace(value_scales=randn(2, 7, 1)), "value_scales is torch.float32 (2, 7, 1), wanted"),
    (INT8._replace(value_scales=randn(2, 8)), "value_scales is torch.float32 (2, 8), wanted"),
    (INT8._replace(key_scales=randn(2, 8, 2)[..., :1]), "key_scales (2, 8, 1) has strides (16, 2, 1)"),
    (FLOATS._replace(length=8), "length is 8, the capacity 8"),
    (FLOATS._replace(length=-1), "length is -1, the capacity 8"),
    (FLOATS._replace(length=1 << 62), "length is 4611686018427387904, the capacity 8"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_attention_refuses_and_writes_nothing(either_code: None, case: Case, message: str) -> None:
    case = case.copy() if "strides" not in message else case
    before = [part.clone() for part in case.cache]
    with pytest.raises(UsageError) as caught:
        decode_attention(*case.arguments)
    check_lines(caught.value, "decode_attention", message)
    for part, as_it_was in zip(case.cache, before, strict=True):
        assert torch.equal(part.nan_to_num(), as_it_was.nan_to_num())


@pytest.mark.parametrize(("case", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_the_native_code_refuses_by_itself(case: Case, message: str) -> None:
    """Whatever Python has checked: a wrong number must not read or write outside of a tensor."""
    if MODULE is None:
        pytest.skip("the native module was not built here")
    out = torch.full(case.queries.shape, 7.0)
    assert not MODULE.decode_attention(*case, out)
    assert (out == 7).all()


def test_the_native_code_refuses_outputs_that_do_not_fit() -> None:
    if MODULE is None:
        pytest.skip("the native module was not built here")
    assert not MODULE.decode_attention(*FLOATS.copy(), torch.empty(4, 15))
    assert not MODULE.decode_attention(*FLOATS.copy(), torch.empty(16, 4).T)
    assert not MODULE.decode_attention(*FLOATS.copy(), torch.empty(4, 16, device="meta"))
    hidden, weight, bias = randn(2, 16), randn(8, 16), randn(8)
    ids, weights = torch.empty(2, 3, dtype=torch.int64), torch.empty(2, 3)
    assert MODULE.route(hidden, weight, bias, 3, 1.0, ids, weights)
    for top_k, wrong_ids, wrong_weights in (
        (2, ids, weights),
        (4, ids, weights),
        (3, ids.int(), weights),
        (3, ids[:1], weights),
        (3, ids, weights[:, :2]),
        (0, ids[:, :0], weights[:, :0]),
        (9, ids.repeat(1, 3), weights.repeat(1, 3)),
    ):
        assert not MODULE.route(hidden, weight, bias, top_k, 1.0, wrong_ids, wrong_weights)
    assert not MODULE.rms_norm(hidden, weight[0], 1.0, torch.empty(1, 16))
    assert not MODULE.rms_norm(hidden, weight[0].to("meta"), 1.0, torch.empty(2, 16))


def test_no_tokens_give_no_rows(either_code: None) -> None:
    assert rms_norm(torch.empty(0, 16), torch.ones(16), 1e-5).shape == (0, 16)
    expert_ids, weights = route(torch.empty(0, 16), torch.ones(8, 16), torch.ones(8), 2, 1e-12)
    assert expert_ids.shape == weights.shape == (0, 2)


def test_without_the_native_module_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [
        rms_norm(randn(2, 16), randn(16), 1e-5),
        *route(randn(2, 16), randn(8, 16), randn(8), 2, 1e-12),
    ]
    expected_case, case = INT8.copy(), INT8.copy()
    expected.append(decode_attention(*expected_case.arguments))
    monkeypatch.setattr("ernie_local.kernels.operators.native_module", lambda: None)
    warned: list[None] = []
    monkeypatch.setattr("ernie_local.kernels.operators.warn_without_native", lambda: warned.append(None))
    actual = [rms_norm(randn(2, 16), randn(16), 1e-5), *route(randn(2, 16), randn(8, 16), randn(8), 2, 1e-12)]
    actual.append(decode_attention(*case.arguments))
    assert len(warned) == 3
    for one, other in zip([*actual, *case.cache], [*expected, *expected_case.cache], strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)
