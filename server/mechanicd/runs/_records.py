"""How steps are packed: one little-endian record per step, of one size within a run.

    step u64 · time i64 (ns) · outcome u8 · has_lr u8 · 6 pad · base_lr f64
    · delta_dot_g[G] · delta_dot_x[G] · g_norm_sq[G] · x_norm_sq[G] · h[G] · scale[G], all f64

Packing at the step and appending bytes keeps the store out of the step's way.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np

_HEADER: Final = struct.Struct("<QqBB6xd")
_WIDE: Final = 256
"""From so many scale groups on, numpy packs a step faster than `struct` does."""


class StepRow(NamedTuple):
    """One step as stored: its inputs and its results. Each tuple holds one float64 per scale group.

    `outcome` is a StepOutcome, or a number from a newer mechanicd.
    """

    step: int
    time: int
    outcome: int
    delta_dot_g: tuple[float, ...]
    delta_dot_x: tuple[float, ...]
    g_norm_sq: tuple[float, ...]
    x_norm_sq: tuple[float, ...]
    h: tuple[float, ...]
    scale: tuple[float, ...]
    base_lr: float | None
    branch: int = 0


class StepColumns(NamedTuple):
    """Consecutive steps as columns. The last six hold the values of all groups of the first step, then of the second, ….

    `time` is in nanoseconds since 1970. `base_lr` is None where the trainer sent none.
    """

    step: Sequence[int]
    time: Sequence[int]
    outcome: Sequence[int]
    base_lr: Sequence[float | None]
    delta_dot_g: Sequence[float]
    delta_dot_x: Sequence[float]
    g_norm_sq: Sequence[float]
    x_norm_sq: Sequence[float]
    h: Sequence[float]
    scale: Sequence[float]


@lru_cache(maxsize=256)
def layout(groups: int) -> struct.Struct:
    """The record of a run with this many scale groups: 32 + 48·G bytes."""
    return struct.Struct(f"<QqBB6xd{6 * groups}d")


@lru_cache(maxsize=256)
def dtype(groups: int) -> "np.dtype[Any]":
    """The same record as a numpy dtype. `values` is float64 (6, G): the four reductions, h and scale."""
    return np.dtype(
        [
            ("step", "<u8"),
            ("time", "<i8"),
            ("outcome", "u1"),
            ("has_lr", "u1"),
            ("pad", "V6"),
            ("base_lr", "<f8"),
            ("values", "<f8", (6, groups)),
        ]
    )


def pack(groups: int, row: StepRow) -> bytes:
    """One step as bytes."""
    lr = row.base_lr
    if groups >= _WIDE:
        values = np.empty((6, groups), "<f8")
        for place, value in enumerate(row[3:9]):
            values[place] = value
        return _HEADER.pack(row.step, row.time, row.outcome, lr is not None, 0.0 if lr is None else lr) + values.tobytes()
    return layout(groups).pack(
        row.step,
        row.time,
        row.outcome,
        lr is not None,
        0.0 if lr is None else lr,
        *row.delta_dot_g,
        *row.delta_dot_x,
        *row.g_norm_sq,
        *row.x_norm_sq,
        *row.h,
        *row.scale,
    )


def outcomes(groups: int, data: bytes) -> bytes:
    """The outcome of each step in a blob of records, a byte each."""
    return data[16 :: layout(groups).size]


def unpack_columns(groups: int, data: bytes) -> StepColumns:
    """The steps in a blob of records, in order. A history is read five times as fast by columns as by steps."""
    rows = np.frombuffer(data, dtype(groups))
    lr = [value if sent else None for value, sent in zip(rows["base_lr"].tolist(), rows["has_lr"].tolist(), strict=True)]
    values = (np.ascontiguousarray(rows["values"][:, place, :]).ravel().tolist() for place in range(6))
    return StepColumns(rows["step"].tolist(), rows["time"].tolist(), rows["outcome"].tolist(), lr, *values)


def unpack(groups: int, data: bytes, branch: int = 0) -> Iterator[StepRow]:
    """The steps in a blob of records, in order."""
    for step, time, outcome, has_lr, lr, *values in layout(groups).iter_unpack(data):
        dg, dx, gg, xx, h, scale = (tuple(values[start : start + groups]) for start in range(0, 6 * groups, groups))
        yield StepRow(step, time, outcome, dg, dx, gg, xx, h, scale, lr if has_lr else None, branch)
