"""One step of the tuner for one scale group, on plain Python floats; one function per named convention.

Each rule takes the row of a group (m, v, r, s, q: n floats each, one per β) and h, and returns the next row. The order of
operations is part of the contract: `_rules_numpy` repeats it over arrays and gives the same bits.

Symbols are the paper's (Algorithms 1 and 2). Where the paper's text slips, the reading that its theory and its authors'
code need is taken, and said at the line.
"""

import math
from typing import NamedTuple, Protocol

from mechanicd.tuner._bounds import H_MAX, R_MAX, S_MAX, V_MAX
from mechanicd.tuner._reductions import Reductions

Floats = tuple[float, ...]


class Settings(Protocol):
    """What a rule reads of a `TunerConfig`, which itself depends on the rules by way of the conventions."""

    @property
    def betas(self) -> Floats: ...
    @property
    def s_decay(self) -> float: ...
    @property
    def s_init(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def initial_wealth(self) -> float: ...


class Row(NamedTuple):
    """The tuner's state of one scale group; every field holds n floats, one per β."""

    m: Floats
    v: Floats
    r: Floats
    s: Floats
    q: Floats


def zero_row(config: Settings) -> Row:
    """All zero (Algorithm 1, lines 2–4; Algorithm 2, line 2)."""
    zero = (0.0,) * len(config.betas)
    return Row(zero, zero, zero, zero, zero)


def pytorch_row(config: Settings) -> Row:
    """As mechanic-pytorch starts: m at 1e-6, so S leaves 0 in the first step whatever h is."""
    return zero_row(config)._replace(m=(1e-6,) * len(config.betas))


def optax_row(config: Settings) -> Row:
    """As optax.contrib.mechanize starts: each s at s_init."""
    return zero_row(config)._replace(s=(config.s_init,) * len(config.betas))


def scale(s: Floats) -> float:
    """S = Σ s, added from the first β to the last."""
    total = 0.0
    for value in s:
        total = total + value
    return total


def h(config: Settings, S: float, reductions: Reductions) -> float:
    """h_t = ⟨Δ_t, g_t⟩ + λ·S_t·‖g_t‖·⟨Δ_t, x_t⟩/(‖x_t‖ + ε), within ±H_MAX (Algorithm 1, line 10)."""
    delta_dot_g, delta_dot_x, g_norm_sq, x_norm_sq = reductions
    decay = config.s_decay * S * math.sqrt(g_norm_sq) * delta_dot_x / (math.sqrt(x_norm_sq) + config.eps)
    return _clip(delta_dot_g + decay, H_MAX)


def paper(config: Settings, row: Row, h: float) -> Row:
    """Algorithm 1, lines 11–16; also `pytorch`, which differs only in where m starts.

    Line 11 prints h for |h|: with the plain form a first h < 0, which says "go on", leaves m = 0 and S = 0 forever.
    Line 13 and section 3.1 print s_{t−1} for s_t: section 3's wealth W = s_init·m − Σ h_k s_k and appendix D need the bet
    just played. Line 15 is garbled: W = s_init·m/n + r.
    """
    n, s_init, eps = len(config.betas), config.s_init, config.eps
    size = h if h >= 0.0 else -h
    square = h * h
    ms, vs, rs, ss = [], [], [], []
    for beta, m, v, r, s in zip(config.betas, row.m, row.v, row.r, row.s, strict=True):
        m = beta * m
        if size > m:
            m = size
        v = beta * beta * v + square
        if v > V_MAX:
            v = V_MAX
        r = beta * r - s * h
        if r <= 0.0:
            r = 0.0
        elif r > R_MAX:
            r = R_MAX
        W = s_init * m / n + r
        s = W / (math.sqrt(v) + eps)
        if s > S_MAX:
            s = S_MAX
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
    return Row(tuple(ms), tuple(vs), tuple(rs), tuple(ss), row.q)


def optax(config: Settings, row: Row, h: float) -> Row:
    """As optax.contrib.mechanize: m takes |h| + ε, the reward takes h clipped to ±m_{t−1}, r may go below zero."""
    n = len(config.betas)
    size = h if h >= 0.0 else -h
    square = h * h
    ms, vs, rs, ss = [], [], [], []
    for beta, m, v, r, s in zip(config.betas, row.m, row.v, row.r, row.s, strict=True):
        clipped = _clip(h, m)
        m = beta * m
        if size + config.eps > m:
            m = size + config.eps
        v = beta * beta * v + square
        if v > V_MAX:
            v = V_MAX
        r = beta * r - s * clipped
        r = _within(-R_MAX, r, R_MAX)
        W = config.s_init * m / n + (r if r > 0.0 else 0.0)
        s = W / (math.sqrt(v) + config.eps)
        if s > S_MAX:
            s = S_MAX
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
    return Row(tuple(ms), tuple(vs), tuple(rs), tuple(ss), row.q)


def theory(config: Settings, row: Row, h: float) -> Row:
    """Algorithm 2 (appendix D), the version with the regret bound of Theorem 2; each β bets with W_0/n.

    Line 6 prints h for |h|, as in Algorithm 1. Line 9 prints s_{t−1} for s_t. Line 12 prints clip(q/…): a bet must grow when
    Σ h is negative, and the proof's potential is a(−Σ ĥ/√v), so it is clip(−q/…).
    """
    n = len(config.betas)
    size = h if h >= 0.0 else -h
    ms, vs, rs, ss, qs = [], [], [], [], []
    for beta, m, v, r, s, q in zip(config.betas, row.m, row.v, row.r, row.s, row.q, strict=True):
        clipped = _clip(h, m)
        m = beta * m
        if size > m:
            m = size
        q = beta * q + clipped
        q = _within(-R_MAX, q, R_MAX)
        r = beta * r - s * clipped
        r = _within(-R_MAX, r, R_MAX)
        v = beta * beta * v + clipped * clipped
        if v > V_MAX:
            v = V_MAX
        W = config.initial_wealth / n + r
        spread = 4.0 * (m * m) + v
        fraction = 0.0 if spread == 0.0 else _within(0.0, -q / math.sqrt(spread), 1.0)
        s = _within(0.0, W / math.sqrt(spread + config.eps), S_MAX) * fraction
        ms.append(m)
        vs.append(v)
        rs.append(r)
        ss.append(s)
        qs.append(q)
    return Row(tuple(ms), tuple(vs), tuple(rs), tuple(ss), tuple(qs))


def _clip(value: float, bound: float) -> float:
    return _within(-bound, value, bound)


def _within(low: float, value: float, high: float) -> float:
    """`value` moved into [low, high]; −0.0 becomes 0.0, so that arrays and floats agree in the sign of zero."""
    if value < low:
        value = low
    if value > high:
        value = high
    return value + 0.0
