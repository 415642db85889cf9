"""Matches both halves of each product in an adapter's files with the weights that it is added to.

A product may be added to one weight, to several that its training library had fused, and, where it fused the
experts of a bank too, to those of each expert.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ernie_local.adapters.settings import TRAIN_OTHERWISE, AdapterSettings
from ernie_local.checkpoint.header import StoredTensor
from ernie_local.checkpoint.names import map_name
from ernie_local.checkpoint.shapes import ExpectedShapes
from ernie_local.config import ModelConfig
from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

WEIGHT_DTYPES = ("F32", "F16", "BF16")
_PEFT_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight")
_PADDLE_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])")
# What Paddle fuses, with rows one after the other: gate before up, whatever the name says.
_PADDLE_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "up_gate_proj": ("gate_proj", "up_proj")}
_FUSED = ("gate_up_proj", "down_proj")  # the order in which PEFT wraps them: the first is the innermost
_WRAPPED = ".base_layer"
_ROWS_FIRST = (0, 20)  # the version of PEFT from which on experts of (experts, rows, columns) are taken so

# What other tensors in an adapter's file are, by what their names contain.
_OTHER_KINDS = (
    ("lora_magnitude_vector", "it is a magnitude of DoRA, which changes a weight in another way"),
    ("lora_embedding_", "it belongs to an adapter of an embedding, which adds to rows of a table"),
    ("modules_to_save", "it is a weight that was trained as a whole"),
    (".bias", "it is a bias, and only weights can be added to"),
)


@dataclass(frozen=True, slots=True)
class AddedTo:
    """One of our weights that a product is added to: rows of it from `first_row` on, for one expert."""

    name: str
    first_row: int
    num_rows: int
    expert: int = 0


@dataclass(frozen=True, slots=True)
class StoredProduct:
    """Both halves as they lie in files, or reversed there: (columns, rank) and (rank, rows), as in Paddle.

    lora_a: (experts * rank, columns), lora_b: (rows, rank * experts) with the expert as the fastest index.
    is_swapped: the product is the transpose of what is added. rows, columns: of that, for one expert.
    """

    module: str  # as the adapter names it
    lora_a: StoredTensor
    lora_b: StoredTensor
    targets: tuple[AddedTo, ...]
    rank: int
    scale: float
    rows: int
    columns: int
    num_experts: int = 1
    is_swapped: bool = False
    is_reversed: bool = False


def match_peft(
    tensors: Iterable[StoredTensor], settings: AdapterSettings, config: ModelConfig
) -> list[StoredProduct]:
    """The products in files of PEFT; ModelUnusable names the first tensor without a place in the model."""
    expected = ExpectedShapes(config)
    products = []
    for wrapped, (lora_a, lora_b) in _pair(tensors, _PEFT_NAME).items():
        module = wrapped.replace(_WRAPPED, "")
        product = StoredProduct(module, lora_a, lora_b, (), 0, 0.0, 0, 0)
        parts = map_name(f"{module}.weight", config.text.banks)
        if not parts:
            module = f"{module}.{_fused_parameter(product, wrapped.count(_WRAPPED), settings, config)}"
            parts = map_name(module, config.text.banks)
        rows, columns = _matrix_shape(product, parts[0].name, expected)
        num_experts = len({part.row for part in parts})
        product = replace(
            product,
            targets=tuple(AddedTo(p.name, rows * (p.half or 0), rows, p.row or 0) for p in parts),
            rank=settings.rank_of(module),
            scale=settings.scale_of(module),
            rows=rows if parts[0].half is None else 2 * rows,
            columns=columns,
            num_experts=num_experts,
            is_swapped=parts[0].transposed,
        )
        if num_experts > 1 and _is_swapped(product, settings):
            product = replace(product, is_swapped=True)
        _check_shapes(product, settings)
        products.append(product)
    return products


def match_paddle(
    tensors: Iterable[StoredTensor], settings: AdapterSettings, config: ModelConfig
) -> list[StoredProduct]:
    """As `match_peft`, for files of PaddleFormers and ERNIEKit."""
    expected = ExpectedShapes(config)
    products = []
    for module, (lora_a, lora_b) in _pair(tensors, _PADDLE_NAME).items():
        product = StoredProduct(
            module, lora_a, lora_b, (), settings.rank, settings.scale_of(module), 0, 0, is_reversed=True
        )
        parent, _, own = re.sub(r"^ernie\.", "model.", module).rpartition(".")
        targets: list[AddedTo] = []
        for name in _PADDLE_FUSED.get(own, (own,)):
            parts = map_name(f"{parent}.{name}.weight", config.text.banks)
            if not parts or parts[0].transposed:
                why = f"the model has {expected.describe()}, and no matrix of this name"
                raise _refuse(product, why, settings)
            rows, columns = _matrix_shape(product, parts[0].name, expected)
            targets.append(AddedTo(parts[0].name, product.rows, rows))
            product = replace(product, rows=product.rows + rows, columns=columns)
        product = replace(product, targets=tuple(targets))
        _check_shapes(product, settings)
        products.append(product)
    return products


def _pair(
    tensors: Iterable[StoredTensor], pattern: re.Pattern[str]
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Both halves by the name of their module."""
    halves: dict[str, dict[str, StoredTensor]] = {"A": {}, "B": {}}
    for tensor in tensors:
        match = pattern.fullmatch(tensor.name)
        if match is None:
            why = next((why for mark, why in _OTHER_KINDS if mark in tensor.name), None)
            why = why or "its name is not one that the library gives to a half of a product"
            raise ModelUnusable(f"{tensor} is neither lora_A nor lora_B of a weight", why, TRAIN_OTHERWISE)
        if tensor.dtype not in WEIGHT_DTYPES:
            raise ModelUnusable(
                f"{tensor} has the dtype {tensor.dtype}, expected one of {', '.join(WEIGHT_DTYPES)}",
                "the matrices of an adapter are floating-point numbers",
                "save the adapter in bfloat16, float16 or float32",
            )
        other = halves[match["half"]].setdefault(match["module"], tensor)
        if other is not tensor:
            raise _double(tensor, other.name)
    for half, missing in (("A", "B"), ("B", "A")):
        for module in halves[half].keys() - halves[missing].keys():
            raise ModelUnusable(
                f"{halves[half][module]} has no lora_{missing} beside it; the files have "
                f"{len(halves['A'])} lora_A and {len(halves['B'])} lora_B",
                "what is added to a weight is the product of both",
                "copy the adapter's files again, or save it again with the library that trained it",
            )
    return {module: (lora_a, halves["B"][module]) for module, lora_a in halves["A"].items()}


def _fused_parameter(
    product: StoredProduct, depth: int, settings: AdapterSettings, config: ModelConfig
) -> str:
    """Which tensor of fused experts it adds to: the name of the module is the same for both.

    PEFT wraps the experts once for each that was trained; `depth` wrappers lie around this one.
    """
    present = [one for one in _FUSED if map_name(f"{product.module}.{one}", config.text.banks)]
    trained = [one for one in present if _is_trained(f"{product.module}.{one}", settings)]
    if not present:
        described = ExpectedShapes(config).describe()
        raise _refuse(product, f"the model has {described}, and no weight of this name", settings)
    if depth >= len(trained):
        raise _refuse(
            product,
            f"target_parameters in {settings.where} names {len(trained)} of the {len(present)} tensors of "
            f"fused experts, and this one has {depth} around it",
            settings,
        )
    return trained[len(trained) - 1 - depth]


def _is_trained(name: str, settings: AdapterSettings) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in settings.target_parameters)


def _matrix_shape(product: StoredProduct, name: str, expected: ExpectedShapes) -> tuple[int, int]:
    """(rows, columns) of our weight `name`."""
    shape = expected.shape(name)
    if name == "embed_tokens.weight" or (name == "lm_head.weight" and shape is None):
        why = "the embedding is looked up and not multiplied, and a tied head shares it"
        raise ModelUnusable(f"{product.lora_a} adds to {name}", why, TRAIN_OTHERWISE)
    if shape is None or len(shape) != 2:
        raise ModelUnusable(
            f"{product.lora_a} adds to {name}, which is no matrix of the model",
            f"by config.json the model has {expected.describe()}",
            "name an adapter that was trained on this model",
        )
    return shape


def _is_swapped(product: StoredProduct, settings: AdapterSettings) -> bool:
    """Whether its halves stand for the transposed product, as in PEFT until 0.19."""
    if product.rows != product.columns:
        return product.lora_a.shape[-1:] == (product.rows,)
    if not settings.version:
        raise _refuse(
            product,
            f"both sides have {product.rows} elements, and {settings.where} does not say peft_version, "
            "which decides which side is which",
            settings,
        )
    return settings.version < _ROWS_FIRST


def _check_shapes(product: StoredProduct, settings: AdapterSettings) -> None:
    sides = (product.rows, product.columns) if product.is_swapped else (product.columns, product.rows)
    inner = product.rank * product.num_experts
    for tensor, wanted in ((product.lora_a, (inner, sides[0])), (product.lora_b, (sides[1], inner))):
        if tensor.shape != (wanted[::-1] if product.is_reversed else wanted):
            of_experts = f" for each of {product.num_experts} experts" if product.num_experts > 1 else ""
            raise ModelUnusable(
                f"{tensor} has the shape {tensor.shape}, "
                f"expected {wanted[::-1] if product.is_reversed else wanted}",
                f"{settings.where} gives it the rank {product.rank}{of_experts}, and the model's weight "
                f"{product.targets[0].name} follows from its config.json{_trained_on(settings)}",
                "name an adapter that was trained on this model",
            )


def check_once(products: Iterable[StoredProduct]) -> None:
    """ModelUnusable if two products are added to one weight."""
    seen: dict[str, StoredProduct] = {}
    for product in products:
        for target in product.targets:
            if target.name in seen:
                raise _double(product.lora_a, seen[target.name].lora_a.name)
            seen[target.name] = product


def _double(tensor: StoredTensor, other: str) -> ModelUnusable:
    return ModelUnusable(
        f"{tensor} is there twice, also as {show(other)}",
        "both stand for the same weight of the model, and only one can be right",
        "save the adapter again with the library that trained it",
    )


def _refuse(product: StoredProduct, why: str, settings: AdapterSettings) -> ModelUnusable:
    return ModelUnusable(
        f"{product.lora_a} of shape {product.lora_a.shape} has no place in this model",
        f"{why}{_trained_on(settings)}",
        "name an adapter that was trained on this model",
    )


def _trained_on(settings: AdapterSettings) -> str:
    return f"; the adapter was trained on {show(settings.base_model)}" if settings.base_model else ""
