"""Why the tuner differs from the paper's printed lines: each printed form, written down as it stands, and what it does.

All with n = 1 and β = 1 and ε → 0, where section 3 says what W must be: s_init·m − Σ h_k s_k, the wealth that the bets made.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest

from mechanicd.tuner import Tuner, TunerConfig

S_INIT = 1e-8
W_0 = 1e-8


class State(NamedTuple):
    m: float = 0.0
    v: float = 0.0
    r: float = 0.0
    q: float = 0.0
    s: float = 0.0
    s_before: float = 0.0


Rule = Callable[[State, float], State]


def line_11_as_printed(state: State, h: float) -> State:
    """m ← max(β m, h), where |h| is meant."""
    m = max(state.m, h)
    v = state.v + h * h
    r = max(0.0, state.r - state.s * h)
    return State(m=m, v=v, r=r, s=(S_INIT * m + r) / (math.sqrt(v) + 1e-300))


def line_13_as_printed(state: State, h: float) -> State:
    """r ← β r − s_{t−1} h_t, where s_t is meant."""
    m = max(state.m, abs(h))
    v = state.v + h * h
    r = max(0.0, state.r - state.s_before * h)
    return State(m=m, v=v, r=r, s=(S_INIT * m + r) / (math.sqrt(v) + 1e-300), s_before=state.s)


def algorithm_2_line_12_as_printed(state: State, h: float) -> State:
    """clip(q/…, 0, 1), where clip(−q/…, 0, 1) is meant; line 6 with |h| and line 9 with s_t, as meant."""
    clipped = min(max(h, -state.m), state.m)
    m = max(state.m, abs(h))
    q, r, v = state.q + clipped, state.r - state.s * clipped, state.v + clipped * clipped
    root = math.sqrt(4 * m * m + v)
    fraction = min(max(q / root, 0.0), 1.0) if root else 0.0
    return State(m=m, v=v, r=r, q=q, s=(W_0 + r) / math.sqrt(root * root + 1e-300) * fraction)


def algorithm_2_line_6_as_printed(state: State, h: float) -> State:
    """m ← max(β m, h), where |h| is meant; all else as meant."""
    clipped = min(max(h, -state.m), state.m)
    m = max(state.m, h)
    q, r, v = state.q + clipped, state.r - state.s * clipped, state.v + clipped * clipped
    root = math.sqrt(4 * m * m + v)
    return State(m=m, v=v, r=r, q=q, s=(W_0 + r) / root * min(max(-q / root, 0.0), 1.0))


class Printed:
    """A printed rule at work."""

    def __init__(self, rule: Callable[[State, float], State]) -> None:
        self.rule, self.now = rule, State()

    def hear(self, h: float) -> float:
        self.now = self.rule(self.now, h)
        return self.now.s


class Meant:
    """Our tuner, in the same dress."""

    def __init__(self, convention: str = "paper", eps: float = 1e-300) -> None:
        config = TunerConfig(convention=convention, betas=(1.0,), s_init=S_INIT, initial_wealth=W_0, eps=eps)
        self.tuner = Tuner(config)
        self.state = self.tuner.init()

    @property
    def now(self) -> State:
        row = self.state.rows[0]
        return State(m=row.m[0], v=row.v[0], r=row.r[0], q=row.q[0], s=row.s[0])

    def hear(self, h: float) -> float:
        self.state = self.tuner.advance(self.state, (h,))
        return self.state.scale[0]


def test_line_11_without_the_absolute_value_never_takes_a_step():
    """On a descent h < 0, "go on", from the first step; so m = max(0, h) stays 0, W stays 0, S stays 0, and x stays."""
    scales, losses = descend(Printed(line_11_as_printed), steps=2000)
    assert set(scales) == {0.0}
    assert set(losses) == {losses[0]}
    scales, losses = descend(Meant(), steps=200)
    assert scales[:2] == [0.0, S_INIT]
    assert losses[-1] < 0.05 * losses[0]


def test_line_11_without_the_absolute_value_wakes_only_when_told_to_go_back():
    tuner = Printed(line_11_as_printed)
    assert [tuner.hear(h) for h in (-1.0, -5.0, -2.0)] == [0.0, 0.0, 0.0]
    assert tuner.hear(0.1) > 0.0


@pytest.mark.parametrize("seed", range(5))
def test_line_13_needs_the_bet_just_played_for_the_wealth_of_section_3(seed):
    """W = s_init·m − Σ h_k s_k as long as r is never cut at 0; with s_{t−1} for s_t it is another number."""
    hs = [-1.0] * 5 + (-1.0 + 0.6 * np.random.default_rng(seed).standard_normal(100)).tolist()
    played, earned = play(Meant(), hs)
    assert all(state.r > 0.0 for state in played[1:])
    assert wealth(played) == pytest.approx(earned, rel=1e-12)
    played, earned = play(Printed(line_13_as_printed), hs)
    assert all(state.r > 0.0 for state in played[2:])
    assert abs(wealth(played)[-1] / earned[-1] - 1.0) > 0.01


def test_line_13_with_the_bet_before_is_not_stuck_but_lags():
    """Each reward is booked at the smaller bet before, so that S grows by far less on a steady h."""
    steady = [-1.0] * 200
    ours, _ = play(Meant(), steady)
    printed, _ = play(Printed(line_13_as_printed), steady)
    assert [state.s for state in printed[:1]] == [state.s for state in ours[:1]] == [S_INIT]
    assert all(slow.s < fast.s for slow, fast in zip(printed[1:], ours[1:], strict=True))
    assert S_INIT < printed[-1].s < ours[-1].s / 10

    def half_way(losses: list[float]) -> int:
        return next(step for step, loss in enumerate(losses) if loss < losses[0] / 2)

    _, ours = descend(Meant(), steps=200)
    _, printed = descend(Printed(line_13_as_printed), steps=200)
    assert half_way(ours) + 10 < half_way(printed)


def test_line_13_with_the_bet_before_takes_an_oscillation_for_a_gain():
    """After a hundred steps of "go on", h = ±1 in turn: S is too large, and each pair of steps loses.

    Ours books the loss and comes down. The printed line books h_t against the bet before, whose sign fits: its r grows
    without end, S stays, and what it calls wealth has long been lost.
    """
    hs = [-1.0] * 100 + [1.0, -1.0] * 450
    ours, earned = play(Meant(), hs)
    assert wealth(ours) == pytest.approx(earned, rel=1e-12)
    assert ours[-1].s < ours[99].s / 8
    printed, earned = play(Printed(line_13_as_printed), hs)
    assert printed[-1].s > printed[99].s * 0.95
    assert wealth(printed)[-1] > 2 * wealth(printed)[99] > 0.0 > earned[-1]


def test_algorithm_2_with_plus_q_never_takes_a_step():
    """On a descent Σ ĥ < 0, and clip(q/…, 0, 1) = 0: no bet, no move. With −q it learns."""
    scales, losses = descend(Printed(algorithm_2_line_12_as_printed), steps=2000)
    assert set(scales) == {0.0}
    assert set(losses) == {losses[0]}
    scales, losses = descend(Meant("theory"), steps=200)
    assert losses[-1] < 0.05 * losses[0]


def test_algorithm_2_with_plus_q_bets_only_against_what_it_heard():
    """Where each h says "go back", it goes on, and loses at every step; with −q it never bets."""
    back = [1.0] * 50
    played, _ = play(Printed(algorithm_2_line_12_as_printed), back)
    rewards = [state.r for state in played]
    assert all(state.s > 0.0 for state in played[1:])
    assert all(later < earlier for earlier, later in pairwise(rewards[1:]))
    assert W_0 + rewards[-1] < 0.01 * W_0
    played, _ = play(Meant("theory"), back)
    assert {state.s for state in played} == {0.0}


@pytest.mark.parametrize("h", [0.0, -1.0])
def test_algorithm_2_without_the_absolute_value_divides_zero_by_zero(h):
    """Its m stays 0 while h ≤ 0, and the first h is always 0; ours calls the fraction 0 there."""
    with pytest.raises(ZeroDivisionError):
        Printed(algorithm_2_line_6_as_printed).hear(h)
    assert Meant("theory").hear(h) == 0.0


@pytest.mark.parametrize(("convention", "moves"), [("paper", False), ("theory", False), ("pytorch", True), ("optax", True)])
def test_line_8_cannot_find_delta_while_the_scale_is_zero(convention, moves):
    """x_t = x_ref as long as S = 0, so Δ = (x_t − x_ref)/(S + ε) is 0, h is 0, and S stays 0.

    So the two packages, which recompute Δ so, start above 0: one from m = 1e-6, the other from s = s_init.
    """
    scales, losses = descend(Meant(convention, eps=1e-8), steps=200, recompute_delta=True)
    assert (scales[-1] > 0.0) is moves
    assert (losses[-1] < losses[0]) is moves


def play(tuner: Printed | Meant, hs: list[float]) -> tuple[list[State], list[float]]:
    """The state after each h, and what the bets have really made by then: s_init·m − Σ h_k s_k."""
    states, made, earned = [], 0.0, []
    for h in hs:
        made -= tuner.now.s * h
        tuner.hear(h)
        states.append(tuner.now)
        earned.append(S_INIT * tuner.now.m + made)
    return states, earned


def wealth(states: list[State]) -> list[float]:
    """W of lines 15 and 16, out of s = W/√v."""
    return [state.s * math.sqrt(state.v) for state in states]


def descend(tuner: Printed | Meant, steps: int, recompute_delta: bool = False) -> tuple[list[float], list[float]]:
    """S after each step of Algorithm 1 and the loss before and after each, on a small quadratic; BASE = SGD, λ = 0."""
    curvature, x_ref = np.array([1.0, 0.5, 0.25]), np.array([3.0, -2.0, 1.0])
    x, delta, S = x_ref, np.zeros(3), tuner.now.s
    scales, losses = [], [float(curvature @ (x * x)) / 2]
    for _ in range(steps):
        g = curvature * x
        if recompute_delta:
            delta = (x - x_ref) / (S + 1e-8)
        S = tuner.hear(float(delta @ g))
        delta = delta - g
        x = x_ref + S * delta
        scales.append(S)
        losses.append(float(curvature @ (x * x)) / 2)
    return scales, losses
