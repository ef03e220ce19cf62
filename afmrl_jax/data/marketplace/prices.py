"""Prices of drawn garments, for shops that show them: no model reads one."""

from __future__ import annotations

from collections.abc import Mapping

from afmrl_jax.data.marketplace.world import ABSENT, seeded

BASES = {
    "shirt": 24, "sweater": 39, "jacket": 79, "tunic": 32, "dress": 49, "jumpsuit": 59,
    "poncho": 45, "dungarees": 55, "trousers": 42, "skirt": 34,
}  # fmt: skip
"""Euros, by type."""
CLOTHS = {"silk": 1.8, "linen": 1.25, "wool": 1.35, "polyester": 0.8}
"""What a material multiplies a price by; 1 for the others."""
DETAIL = 2.0
"""Euros for each detail that is there to be seen."""


def price_of(combination: Mapping[str, str], seller: str) -> float:
    """What a seller asks for a garment, in euros; always the same.

    Example:
        >>> price_of({"type": "dress", "material": "silk"}, "Elm & Co")
        85.9
    """
    details = sum(x not in ABSENT for key, x in combination.items() if key not in ("type", "color"))
    value = BASES.get(combination.get("type", ""), 40) + DETAIL * details
    value *= CLOTHS.get(combination.get("material", ""), 1.0)
    # Sellers differ by a sixth at most.
    value *= 0.85 + 0.3 * float(seeded("price", seller).random())
    return int(value) + 0.9
