"""What several seeds say together: the spread of a figure, and whether a difference holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, deviation between seeds and the 95 % interval of the mean (Student's t).

    Args:
        values: a figure of each seed, one or more.

    Returns:
        `mean` and `values`, and from two seeds on `deviation`, `low` and `high`; rounded to
        thousandths.
    """
    array = np.asarray(values, float)
    mean = float(array.mean())
    out: dict[str, Any] = {"mean": round(mean, 3), "values": [round(v, 3) for v in array.tolist()]}
    if len(array) > 1:
        deviation = float(array.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(array) - 1)) * deviation / len(array) ** 0.5
        out |= {"deviation": round(deviation, 3)}
        out |= {"low": round(mean - half, 3), "high": round(mean + half, 3)}
    return out


def verdict(found: dict[str, Any]) -> str:
    """What the interval of a difference over seeds, as `spread` gives it, says."""
    if "low" not in found:
        return "one seed says nothing"
    if found["low"] > 0:
        return "holds"
    return "reversed" if found["high"] < 0 else "not shown"
