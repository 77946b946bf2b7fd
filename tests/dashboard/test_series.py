"""Curves for the screen: whatever is drawn in a column, its extremes are those of its steps."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.dashboard._bands import grid, quantiles
from mechanicd.dashboard._curves import Curves
from mechanicd.dashboard._request import SeriesRequest
from mechanicd.dashboard._series import SERIES, Axis, columns, heat
from mechanicd.runs import StepOutcome, StepRow, pack
from mechanicd.store import Claim, Commit, open_store
from mechanicd.store._summary import of_steps
from mechanicd.tuner import TunerConfig, TunerState

COLUMN = {"S": 5, "h": 4, "grad_norm": 2, "param_norm": 3, "delta_dot_g": 0, "delta_dot_x": 1}
ORIGIN = 10**18
VALUES = st.floats(allow_nan=True, allow_infinity=False, width=64) | st.sampled_from([0.0, 1e-300, 1e300, -1e300])


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, Any, list[float | None]]:
    """Groups, values (steps, 6, groups) of a quiet curve with a few spikes, and BASE's learning rate a step."""
    groups, steps = draw(st.integers(1, 3)), draw(st.integers(1, 400))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=(steps, 6, groups))
    for _ in range(draw(st.integers(0, 5))):
        place = tuple(draw(st.integers(0, size - 1)) for size in values.shape)
        values[place] = draw(VALUES)
    values[:, 2:4] = np.abs(values[:, 2:4])
    lrs = draw(st.lists(st.none() | st.floats(0.0, 1.0), min_size=steps, max_size=steps))
    return groups, values, lrs


def records(groups: int, values: Any, lrs: list[float | None], first: int = 1) -> bytes:
    return b"".join(
        pack(groups, StepRow(first + at, 10**9 * (first + at), StepOutcome.TUNED, *map(tuple, step.tolist()), lr))
        for at, (step, lr) in enumerate(zip(values, lrs, strict=True))
    )


def raw(name: str, values: Any, lrs: list[float | None], group: int | None) -> Any:
    """float64 (steps, chosen groups)."""
    lr = np.array([math.nan if value is None else value for value in lrs])[:, None]
    if name == "base_lr":
        return lr
    with np.errstate(over="ignore"):
        found = values[:, 5] * lr if name == "effective_lr" else values[:, COLUMN[name]]
    found = found if group is None else found[:, group : group + 1]
    return np.sqrt(found) if name.endswith("_norm") else found


@given(
    run=runs(),
    size=st.sampled_from([1, 16, 64, 256]),
    pixels=st.integers(1, 120),
    name=st.sampled_from(sorted(SERIES)),
    one=st.booleans(),
    first=st.integers(1, 300),
)
@settings(deadline=None)
def test_the_extremes_of_every_column_are_the_exact_ones_of_its_steps(
    run: Any, size: int, pixels: int, name: str, one: bool, first: int
) -> None:
    groups, values, lrs = run
    group = groups - 1 if one else None
    buckets = of_steps(groups, records(groups, values, lrs, first), size)
    found = columns(buckets, name, group, pixels, Axis())
    exact = raw(name, values, lrs, group)
    assert 1 <= len(found.x) <= pixels
    if len(buckets) >= 2 * pixels:
        assert len(found.x) >= pixels // 3
    assert found.first[0] == first
    assert found.last[-1] == first + len(values) - 1
    assert found.first[1:].tolist() == (found.last[:-1] + 1).tolist(), "every step is in one column"
    assert found.exact == (found.first.tolist() == found.last.tolist())
    for at in range(len(found.x)):
        part = exact[found.first[at] - first : found.last[at] - first + 1]
        low, high, end = np.fmin.reduce(part, axis=None), np.fmax.reduce(part, axis=None), np.fmax.reduce(part[-1])
        np.testing.assert_array_equal([found.min[at], found.max[at], found.end[at]], [low, high, end])


def test_columns_of_a_growing_run_stay_where_they_are() -> None:
    values, lrs = np.random.default_rng(0).normal(size=(1000, 6, 1)), [None] * 1000
    before = columns(of_steps(1, records(1, values[:900], lrs[:900])), "S", None, 40, Axis())
    after = columns(of_steps(1, records(1, values, lrs)), "S", None, 40, Axis())
    assert after.first[: len(before.x)].tolist() == before.first.tolist()
    assert after.max[: len(before.x) - 1].tolist() == before.max[:-1].tolist()


def test_a_time_axis_is_in_its_unit_and_never_goes_back() -> None:
    rows = [
        StepRow(step, time, StepOutcome.TUNED, *([(1.0,)] * 6), None)
        for step, time in [(1, 5 * 10**9), (2, 7 * 10**9), (3, 6 * 10**9)]
    ]
    buckets = of_steps(1, b"".join(pack(1, row) for row in rows), 1)
    assert columns(buckets, "S", None, 10, Axis("time")).x.tolist() == [5000.0, 7000.0, 7000.0]
    assert columns(buckets, "S", None, 10, Axis("relative", 5 * 10**9)).x.tolist() == [0.0, 2.0, 2.0]


def test_no_steps_are_no_columns() -> None:
    assert columns(of_steps(1, b""), "S", None, 10, Axis()).as_dict()["x"].tolist() == []
    assert heat(of_steps(2, b"", 16), ("a", "b"), 10, 10)["S"].shape == (2, 0)


@pytest.mark.parametrize(("rows", "titles"), [(5, ["a", "b", "c", "d", "e"]), (3, ["a … b", "c … d", "e … e"])])
def test_a_heat_map_has_the_largest_S_of_each_group_and_neighbours_where_there_are_too_many(
    rows: int, titles: list[str]
) -> None:
    values = np.random.default_rng(1).normal(size=(100, 6, 5))
    found = heat(of_steps(5, records(5, values, [None] * 100)), tuple("abcde"), 4, rows)
    assert found["groups"] == titles
    together = 5 // rows + (5 % rows > 0)
    for row in range(len(titles)):
        for at, (first, last) in enumerate(zip(found["first"], found["last"], strict=True)):
            part = values[first - 1 : last, 5, row * together : (row + 1) * together]
            assert found["S"][row, at] == part.max()


def test_bands_are_quantiles_over_the_runs_that_there_are_at_a_point() -> None:
    curves = [(np.array([0.0, 2.0]), np.array([1.0, 2.0])), (np.array([1.0, 4.0]), np.array([5.0, 6.0]))]
    points = grid(curves, None, None, 5)
    assert points.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    found = quantiles(curves, points, (0.0, 0.5, 1.0))
    assert found["n"].tolist() == [1, 2, 2, 1, 1]
    assert found["q"].tolist() == [[1.0, 1.0, 2.0, 5.0, 6.0], [1.0, 3.0, 3.5, 5.0, 6.0], [1.0, 5.0, 5.0, 5.0, 6.0]]
    assert grid([], None, None, 5).tolist() == []
    assert quantiles([], np.array([1.0]), (0.5,))["n"].tolist() == [0]


# --- from a stretch of the x axis to buckets, over a real store --------------------------------------------------------


STEPS = 40_000


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A store with one run of many steps, one a second, partly folded; its S is a random walk with spikes."""
    store = open_store(f"sqlite:///{tmp_path_factory.mktemp('long') / 'x.db'}")
    rng = np.random.default_rng(5)
    S = np.exp(np.cumsum(rng.normal(scale=0.02, size=STEPS)))
    S[rng.integers(0, STEPS, 40)] *= 1e4
    row = store.create("p", "r", TunerConfig(), TunerState.initial(TunerConfig()).to_bytes(), (0.0,), ORIGIN)
    row = store.claim(
        Claim(run_id=row.id, expected_epoch=0, session=1, after_step=0, state=row.state, scale=(0.0,), labels={}, time=ORIGIN)
    )
    for first in range(0, STEPS, 10_000):
        records = b"".join(
            pack(1, StepRow(step + 1, ORIGIN + 10**9 * step, StepOutcome.TUNED, *([(1.0,)] * 5), (float(S[step]),), None))
            for step in range(first, first + 10_000)
        )
        commit = Commit(
            run_id=row.id,
            epoch=row.epoch,
            session=1,
            after_step=first,
            last_step=first + 10_000,
            state=row.state,
            scale=(float(S[first + 9_999]),),
            step_time=ORIGIN + 10**9 * (first + 9_999),
            records=records,
        )
        assert store.commit([commit], []) == [True]
        if first == 20_000:
            while store.fold():
                pass
    (row,) = store.rows([row.id])
    yield store, row, S
    store.close()


@given(
    ends=st.tuples(st.integers(-10, STEPS + 10), st.integers(0, STEPS)),
    pixels=st.integers(2, 1500),
    x=st.sampled_from(["step", "relative", "time"]),
)
@settings(deadline=None)
def test_any_stretch_shows_its_exact_extremes_in_as_many_columns_as_there_is_room_for(
    long: Any, ends: tuple[int, int], pixels: int, x: Any
) -> None:
    store, row, S = long
    low, high = ends[0], ends[0] + ends[1]
    offset, unit = {"step": (1, 1), "relative": (0, 1), "time": (ORIGIN // 10**9, 1000)}[x]
    request = SeriesRequest(runs=("r",), x=x, x0=(low + offset) * unit, x1=(high + offset) * unit, columns=pixels)
    (answer,) = Curves().series(store, [("r", row)], request)["runs"]
    columns = answer["columns"]
    inside = np.arange(max(low, 0), min(high, STEPS - 1) + 1)
    if not len(inside):
        assert not len(columns["x"])
        return
    assert len(columns["x"]) <= pixels
    assert len(columns["x"]) >= min(len(inside), pixels // 2)
    assert columns["first"][0] <= inside[0] + 1
    assert columns["last"][-1] >= inside[-1] + 1
    slack = 2 * (columns["last"] - columns["first"]).max() + 1
    assert columns["first"][0] >= inside[0] + 1 - slack
    assert columns["last"][-1] <= inside[-1] + 1 + slack
    for at in range(len(columns["x"])):
        part = S[columns["first"][at] - 1 : columns["last"][at]]
        assert (columns["min"][at], columns["max"][at], columns["end"][at]) == (part.min(), part.max(), part[-1])
