"""The compiled inner loops of choosing codes against the plain torch code that they take the place of."""

from __future__ import annotations

import pytest
import torch

from ernie_local.kernels import native
from ernie_local.packing import QuantizedMatrix, find_format
from ernie_quant.gptq import gptq
from ernie_quant.grid import round_to_grid, search_grid
from ernie_quant.hessian import damped, second_moments
from ernie_quant.recipe import Recipe, quantize_matrix
from ernie_quant.refine import output_error, refine


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
@pytest.mark.parametrize("name", ["w4", "w3", "w2l", "w2", "w2s"])
@pytest.mark.parametrize(("rows", "columns"), [(37, 208), (16, 128), (5, 48)])
def test_compiled_steps_choose_as_torch_does(
    name: str, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    low_bit = find_format(name)
    generator = torch.Generator().manual_seed(rows)
    weights = torch.randn(rows, columns, generator=generator)
    common = torch.randn(900, 1, generator=generator)
    tokens = torch.randn(900, columns, generator=generator) + common
    hessian = damped(second_moments([tokens], torch.ones(900), columns).matrix)

    def quantize() -> list[QuantizedMatrix]:
        grid = search_grid(weights, low_bit, hessian.diagonal())
        chosen = gptq(weights, hessian, grid)
        return [round_to_grid(weights, grid), chosen, refine(weights, hessian, chosen, 1)]

    compiled = quantize()
    with monkeypatch.context() as context:
        context.setattr(native, "find_module", lambda: (None, "to compute with torch"))
        plain = quantize()
    # Sums are rounded in another order: a near tie may fall the other way, and moves what comes after it.
    # Refined 8-bit scales are nearly flat in their cost, so of these only the error is compared.
    for one, other in zip(compiled[:2], plain[:2], strict=True):
        assert (one.codes == other.codes).float().mean() > 0.98
        apart = (one.scales.int() - other.scales.int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).sum() <= max(1, 0.02 * apart.numel())
    for one, other in zip(compiled, plain, strict=True):
        assert output_error(weights, hessian, one) == pytest.approx(
            output_error(weights, hessian, other), rel=0.02
        )


@pytest.mark.filterwarnings("ignore::ernie_local.kernels.native.NativeModuleMissing")
@pytest.mark.parametrize("length", [1, 4, 12, 20, 33, 60, 150])
def test_compiled_searches_along_trellises_choose_as_torch_does(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings that are tried from every state, that are seen whole, and that take several blocks."""
    rows, columns = (20, 16 * length) if length < 60 else (3, 16 * length)
    generator = torch.Generator().manual_seed(length)
    weights = torch.randn(rows, columns, generator=generator)
    tokens = torch.randn(2 * columns, columns, generator=generator) + torch.randn(
        2 * columns, 1, generator=generator
    )
    hessian = damped(second_moments([tokens], torch.ones(2 * columns), columns).matrix)
    low_bit, recipe = find_format("w2t"), Recipe("gptq", sweeps=0)
    swept = Recipe("gptq", sweeps=1)
    compiled = [quantize_matrix(weights, low_bit, one, hessian) for one in (recipe, swept)]
    with monkeypatch.context() as context:
        context.setattr(native, "find_module", lambda: (None, "to compute with torch"))
        plain = [quantize_matrix(weights, low_bit, one, hessian) for one in (recipe, swept)]
    # A near tie that falls the other way moves what comes after it in the row.
    for one, other in zip(compiled, plain, strict=True):
        assert (one.codes == other.codes).float().mean() > (0.9 if length < 60 else 0.3)
        assert output_error(weights, hessian, one) == pytest.approx(
            output_error(weights, hessian, other), rel=0.02 if length < 60 else 0.06
        )
