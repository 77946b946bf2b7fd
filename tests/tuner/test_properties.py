"""What holds for the tuner whatever it is told."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mechanicd.tuner import CONVENTIONS, Reductions, ReductionsError, Tuner, TunerConfig, TunerState
from mechanicd.tuner._rules_numpy import Table

repeatable = settings(derandomize=True, database=None, deadline=None, max_examples=80, phases=[Phase.generate])
conventions = pytest.mark.parametrize("convention", CONVENTIONS)

EXTREMES = [0.0, -0.0, 5e-324, 1e-300, 1.0, -1.0, 1e100, -1e140, 1e308, -1e308, 1.7976931348623157e308]
numbers = st.floats(-100.0, 100.0) | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(EXTREMES)
reductions = st.builds(Reductions, numbers, numbers, numbers.map(abs), numbers.map(abs))
betas = st.lists(st.floats(1e-6, 1.0) | st.sampled_from([5e-324, 0.9, 0.999999, 1.0]), min_size=1, max_size=7)
powers_of_two = st.integers(-60, 60).map(lambda k: 2.0**k)
sane = st.builds(
    Reductions,
    st.floats(-1e3, 1e3).filter(lambda h: abs(h) > 1e-3),
    st.floats(-1e3, 1e3).filter(lambda d: abs(d) > 1e-3),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 1e3),
)


@pytest.mark.parametrize("convention", ["paper", "optax"])
@repeatable
@given(steps=st.lists(sane, min_size=3, max_size=60), c=powers_of_two, betas=betas)
def test_the_scale_of_the_gradients_the_updates_and_the_parameters_is_nothing_to_the_tuner(convention, steps, c, betas):
    """c·g, c·u (so c·Δ) or c·x give the same S, bit for bit: c is a power of two and ε out of sight, so nothing is rounded.

    For the updates this is D.2's "no effect on the resulting s", at given g and x; of a training that moves with them it
    says nothing.
    """
    tuner = Tuner(TunerConfig(convention=convention, betas=betas, eps=1e-300))
    scales = scales_of(tuner, steps)
    assert scales_of(tuner, [Reductions(c * dg, dx, c * c * gg, xx) for dg, dx, gg, xx in steps]) == scales
    assert scales_of(tuner, [Reductions(c * dg, c * dx, gg, xx) for dg, dx, gg, xx in steps]) == scales
    assert scales_of(tuner, [Reductions(dg, c * dx, gg, c * c * xx) for dg, dx, gg, xx in steps]) == scales


@repeatable
@given(steps=st.lists(sane, min_size=3, max_size=60), c=powers_of_two)
def test_algorithm_2_bets_its_wealth_so_there_the_scale_follows_the_gradients(steps, c):
    """With a W_0 that is given, c·g gives S/c: the stake is S·h, in the unit of W_0. That is what s_init·m is for (D.2)."""
    tuner = Tuner(TunerConfig(convention="theory", s_decay=0.0, initial_wealth=1.0, eps=1e-300))
    scaled = scales_of(tuner, [Reductions(c * dg, dx, c * c * gg, xx) for dg, dx, gg, xx in steps])
    assert [c * S for S in scaled] == scales_of(tuner, steps)


@repeatable
@given(hs=st.lists(st.floats(1.0, 1e3) | st.floats(-1e3, -1.0), min_size=3, max_size=60), c=st.floats(1e-3, 1e9))
def test_with_the_default_eps_the_scale_of_h_matters_as_little_as_eps_does(hs, c):
    """For any c, within a bound that is carried along: roundings and ε/√v, each magnified where r subtracts."""
    tuner = Tuner(TunerConfig())
    state = scaled = tuner.init()
    off_r = off_s = np.zeros(6)
    for t, h in enumerate(hs):
        off_r, off_s = carried(tuner.config, state, h, tuner.advance(state, (h,)), off_r, off_s, t, c)
        state, scaled = tuner.advance(state, (h,)), tuner.advance(scaled, (c * h,))
        assert abs(scaled.scale[0] - state.scale[0]) <= 2.0 * off_s.sum()  # 2: the bound is of first order


def test_on_a_steady_descent_that_is_less_than_a_millionth():
    """The same with numbers: |h| from 1 to 1e3 as a run learns, ε = 1e-8."""
    hs = [-1.0 - min(t, 1000) * (1.0 + 0.5 * math.sin(t)) for t in range(300)]
    tuner = Tuner(TunerConfig())
    expected = np.array(scales_of_h(tuner, hs))
    for c in (1 / 3, 0.1, 7.0, 1e6):
        assert np.array(scales_of_h(tuner, [c * h for h in hs])) == pytest.approx(expected, rel=1e-6)
    assert expected[-1] > 1e3 * expected[0]


@conventions
def test_the_first_scale_is_s_init_whatever_the_first_h(convention):
    """D.2: more intuitive to set than a wealth. (Algorithm 2 waits for its second h; its wealth sets its bets.)"""
    for h in (-1e-3, -7.0, 1e9):
        tuner = Tuner(TunerConfig(convention=convention, s_init=1e-3, eps=1e-300))
        S = tuner.advance(tuner.init(), (h,)).scale[0]
        expected = 0.0 if convention == "theory" else 1e-3
        assert pytest.approx(expected, rel=1e-14) == S


@conventions
@repeatable
@given(
    steps=st.lists(reductions, min_size=1, max_size=25),
    betas=betas,
    s_decay=st.floats(0.0, 1e6),
    s_init=st.floats(5e-324, 1e6),
    eps=st.floats(5e-324, 1.0),
)
def test_any_finite_reductions_give_a_finite_scale_of_zero_or_more(numpy_from, convention, steps, betas, s_decay, s_init, eps):
    config = TunerConfig(convention, betas, s_decay, s_init, eps, initial_wealth=s_init)
    for groups in (1, 99):
        with numpy_from(groups):
            tuner = Tuner(config)
            state = tuner.init()
            for step in steps:
                state = tuner.update(state, step)
                assert_sound(state, len(betas))


@conventions
@pytest.mark.parametrize("h", [-1.0, -1e30, -1e140, -1.7e308])
def test_a_long_run_of_one_sign_saturates(convention, h):
    """Each step reinvests the wealth, so S grows like a power; it ends at 1e30 a β, and stays a number."""
    tuner = Tuner(TunerConfig(convention=convention))
    state, scales = tuner.init(), []
    for _ in range(4000):
        state = tuner.update(state, Reductions(h, h, abs(h), abs(h)))
        scales.append(state.scale[0])
    assert_sound(state, 6)
    assert scales[-1] == max(scales) >= 1e30


@conventions
@pytest.mark.parametrize("form", ["floats", "arrays"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_scalar_that_is_not_finite_changes_nothing_but_the_step(numpy_from, convention, form, bad):
    with numpy_from(1 if form == "arrays" else 99):
        tuner = Tuner(TunerConfig(convention=convention, s_init=0.1, initial_wealth=1.0, scale_groups=("a", "b")))
        good = Reductions(-2.0, 1.0, 4.0, 9.0)
        before = tuner.update(tuner.update(tuner.init(), [good, good]), [good, good])
        assert before.scale[0] > 0.0
        for field in Reductions._fields if bad != -math.inf else Reductions._fields[:2]:
            after = tuner.update(before, [good, good._replace(**{field: bad})])
            assert after.step == before.step + 1
            assert after == TunerState(before.step + 1, before.scale, before.table)
        assert tuner.update(after, [good, good]).rows == tuner.update(before, [good, good]).rows


@conventions
@repeatable
@given(
    data=st.integers(1, 5).flatmap(
        lambda groups: st.lists(st.lists(reductions, min_size=groups, max_size=groups), min_size=1, max_size=12)
    ),
    betas=betas,
    eps=st.sampled_from([1e-8, 1e-300, 5e-324]),
)
def test_arrays_floats_and_single_groups_give_the_same_bits(numpy_from, convention, data, betas, eps):
    names = tuple(f"group{index}" for index in range(len(data[0])))
    config = TunerConfig(convention=convention, betas=betas, eps=eps, scale_groups=names)
    with numpy_from(1):
        arrays = states_of(Tuner(config), data)
    assert isinstance(arrays[-1].table, Table)
    with numpy_from(99):
        floats = states_of(Tuner(config), data)
    assert [state.to_bytes() for state in arrays] == [state.to_bytes() for state in floats]
    assert [packed(state.scale) for state in arrays] == [packed(state.scale) for state in floats]
    for index in range(len(names)):
        alone = states_of(Tuner(TunerConfig(convention=convention, betas=betas, eps=eps)), [[step[index]] for step in data])
        assert [packed(state.scale) for state in alone] == [packed(state.scale[index : index + 1]) for state in floats]
        assert all(a.rows == (b.rows[index],) for a, b in zip(alone, floats, strict=True))


@conventions
def test_many_groups_are_kept_in_arrays_that_nobody_can_write_to(convention):
    tuner = Tuner(TunerConfig(convention=convention, scale_groups=tuple(map(str, range(32)))))
    state = tuner.update(tuner.init(), [Reductions(-1.0, 0.0, 1.0, 1.0)] * 32)
    for array in state.table:
        assert isinstance(array, np.ndarray)
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0


@conventions
@pytest.mark.parametrize("groups", [1, 40])
def test_a_step_leaves_its_state_alone_and_comes_out_the_same_again(convention, groups):
    tuner = Tuner(TunerConfig(convention=convention, scale_groups=tuple(map(str, range(groups)))))
    state = tuner.update(tuner.init(), [Reductions(-1.0, 2.0, 1.0, 1.0)] * groups)
    before, step = state.to_bytes(), [Reductions(0.5, -1.0, 3.0, 2.0)] * groups
    assert tuner.update(state, step).to_bytes() == tuner.update(state, step).to_bytes() != before
    assert state.to_bytes() == before


@pytest.mark.parametrize("field", ["g_norm_sq", "x_norm_sq"])
@pytest.mark.parametrize("value", [-1e-300, -math.inf])
def test_a_negative_square_is_refused(field, value):
    tuner = Tuner()
    with pytest.raises(ReductionsError, match=field) as refusal:
        tuner.update(tuner.init(), Reductions(1.0, 1.0, 1.0, 1.0)._replace(**{field: value}))
    assert refusal.value.reason == "NEGATIVE_SQUARE"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_reductions_for_another_number_of_groups_are_refused(count):
    tuner = Tuner(TunerConfig(scale_groups=("a", "b")))
    with pytest.raises(ReductionsError, match=rf"\breductions of {count} scale groups, expected 2") as refusal:
        tuner.update(tuner.init(), [Reductions(1.0, 1.0, 1.0, 1.0)] * count)
    assert refusal.value.reason == "GROUP_COUNT_MISMATCH"


def states_of(tuner: Tuner, steps: Sequence[Sequence[Reductions]]) -> list[TunerState]:
    states = [tuner.init()]
    for step in steps:
        states.append(tuner.update(states[-1], step))
    return states


def scales_of(tuner: Tuner, steps: Sequence[Reductions]) -> list[float]:
    return [state.scale[0] for state in states_of(tuner, [[step] for step in steps])]


def scales_of_h(tuner: Tuner, hs: Sequence[float]) -> list[float]:
    state, scales = tuner.init(), []
    for h in hs:
        state = tuner.advance(state, (h,))
        scales.append(state.scale[0])
    return scales


def carried(
    config: TunerConfig, state: TunerState, h: float, after: TunerState, off_r: np.ndarray, off_s: np.ndarray, t: int, c: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far r/c and s may be from those of the unscaled run after this step, per β, if they were off_r and off_s before."""
    u = 2.0**-51  # a few roundings
    betas, row, new = np.array(config.betas), state.rows[0], after.rows[0]
    r, s, v = np.array(row.r), np.array(row.s), np.array(new.v)
    W = np.array(new.s) * (np.sqrt(v) + config.eps)
    off_r = betas * off_r + abs(h) * off_s + u * (betas * r + s * abs(h))
    drift = u * (t + 2) + config.eps * (1.0 + 1.0 / c) / np.sqrt(v)  # m and √v drift by a rounding a step
    return off_r, (off_r + W * drift) / np.sqrt(v)


def assert_sound(state: TunerState, n: int) -> None:
    for row in state.rows:
        assert all(math.isfinite(value) for field in row for value in field)
        assert min(*row.m, *row.v, *row.s) >= 0.0
        assert max(row.s) <= 1e30
    for S in state.scale:
        assert 0.0 <= S <= n * 1e30


def packed(values: Sequence[float]) -> bytes:
    """The bits, so that 0.0 is not −0.0."""
    return np.array(values).tobytes()
