"""Curves for the screen, from the buckets of the store. Pure functions over numpy arrays.

A column consists of whole buckets of consecutive steps. Its min and max are the exact extremes of its steps, however many
there are, so the screen can't hide a spike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from mechanicd.store import SERIES as STORED
from mechanicd.store import Buckets

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
XAxis = Literal["step", "relative", "time"]

SERIES: Final[dict[str, tuple[str, Callable[[Floats], Floats] | None]]] = {
    "S": ("scale", None),
    "h": ("h", None),
    "grad_norm": ("g_norm_sq", np.sqrt),
    "param_norm": ("x_norm_sq", np.sqrt),
    "base_lr": ("base_lr", None),
    "effective_lr": ("effective_lr", None),
    "delta_dot_g": ("delta_dot_g", None),
    "delta_dot_x": ("delta_dot_x", None),
}
"""Each series of the page: the stored series that it comes from, and a conversion, which must keep the order of values."""

X_AXES: Final = ("step", "relative", "time")


@dataclass(frozen=True, slots=True)
class Axis:
    """The x axis: by step number, by seconds since the run's first step, or by ms since 1970.

    Attributes:
        origin: the time of the run's first step, ns since 1970.
    """

    kind: XAxis = "step"
    origin: int = 0

    def of_times(self, times: Integers) -> Floats:
        """Times (ns since 1970) in the units of a time axis."""
        origin, unit = (self.origin, 1e9) if self.kind == "relative" else (0, 1e6)
        return np.divide(times - origin, unit, dtype=np.float64)

    def meets(self, buckets: Buckets, x0: float | None, x1: float | None) -> NDArray[np.bool_]:
        """Which buckets overlap [x0, x1]; None: no bound."""
        if self.kind == "step":
            first, last = buckets["first_step"], buckets["last_step"]
        else:
            first, last = self.of_times(buckets["first_time"]), self.of_times(buckets["last_time"])
        met = np.ones(len(buckets), np.bool_)
        if x0 is not None:
            met &= last >= x0
        if x1 is not None:
            met &= first <= x1
        return met

    def middle(self, first: Buckets, last: Buckets) -> Floats:
        """The x of each column: the middle between its first and its last bucket. Never decreases."""
        if self.kind == "step":
            middle: Floats = (first["first_step"] + last["last_step"]) / 2.0
            return middle
        begin, end = self.of_times(first["first_time"]), self.of_times(last["last_time"])
        return np.maximum.accumulate((begin + end) / 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A curve: float64 and int64 arrays of one length. NaN where no step of a column has a value."""

    x: Floats
    first: Integers
    last: Integers
    min: Floats
    max: Floats
    end: Floats
    non_finite: Integers
    held: Integers

    @property
    def exact(self) -> bool:
        """Whether each column is one step."""
        return bool(np.all(self.first == self.last))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def extremes(buckets: Buckets, series: str, group: int | None) -> tuple[Floats, Floats, Floats]:
    """The min, max and last value of a series in each bucket.

    Args:
        group: a scale group, or None for all: then the least minimum, and the largest maximum and last value.
    """
    stored, way = SERIES[series]
    width = buckets.dtype["min"].shape[0]
    groups = (width - 1) // len(STORED)
    if stored == "base_lr":
        place = slice(width - 1, width)
    else:
        at = STORED.index(stored) * groups
        place = slice(at, at + groups) if group is None else slice(at + group, at + group + 1)
    low, high, end = (np.ascontiguousarray(buckets[name][:, place]) for name in ("min", "max", "last"))
    found = np.fmin.reduce(low, axis=1), np.fmax.reduce(high, axis=1), np.fmax.reduce(end, axis=1)
    return found if way is None else (way(found[0]), way(found[1]), way(found[2]))


def starts_of(buckets: Buckets, most: int) -> Integers:
    """The first bucket of each column: at most `most` columns, and at least about half as many if there are enough buckets.

    Columns are cut at fixed steps, so while a run grows they stay the same until all of them double in width.
    """
    if not len(buckets):
        return np.empty(0, np.int64)
    before = buckets["first_step"] - 1
    unit = int(buckets["size"].max())
    times = -(-len(buckets) // most)
    while True:
        keys = before // (unit * times)
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        if len(starts) <= most:
            return starts
        times += 1


def columns(buckets: Buckets, series: str, group: int | None, most: int, axis: Axis) -> Columns:
    """The curve of a series over buckets in step order, in at most `most` columns."""
    starts = starts_of(buckets, most)
    ends = np.append(starts[1:], len(buckets))[: len(starts)] - 1
    low, high, end = extremes(buckets, series, group)
    if not len(starts):
        empty, none = np.empty(0), np.empty(0, np.int64)
        return Columns(x=empty, first=none, last=none, min=empty, max=empty, end=empty, non_finite=none, held=none)
    first, last = buckets[starts], buckets[ends]
    return Columns(
        x=axis.middle(first, last),
        first=np.ascontiguousarray(first["first_step"]),
        last=np.ascontiguousarray(last["last_step"]),
        min=np.fmin.reduceat(low, starts),
        max=np.fmax.reduceat(high, starts),
        end=end[ends],
        non_finite=np.add.reduceat(buckets["non_finite"], starts),
        held=np.add.reduceat(buckets["held"], starts),
    )


def heat(buckets: Buckets, names: tuple[str, ...], most: int, rows: int) -> dict[str, Any]:
    """S of each scale group over the steps: the largest in each column. Beyond `rows` groups, neighbors are merged.

    Returns:
        {"first", "last": steps of each column, "groups": the name of each row, "S": float64 (rows, columns)}
    """
    groups = len(names)
    starts = starts_of(buckets, most)
    at = STORED.index("scale") * groups
    high = buckets["max"][:, at : at + groups]
    together = -(-groups // rows)
    edges = list(range(0, groups, together))
    if len(starts):
        high = np.fmax.reduceat(np.fmax.reduceat(high, starts, axis=0), edges, axis=1)
        ends = np.append(starts[1:], len(buckets)) - 1
    else:
        high, ends = np.empty((0, len(edges))), starts
    titles = [names[edge] if together == 1 else f"{names[edge]} … {names[min(edge + together, groups) - 1]}" for edge in edges]
    return {
        "first": np.ascontiguousarray(buckets["first_step"][starts]),
        "last": np.ascontiguousarray(buckets["last_step"][ends]),
        "groups": titles,
        "S": np.ascontiguousarray(high.T),
    }
