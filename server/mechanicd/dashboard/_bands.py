"""Quantile bands: the spread of the runs of a group at each point of the x axis. Pure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mechanicd.dashboard._series import Floats

Curve = tuple[Floats, Floats]
"""Increasing x, and the value at each."""


def grid(curves: Sequence[Curve], x0: float | None, x1: float | None, points: int) -> Floats:
    """The points of the x axis for all groups: even steps from x0 to x1, by default over the range of the curves."""
    begins, ends = ([x[at] for x, _ in curves if len(x)] for at in (0, -1))
    if not begins:
        return np.empty(0)
    low = min(begins) if x0 is None else x0
    high = max(ends) if x1 is None else x1
    return np.linspace(low, high, points) if high > low else np.array([low])


def quantiles(curves: Sequence[Curve], points: Floats, wanted: Sequence[float]) -> dict[str, Any]:
    """Quantiles over the curves at each point. A curve counts from its start to its end, with its last value up to the point.

    Returns:
        {"q": float64 (quantiles, points), NaN where no curve counts; "n": the number of curves that count at each point}
    """
    values = np.full((len(curves), len(points)), np.nan)
    for row, (x, y) in zip(values, curves, strict=True):
        if len(x):
            at = np.searchsorted(x, points, side="right") - 1
            inside = (at >= 0) & (points <= x[-1])
            row[inside] = y[at[inside]]
    counts = np.count_nonzero(~np.isnan(values), axis=0)
    found = np.full((len(wanted), len(points)), np.nan)
    some = counts > 0
    if some.any():
        found[:, some] = np.nanquantile(values[:, some], wanted, axis=0)
    return {"q": found, "n": counts}
