"""The paper's two theorems, held to the real tuner: Theorem 1 exactly, Theorem 2 with every constant.

Theorem 2 (convention `theory`, β = 1, one bet). Write ĥ_t = clip(h_t, ±m_{t−1}), m_T = max |h_t|, v_T = Σ ĥ_t², H = −Σ ĥ_t,
σ = √(4m_T² + v_T), m_1 the first |h| that is not 0, and a(z) = 0, z²/2, z − 1/2 for z ≤ 0, z in [0, 1], z ≥ 1.

1. |h_t − ĥ_t| = m_t − m_{t−1}, which adds up to m_T; s_t, ŝ ≥ 0. So Σ h_t (s_t − ŝ) ≤ Σ ĥ_t (s_t − ŝ) + (ŝ + max s) m_T.
2. A bet is at most W/(2m_{t−1}) and |ĥ_t| ≤ m_{t−1}, so that a step leaves at least half of W, ln(1 − z) ≥ −z − z² applies,
   and inequality (6) of appendix D adds up to ln W_T ≥ ln W_0 + a(H/σ) − Σ 2ĥ_t²/(4m²_{t−1} + v_{t−1}).
3. 4m²_{t−1} + v_{t−1} ≥ 3m_1² + v_t, and x/(c + x) ≤ ln((c + x)/c). So that last sum is at most L = 2 ln(1 + v_T/(3m_1²)).
4. W_T = W_0 − Σ ĥ_t s_t. So Σ ĥ_t (s_t − ŝ) = W_0 + ŝH − W_T ≤ W_0 + ŝH − K e^{a(H/σ)} with K = W_0 e^{−L}. Since
   a(z) ≥ z − 1/2 everywhere, the largest value over H is at most ŝσ (ln(ŝσ/K) − 1/2), for every ŝ > 0, small ones as well.

    Σ h_t (s_t − ŝ) ≤ W_0 + (ŝ + max s)·m_T + ŝσ·(ln(ŝσ/W_0) − 1/2 + 2 ln(1 + v_T/(3m_1²)))

The paper's O(…) hides the same: ln(T ŝ m_T/(m_1 W_0))·√(Σ h²). The bound is checked after every step, and for the ŝ where
it is tightest: the left side is linear in ŝ, the right side convex.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mechanicd.tuner import Reductions, Tuner, TunerConfig

TINY = 1e-300
ROUNDING = 1e-12
repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=60, phases=[Phase.generate])

Hear = Callable[[float], tuple[float, float]]
Adversary = Callable[[int, list[float], np.random.Generator], float]

ADVERSARIES: dict[str, Adversary] = {
    "always on": lambda t, s, make: -1.0,
    "always back": lambda t, s, make: 1.0,
    "in turn": lambda t, s, make: (-1.0) ** (t + 1),
    "two on, one back": lambda t, s, make: 1.0 if t % 3 == 2 else -1.0,
    "on, then back for good": lambda t, s, make: -1.0 if t < 100 else 1.0,
    "on, then in turn": lambda t, s, make: -1.0 if t < 100 else (-1.0) ** t,
    "noise": lambda t, s, make: make.normal(),
    "noise, leaning on": lambda t, s, make: make.normal() - 0.5,
    "heavy tails": lambda t, s, make: make.standard_cauchy(),
    "growing spikes": lambda t, s, make: make.choice([-1.0, 1.0]) * 2.0 ** (t / 4) if t % 5 == 0 else make.normal(),
    "doubling on": lambda t, s, make: -(2.0**t),
    "doubling in turn": lambda t, s, make: (-2.0) ** t,
    "bursts": lambda t, s, make: make.normal() * (1e3 if t % 50 < 5 else 1e-3),
    "zeros between": lambda t, s, make: make.normal() if make.random() < 0.2 else 0.0,
    "lures, then one blow": lambda t, s, make: 1e4 * max(1.0, s[-1]) if t % 100 == 99 else -1.0,
    "back once there is a bet": lambda t, s, make: 1.0 if s[-1] > 0.0 else -1.0,
    "back above one": lambda t, s, make: 1.0 if s[-1] > 1.0 else -1.0,
    "back when the bet grew": lambda t, s, make: 1.0 if s[-1] > s[-2] else -1.0,
    "on when the bet grew": lambda t, s, make: -1.0 if s[-1] > s[-2] else 1.0,
}

vectors = st.lists(st.integers(-64, 64), min_size=3, max_size=3).map(lambda values: np.array(values) / 8)


@repeatable
@given(
    pushes=st.lists(st.tuples(vectors, vectors), min_size=2, max_size=15),
    best=vectors,
    x_hat=vectors,
    s_hat=st.fractions(Fraction(1, 1000), 1000),
    convention=st.sampled_from(["paper", "pytorch", "optax", "theory"]),
)
def test_theorem_1_parts_the_regret_into_the_tuners_and_bases(pushes, best, x_hat, s_hat, convention):
    """Σ⟨g_t, x_t − x̂⟩ = Σ h_t (S_t − ŝ) + ŝ Σ⟨g_t, x_t^BASE − x_1 − (x̂ − x_1)/ŝ⟩, closed loop, without any rounding.

    Updates and gradients are multiples of 1/8, so that h is exact in float64; the sums are rational numbers.
    """
    config = TunerConfig(convention=convention, betas=(0.9, 1.0), s_init=0.1, initial_wealth=1.0, s_decay=0.0)
    trajectory = descend(Tuner(config), pushes, best)
    regret, parted = theorem_1(trajectory, x_hat, s_hat)
    assert regret == parted


def test_theorem_1_needs_the_displacement_from_before_this_steps_update():
    """Line 10's note on Δ_t: with Δ_{t+1} in h the identity is lost."""
    make = np.random.default_rng(0)
    pushes = [tuple(make.integers(-64, 64, (2, 3)) / 8) for _ in range(10)]
    tuner, best = Tuner(TunerConfig(s_init=0.1, s_decay=0.0)), np.ones(3)
    regret, parted = theorem_1(descend(tuner, pushes, best), best, Fraction(1, 2))
    assert regret == parted
    regret, parted = theorem_1(descend(tuner, pushes, best, late=True), best, Fraction(1, 2))
    assert regret != parted


def descend(tuner: Tuner, pushes, best, late: bool = False) -> list[tuple]:
    """(g_t, Δ_t, S_t, h_t) of each step from x_1 = 0: noisy gradients towards `best`; BASE is SGD, pushed about."""
    state, delta, steps = tuner.init(), np.zeros(3), []
    for noise, push in pushes:
        S = state.scale[0]
        x = S * delta
        g = np.clip(np.round(8 * (x - best) + 8 * noise) / 8, -64.0, 64.0)
        u = push - g
        told = delta + u if late else delta
        h = tuner.h(state, (Reductions(float(told @ g), float(told @ x), float(g @ g), float(x @ x)),))
        steps.append((g, delta, S, h[0]))
        state = tuner.advance(state, h)
        delta = delta + u
    return steps


def theorem_1(trajectory: list[tuple], x_hat: np.ndarray, s_hat: Fraction) -> tuple[Fraction, Fraction]:
    """Both sides of the identity (x_1 = 0)."""
    regret = tuners = bases = Fraction(0)
    for g, delta, S, h in trajectory:
        g, delta, S, h = exact(g), exact(delta), Fraction(S), Fraction(h)
        target = exact(x_hat)
        regret += dot(g, [S * d - x for d, x in zip(delta, target, strict=True)])
        tuners += h * (S - s_hat)
        bases += dot(g, [d - x / s_hat for d, x in zip(delta, target, strict=True)])
    return regret, tuners + s_hat * bases


def exact(vector: np.ndarray) -> list[Fraction]:
    return [Fraction(value) for value in vector.tolist()]


def dot(a: list[Fraction], b: list[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e5])
@pytest.mark.parametrize("adversary", list(ADVERSARIES))
def test_theorem_2_bounds_the_regret_against_every_adversary(adversary, size):
    for seed, wealth in enumerate((1e-8, 1.0, 1e4)):
        hs, scales, wealths = play(theory(wealth), ADVERSARIES[adversary], seed, size)
        assert max(scales) < 1e29, "saturated: the theorem is about the tuner before that"
        assert wealths == pytest.approx(earned(hs, scales, wealth), rel=1e-9)
        assert worst_excess(hs, scales, wealth) <= ROUNDING
        assert (np.log(wealths) >= log_wealth_floor(hs, wealth) - 1e-9).all()


@repeatable
@given(
    hs=st.lists(st.floats(-1e6, 1e6) | st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60),
    wealth=st.sampled_from([1e-8, 1.0, 1e6]),
)
def test_theorem_2_bounds_the_regret_of_any_sequence(hs, wealth):
    hs = [0.0 if abs(h) < 1e-60 else h for h in hs]
    hs, scales, wealths = play(theory(wealth), lambda t, s, make: hs[t], 0, 1.0, len(hs))
    assert worst_excess(hs, scales, wealth) <= ROUNDING
    assert (np.log(wealths) >= log_wealth_floor(hs, wealth) - 1e-9).all()


FAULTS = {
    "bets with +q, as line 12 is printed": ({"sign": 1.0}, "always on"),
    "books the bet before, as line 9 is printed": ({"lag": 1}, "back once there is a bet"),
    "forgives its losses": ({"forgive": True}, "on, then back for good"),
    "bets three times as much": ({"greed": 3.0}, "back above one"),
}


def test_the_plain_algorithm_2_below_is_the_tuners():
    for adversary in ADVERSARIES.values():
        _, ours, _ = play(theory(1.0), adversary, 0, 1.0)
        _, plain, _ = play(plain_theory(1.0), adversary, 0, 1.0)
        assert ours == plain


@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_bound_would_catch_a_tuner_that(fault):
    options, adversary = FAULTS[fault]
    hs, scales, _ = play(plain_theory(1.0, **options), ADVERSARIES[adversary], 0, 1.0)
    assert worst_excess(hs, scales, 1.0) > 0.01


def theory(wealth: float) -> tuple[float, Hear]:
    """Our tuner: the first scale, and a function from h to the next scale and W."""
    tuner = Tuner(TunerConfig(convention="theory", betas=(1.0,), initial_wealth=wealth, s_decay=0.0, eps=TINY))
    state = tuner.init()

    def hear(h: float) -> tuple[float, float]:
        nonlocal state
        state = tuner.advance(state, (h,))
        return state.scale[0], wealth + state.rows[0].r[0]

    return state.scale[0], hear


def plain_theory(
    wealth: float, sign: float = -1.0, lag: int = 0, forgive: bool = False, greed: float = 1.0
) -> tuple[float, Hear]:
    """Algorithm 2 in a few lines, with faults to choose from."""
    m = v = r = q = 0.0
    bets = [0.0, 0.0]

    def hear(h: float) -> tuple[float, float]:
        nonlocal m, v, r, q
        clipped = min(max(h, -m), m)
        m = max(m, abs(h))
        q += clipped
        reward = -bets[-1 - lag] * clipped
        r += max(0.0, reward) if forgive else reward
        v += clipped * clipped
        spread = 4.0 * (m * m) + v
        fraction = min(max(sign * q / math.sqrt(spread), 0.0), 1.0) if spread else 0.0
        bets.append(greed * max(0.0, (wealth + r) / math.sqrt(spread + TINY)) * fraction)
        return bets[-1], wealth + r

    return 0.0, hear


def play(
    tuner: tuple[float, Hear], adversary: Adversary, seed: int, size: float, steps: int = 300
) -> tuple[list[float], list[float], list[float]]:
    """h_t, s_t, W_t. The adversary sees every bet before it answers."""
    make = np.random.default_rng(seed)
    s, hear = tuner
    hs, scales, wealths = [], [0.0, s], []
    for t in range(steps):
        hs.append(size * float(adversary(t, scales, make)))
        s, W = hear(hs[-1])
        scales.append(s)
        wealths.append(W)
    return hs, scales[1:-1], wealths


def clipped(hs: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ĥ_t, m_{t−1} and m_t."""
    m = np.maximum.accumulate(np.abs(hs))
    before = np.concatenate([[0.0], m[:-1]])
    return np.clip(hs, -before, before), before, m


def earned(hs: Sequence[float], scales: Sequence[float], wealth: float) -> np.ndarray:
    """W_t = W_0 − Σ ĥ_k s_k."""
    return wealth - np.cumsum(clipped(hs)[0] * np.array(scales))


def log_wealth_floor(hs: Sequence[float], wealth: float) -> np.ndarray:
    """Step 2: what ln W_t is at least, after each step."""
    h, before, m = clipped(hs)
    v = np.cumsum(h * h)
    H = -np.cumsum(h)
    sigma = np.sqrt(4.0 * m * m + v)
    z = np.divide(H, sigma, out=np.zeros_like(H), where=sigma > 0.0)
    a = np.where(z <= 0.0, 0.0, np.where(z <= 1.0, z * z / 2.0, z - 0.5))
    known = 4.0 * before * before + v - h * h
    lost = np.divide(2.0 * h * h, known, out=np.zeros_like(h), where=known > 0.0)
    return math.log(wealth) + a - np.cumsum(lost)


def worst_excess(hs: Sequence[float], scales: Sequence[float], wealth: float) -> float:
    """How far the regret exceeds the bound at worst, over all steps and many ŝ, relative to the size of what is added up."""
    h, _, m = clipped(hs)
    heard = m > 0.0  # before that all is 0
    if not heard.any():
        return 0.0
    m, v = m[heard], np.cumsum(h * h)[heard]
    sigma, m_1 = np.sqrt(4.0 * m * m + v), m[0]
    log_K = math.log(wealth) - 2.0 * np.log1p(v / (3.0 * m_1 * m_1))
    paid = np.cumsum(np.multiply(hs, scales))[heard]
    total = np.cumsum(hs)[heard]
    most = np.maximum.accumulate(scales)[heard]
    size = wealth + np.cumsum(np.abs(np.multiply(hs, scales)))[heard] + most * m

    def excess(log_s_hat: np.ndarray | float) -> float:
        s_hat = np.exp(log_s_hat)
        price = s_hat * sigma * (log_s_hat + np.log(sigma) - log_K - 0.5)
        gap = (paid - s_hat * total) - (wealth + (s_hat + most) * m + price)
        return float((gap / (size + s_hat * np.abs(total) + np.abs(price))).max())

    against_zero = float(((paid - wealth - most * m) / size).max())
    tightest = log_K - np.log(sigma) - (m + total) / sigma - 0.5
    return max(against_zero, excess(tightest), *(excess(math.log(s_hat)) for s_hat in np.geomspace(1e-12, 1e12, 25)))
