"""The rules of `_rules` over arrays of scale groups: the same operations in the same order, so the same bits.

Arrays have shape (n, G): one row per β, one column per scale group. Rows are handled one after the other, since n is small
and Σ s must be added in order; numpy works along the groups.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mechanicd.tuner._bounds import H_MAX, R_MAX, S_MAX, V_MAX
from mechanicd.tuner._reductions import Reductions
from mechanicd.tuner._rules import Row, Settings

Array = NDArray[np.float64]


class Table(NamedTuple):
    """The tuner's state of G scale groups; every field has shape (n, G), dtype float64, and is read-only."""

    m: Array
    v: Array
    r: Array
    s: Array
    q: Array


def from_rows(rows: Sequence[Row]) -> Table:
    """Stacks the rows of G groups."""
    return _frozen(np.array([row[field] for row in rows], dtype=np.float64).T for field in range(len(Row._fields)))


def repeated(row: Row, groups: int) -> Table:
    """The same row for each of G groups."""
    return _frozen(np.repeat(np.array(field, dtype=np.float64)[:, np.newaxis], groups, axis=1) for field in row)


def to_rows(table: Table) -> tuple[Row, ...]:
    """The inverse of `from_rows`."""
    columns = [[tuple(column) for column in field.T.tolist()] for field in table]
    return tuple(Row(*parts) for parts in zip(*columns, strict=True))


def write(table: Table, data: bytearray, offset: int) -> None:
    """Writes into `data`, from `offset` on, for each group m, v, r, s, q: n float64 each, little-endian."""
    n, groups = table.m.shape
    places = np.frombuffer(data, "<f8", len(table) * n * groups, offset).reshape(groups, len(table), n)
    for index, field in enumerate(table):
        places[:, index, :] = field.T


def from_bytes(data: bytes, n: int, groups: int) -> Table | None:
    """The inverse of `write`; None where a value is impossible: not finite, or below zero where it can't be."""
    fields = np.frombuffer(data, "<f8").reshape(groups, len(Row._fields), n).transpose(1, 2, 0).astype(np.float64, order="C")
    table = _frozen(fields)
    possible = bool(np.isfinite(fields).all()) and all(bool((field >= 0.0).all()) for field in (table.m, table.v, table.s))
    return table if possible else None


def scale(s: Array) -> Array:
    """S per group, shape (G,)."""
    total = np.zeros(s.shape[1])
    for values in s:
        total = total + values
    return total


def columns(reductions: Sequence[Reductions]) -> Array:
    """The four scalars of G scale groups, shape (4, G)."""
    values = np.fromiter(chain.from_iterable(reductions), np.float64, len(reductions) * len(Reductions._fields))
    return np.ascontiguousarray(values.reshape(len(reductions), -1).T)


def h(config: Settings, S: Array, columns: Array) -> Array | None:
    """h per group, shape (G,), of `columns`; None where a scalar is NaN or infinite."""
    if not np.isfinite(columns).all():
        return None
    delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq = columns
    decay = config.s_decay * S * np.sqrt(g_norm_sq) * delta_dot_x / (np.sqrt(x_norm_sq) + config.eps)
    return _within(-H_MAX, delta_dot_g + decay, H_MAX)


def paper(config: Settings, table: Table, h: Array) -> Table:
    """See `_rules.paper`."""
    n = len(config.betas)
    size, square = np.abs(h), h * h
    ms, vs, rs, ss = [], [], [], []
    for beta, m, v, r, s in zip(config.betas, table.m, table.v, table.r, table.s, strict=True):
        m = np.maximum(beta * m, size)
        v = np.minimum(beta * beta * v + square, V_MAX)
        r = _within(0.0, beta * r - s * h, R_MAX)
        W = config.s_init * m / n + r
        s = np.minimum(W / (np.sqrt(v) + config.eps), S_MAX)
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
    return _frozen([ms, vs, rs, ss, table.q])


def optax(config: Settings, table: Table, h: Array) -> Table:
    """See `_rules.optax`."""
    n = len(config.betas)
    size, square = np.abs(h) + config.eps, h * h
    ms, vs, rs, ss = [], [], [], []
    for beta, m, v, r, s in zip(config.betas, table.m, table.v, table.r, table.s, strict=True):
        clipped = _within(-m, h, m)
        m = np.maximum(beta * m, size)
        v = np.minimum(beta * beta * v + square, V_MAX)
        r = _within(-R_MAX, beta * r - s * clipped, R_MAX)
        W = config.s_init * m / n + _within(0.0, r, R_MAX)
        s = np.minimum(W / (np.sqrt(v) + config.eps), S_MAX)
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
    return _frozen([ms, vs, rs, ss, table.q])


def theory(config: Settings, table: Table, h: Array) -> Table:
    """See `_rules.theory`."""
    n = len(config.betas)
    size = np.abs(h)
    ms, vs, rs, ss, qs = [], [], [], [], []
    for beta, m, v, r, s, q in zip(config.betas, *table, strict=True):
        clipped = _within(-m, h, m)
        m = np.maximum(beta * m, size)
        q = _within(-R_MAX, beta * q + clipped, R_MAX)
        r = _within(-R_MAX, beta * r - s * clipped, R_MAX)
        v = np.minimum(beta * beta * v + clipped * clipped, V_MAX)
        W = config.initial_wealth / n + r
        spread = 4.0 * (m * m) + v
        root = np.sqrt(np.where(spread == 0.0, 1.0, spread))
        fraction = np.where(spread == 0.0, 0.0, _within(0.0, -q / root, 1.0))
        s = _within(0.0, W / np.sqrt(spread + config.eps), S_MAX) * fraction
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
        qs.append(q)
    return _frozen([ms, vs, rs, ss, qs])


def _within(low: Array | float, value: Array, high: Array | float) -> Array:
    return np.minimum(np.maximum(value, low), high) + 0.0


def _frozen(fields: object) -> Table:
    arrays = [np.ascontiguousarray(field) for field in fields]  # type: ignore[attr-defined]
    for array in arrays:
        array.setflags(write=False)
    return Table(*arrays)
