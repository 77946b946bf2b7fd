"""The pyramid: min, max, last and count of every series in buckets of 16, 64, 256 … steps. Pure functions over numpy arrays.

A bucket of size n holds the steps k·n + 1 … (k + 1)·n that there are. Any zoom of a run then reads a bounded number of
buckets, and no spike is lost: the extremes of a bucket are the exact extremes of its steps. NaN is no value: it counts
neither as a minimum nor as a maximum.
"""

from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from mechanicd.runs import StepOutcome, record_dtype, record_layout

SERIES: Final = ("delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq", "h", "scale", "effective_lr")
"""One series per scale group each, in this order; base_lr, one per run, comes last."""

FINEST: Final = 16
FACTOR: Final = 4
CHUNK_BYTES: Final = 2**20

Buckets = NDArray[Any]


@lru_cache(maxsize=256)
def dtype(groups: int) -> "np.dtype[Any]":
    """One bucket. `min`, `max` and `last` are float64 (7·G + 1); times are nanoseconds since 1970."""
    width = len(SERIES) * groups + 1
    return np.dtype(
        [
            ("size", "<i8"),
            ("first_step", "<i8"),
            ("last_step", "<i8"),
            ("count", "<i8"),
            ("non_finite", "<i8"),
            ("held", "<i8"),
            ("first_time", "<i8"),
            ("last_time", "<i8"),
            ("min", "<f8", (width,)),
            ("max", "<f8", (width,)),
            ("last", "<f8", (width,)),
        ]
    )


@lru_cache(maxsize=256)
def chunk_steps(groups: int) -> int:
    """How many steps a chunk spans: 1,024, or fewer for runs with more than about 20 scale groups."""
    size = FINEST
    while size < 1024 and size * FACTOR * record_layout(groups).size <= CHUNK_BYTES:
        size *= FACTOR
    return size


def of_steps(groups: int, records: bytes, size: int = FINEST) -> Buckets:
    """Buckets of `size` steps from packed records in step order; size 1 gives a bucket a step."""
    rows = np.frombuffer(records, record_dtype(groups))
    buckets = np.empty(len(rows), dtype(groups))
    if not len(rows):
        return buckets
    lr = np.where(rows["has_lr"] != 0, rows["base_lr"], np.nan)
    values = np.empty((len(rows), len(SERIES) * groups + 1))
    values[:, : 6 * groups] = rows["values"].reshape(len(rows), 6 * groups)
    with np.errstate(over="ignore", invalid="ignore"):
        values[:, 6 * groups : 7 * groups] = rows["values"][:, 5, :] * lr[:, None]
    values[:, -1] = lr
    buckets["size"] = 1
    buckets["first_step"] = buckets["last_step"] = rows["step"]
    buckets["count"] = 1
    buckets["non_finite"] = rows["outcome"] == StepOutcome.NON_FINITE
    buckets["held"] = rows["outcome"] == StepOutcome.HELD
    buckets["first_time"] = buckets["last_time"] = rows["time"]
    for field in ("min", "max", "last"):
        buckets[field] = values
    return merge(buckets, size) if size > 1 else buckets


def merge(buckets: Buckets, size: int) -> Buckets:
    """Merges buckets that lie in the same `size` steps. The buckets must be in step order."""
    return gather(buckets, size, begins(buckets, size))


def begins(buckets: Buckets, size: int, places: Any = None) -> Any:
    """Which buckets are the first of their `size` steps. The buckets must be in step order.

    Args:
        places: which of several runs each bucket is of, if there are several, one after the other.
    """
    keys = (buckets["first_step"] - 1) // size
    found = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=found[1:])
    if places is not None:
        found[1:] |= places[1:] != places[:-1]
    return found


def gather(buckets: Buckets, size: int, begins: Any) -> Buckets:
    """Merges buckets into ones of `size` steps, which begin where `begins` says so."""
    if begins.all():  # nothing to merge
        merged = buckets.copy()
        merged["size"] = size
        return merged
    starts = np.flatnonzero(begins)
    ends = np.concatenate((starts[1:], [len(buckets)])) - 1
    merged = np.empty(len(starts), buckets.dtype)
    merged["size"] = size
    merged["first_step"] = buckets["first_step"][starts]
    merged["first_time"] = buckets["first_time"][starts]
    for field in ("last_step", "last_time", "last"):
        merged[field] = buckets[field][ends]
    for field in ("count", "non_finite", "held"):
        merged[field] = np.add.reduceat(buckets[field], starts)
    merged["min"] = np.fmin.reduceat(buckets["min"], starts)
    merged["max"] = np.fmax.reduceat(buckets["max"], starts)
    return merged


def upper(groups: int, fine: Buckets, size: int, span: int) -> Buckets:
    """All levels above one of `size` steps, up to buckets of `span` steps, the lowest level first."""
    levels = [np.empty(0, dtype(groups))]
    while size < span:
        size *= FACTOR
        fine = merge(fine, size)
        levels.append(fine)
    return np.concatenate(levels)


def size_for(span: int, most: int) -> int:
    """The smallest size, of 1, 16, 64, 256 …, at which `span` steps are at most about `most` buckets."""
    size = 1
    while span > most * size:
        size = FINEST if size == 1 else size * FACTOR
    return size
