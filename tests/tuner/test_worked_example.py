"""A few steps worked by hand, every number spelled out. ε = 1e-300 vanishes in every sum."""

import math

import pytest

from mechanicd.tuner import Reductions, Tuner, TunerConfig

TINY = 1e-300


def exactly(*values: float):
    """Equal up to the rounding of a handful of operations."""
    return pytest.approx(values, rel=1e-15, abs=0.0)


def test_algorithm_1_with_one_beta():
    """β = 0.5, s_init = 1; the h are chosen so that √v comes out even."""
    tuner = Tuner(TunerConfig(betas=(0.5,), s_init=1.0, eps=TINY))
    state = tuner.init()

    # t = 1: Δ_1 = 0, so h_1 = 0 and nothing is known yet.
    state = tuner.advance(state, (0.0,))
    assert fields(state) == exactly(0.0, 0.0, 0.0, 0.0)

    # t = 2: h = −3, "go on". m = 3, v = 9, r = −0·(−3) = 0, W = 1·3 + 0 = 3, s = 3/3: the first s is s_init.
    state = tuner.advance(state, (-3.0,))
    assert fields(state) == exactly(3.0, 9.0, 0.0, 1.0)

    # t = 3: h = −2. m = max(1.5, 2) = 2, v = 9/4 + 4 = 6.25, r = 0 + 1·2 = 2, W = 2 + 2 = 4, s = 4/2.5.
    state = tuner.advance(state, (-2.0,))
    assert fields(state) == exactly(2.0, 6.25, 2.0, 1.6)

    # t = 4: h = 3, "too far". m = 3, v = 6.25/4 + 9 = 10.5625, r = max(0, 1 − 1.6·3) = 0, W = 3, s = 3/3.25.
    state = tuner.advance(state, (3.0,))
    assert fields(state) == exactly(3.0, 10.5625, 0.0, 3 / 3.25)

    # t = 5: h = −10.5. v = 10.5625/4 + 110.25 = 10.625², r = 12/13 · 10.5 = 126/13, W = 10.5 + 126/13 = 262.5/13.
    state = tuner.advance(state, (-10.5,))
    assert fields(state) == exactly(10.5, 112.890625, 126 / 13, 262.5 / 13 / 10.625)
    assert state.step == 5


def test_algorithm_1_with_two_betas():
    """β = (0.5, 1), s_init = 1: two bets of s_init/2 that part as the older h fade from the first; S is their sum."""
    tuner = Tuner(TunerConfig(betas=(0.5, 1.0), s_init=1.0, eps=TINY))
    state = tuner.init()

    # h = −3: both m = 3, v = 9, r = 0, W = 1·3/2 = 1.5, s = 1.5/3 = 0.5.
    state = tuner.advance(state, (-3.0,))
    assert state.rows[0].s == exactly(0.5, 0.5)
    assert state.scale == exactly(1.0)

    # h = −4: m = 4, v = 9/4 + 16 = 18.25 and 9 + 16 = 25, r = 0.5·4 = 2, W = 4/2 + 2 = 4.
    state = tuner.advance(state, (-4.0,))
    assert state.rows[0].v == exactly(18.25, 25.0)
    assert state.rows[0].s == exactly(4 / math.sqrt(18.25), 0.8)
    assert state.scale == exactly(4 / math.sqrt(18.25) + 0.8)

    # h = 2: m = max(2, 2) = 2 and 4, v = 18.25/4 + 4 = 8.5625 and 29; r = 2/2 − 0.936·2 < 0, so 0, and 2 − 0.8·2 = 0.4;
    # W = 2/2 + 0 = 1 and 4/2 + 0.4 = 2.4.
    state = tuner.advance(state, (2.0,))
    assert state.rows[0].m == exactly(2.0, 4.0)
    assert state.rows[0].v == exactly(8.5625, 29.0)
    assert state.rows[0].r == pytest.approx((0.0, 0.4), rel=2e-15)
    assert state.scale == exactly(1 / math.sqrt(8.5625) + 2.4 / math.sqrt(29.0))


def test_line_10_makes_h_of_the_four_reductions():
    """Δ = (1, 2), g = (3, −4), x = (0.6, 0.8), S = 2, λ = 0.1: h = −5 + 0.1·2·5·2.2/1 = −2.8."""
    tuner = Tuner(TunerConfig(betas=(1.0,), s_init=2.0, s_decay=0.1, eps=TINY))
    state = tuner.advance(tuner.init(), (-1.0,))
    assert state.scale == exactly(2.0)
    reductions = Reductions(delta_dot_g=-5.0, delta_dot_x=2.2, g_norm_sq=25.0, x_norm_sq=1.0)
    assert tuner.h(state, (reductions,)) == exactly(-2.8)
    # And on: m = max(1, 2.8), v = 1 + 7.84, r = 2·2.8 = 5.6, W = 2·2.8 + 5.6 = 11.2.
    state = tuner.update(state, reductions)
    assert fields(state) == exactly(2.8, 8.84, 5.6, 11.2 / math.sqrt(8.84))


def test_the_whole_loop_of_algorithm_1_on_a_parabola():
    """f(x) = x²/2 from x_ref = 4, BASE = SGD with lr 1 (u = −g), s_init = 1/4, β = 1, λ = 0."""
    tuner = Tuner(TunerConfig(betas=(1.0,), s_init=0.25, s_decay=0.0, eps=TINY))
    state, x, delta, seen = tuner.init(), 4.0, 0.0, []
    for _ in range(3):
        g = x
        state = tuner.update(state, Reductions(delta * g, delta * x, g * g, x * x))
        delta -= g
        x = 4.0 + state.scale[0] * delta
        seen.append((state.scale[0], delta, x))
    # t = 1: Δ_1 = 0 → h = 0 → S = 0: x stays. Δ_2 = −4.
    assert seen[0] == exactly(0.0, -4.0, 4.0)
    # t = 2: h = −4·4 = −16, W = 16/4 = 4, S = 4/16 = s_init. Δ_3 = −8, x = 4 − 8/4.
    assert seen[1] == exactly(0.25, -8.0, 2.0)
    # t = 3: h = −8·2 = −16, v = 512, r = 16/4 = 4, W = 4 + 4 = 8. Δ_4 = −10, x = 4 − 80/√512.
    assert seen[2] == pytest.approx((8 / math.sqrt(512), -10.0, 4 - 80 / math.sqrt(512)), rel=1e-14)


def test_algorithm_2():
    """Convention `theory`, β = 1, W_0 = 1."""
    tuner = Tuner(TunerConfig(convention="theory", betas=(1.0,), initial_wealth=1.0, eps=TINY))
    state = tuner.init()

    # h = −1: m_0 = 0 clips it to ĥ = 0. m = 1, W = 1, but q = 0, so no bet yet.
    state = tuner.advance(state, (-1.0,))
    assert fields(state) == exactly(1.0, 0.0, 0.0, 0.0)

    # h = −1: ĥ = −1, q = −1, v = 1, 4m² + v = 5, s = 1/√5 · 1/√5.
    state = tuner.advance(state, (-1.0,))
    assert fields(state) == exactly(1.0, 1.0, 0.0, 0.2)

    # h = −3: ĥ = −1, q = −2, m = 3, v = 2, r = 0.2, W = 1.2, 4m² + v = 38, s = 1.2/√38 · 2/√38.
    state = tuner.advance(state, (-3.0,))
    assert fields(state) == exactly(3.0, 2.0, 0.2, 2.4 / 38)
    assert state.rows[0].q == (-2.0,)


def test_algorithm_2_parts_its_wealth_among_the_betas():
    """W_0 = 1 and β = (0.5, 1): each starts with 1/2. After h = −1 twice, q = −1, v = 1, r = 0, 4m² + v = 5."""
    tuner = Tuner(TunerConfig(convention="theory", betas=(0.5, 1.0), initial_wealth=1.0, eps=TINY))
    state = tuner.advance(tuner.advance(tuner.init(), (-1.0,)), (-1.0,))
    assert state.rows[0].s == exactly(0.1, 0.1)
    # h = −1: q = −1.5 and −2, v = 1.25 and 2, r = 0.1, W = 0.6, 4m² + v = 5.25 and 6.
    state = tuner.advance(state, (-1.0,))
    assert state.rows[0].q == (-1.5, -2.0)
    assert state.rows[0].v == (1.25, 2.0)
    assert state.rows[0].s == exactly(0.6 * 1.5 / 5.25, 0.6 * 2.0 / 6.0)


def fields(state) -> tuple[float, ...]:
    """m, v, r, s of the only β of the only group."""
    row = state.rows[0]
    assert state.scale == row.s
    return (row.m[0], row.v[0], row.r[0], row.s[0])
