"""Reads the settings of the 3-D position encoding, which the layouts spell in several ways.

Theta and the split of frequencies stand in rope_parameters, rope_scaling, rope_theta and freq_allocation.
"""

from __future__ import annotations

from dataclasses import dataclass

from ernie_local.config.keys import Keys


@dataclass(frozen=True, slots=True)
class RopeSettings:
    """What the file says; `section` and `temporal` are None where it is silent."""

    theta: float
    section: tuple[int, int, int] | None
    temporal: int | None  # freq_allocation: how many of the frequencies go to the temporal axis


def read_rope(keys: Keys, default_theta: float | None, types: tuple[str, ...]) -> RopeSettings:
    """Theta and split of frequencies from `keys`; only the rope `types` named are implemented.

    transformers lets rope_scaling replace rope_parameters, a theta inside of either win over one beside
    them, and its class default stand in for a missing one; the same here.
    """
    keys.only("partial_rotary_factor", 1.0, 1)
    filled = [key for key in ("rope_scaling", "rope_parameters") if keys.value(key) not in (None, {})]
    if not filled:
        return RopeSettings(keys.number("rope_theta", default_theta), None, _frequencies(keys))
    inner = keys.section(filled[0])
    inner.only("type", *types)
    inner.only("rope_type", *types)
    inner.only("partial_rotary_factor", 1.0, 1)
    outer_theta = keys.number("rope_theta", default_theta) if not inner.has("rope_theta") else None
    keys.value("rope_theta")
    theta = inner.number("rope_theta", outer_theta)
    section = None
    if inner.has("mrope_section"):
        height, width, temporal = inner.integers("mrope_section", length=3)
        section = (height, width, temporal)
    inner_frequencies, outer_frequencies = _frequencies(inner), _frequencies(keys)
    if None not in (inner_frequencies, outer_frequencies) and inner_frequencies != outer_frequencies:
        raise keys.refuse(
            "freq_allocation", f"is {outer_frequencies}, but {filled[0]} has {inner_frequencies}"
        )
    inner.finish()
    frequencies = inner_frequencies if inner_frequencies is not None else outer_frequencies
    return RopeSettings(theta, section, frequencies)


def settle_section(
    keys: Keys, rope: RopeSettings, head_dim: int, default: tuple[int, int, int] | None
) -> tuple[int, int, int]:
    """(height, width, temporal), checked to cover the half head that it splits.

    `default` stands in where the file has no mrope_section; None derives it from freq_allocation.
    Height and width take turns within the first frequencies, so both must have the same number.
    """
    section, origin = rope.section, "is"
    if section is None and default is not None:
        section, origin = default, "is absent, and its default"
    elif section is None:
        temporal = rope.temporal if rope.temporal is not None else 20
        rest = (head_dim // 2 - temporal) // 2
        section, origin = (rest, rest, temporal), f"follows from freq_allocation {temporal} as"
    height, width, temporal = section
    if head_dim % 2 or sum(section) != head_dim // 2:
        raise keys.refuse(
            "mrope_section",
            f"{origin} {list(section)} with sum {sum(section)}, half of head_dim {head_dim} is due",
        )
    if height != width or temporal < 1 or height < 0:
        raise keys.refuse(
            "mrope_section", f"{origin} {list(section)}, equal height and width and a temporal part are due"
        )
    if rope.temporal not in (None, temporal):
        raise keys.refuse("freq_allocation", f"is {rope.temporal}, but mrope_section has {temporal}")
    return section


def _frequencies(keys: Keys) -> int | None:
    if not keys.has("freq_allocation"):
        keys.value("freq_allocation")
        return None
    return keys.integer("freq_allocation", low=1)
