"""What somebody should look at: healthy trainings need nothing; each kind of trouble is named, and one near it is not.

The steps come from real tuners around real problems (`trainings`), through the packed records and the vitals as in a server.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mechanicd.runs import Alert, AlertKind, RunRow, RunStats, RunStatus, Silence, StepRow, alerts, first_scale, pack
from mechanicd.tuner import CONVENTIONS, TunerConfig
from tests.runs import trainings

S = 10**9
SILENCE = Silence(factor=20.0, seconds=30.0)
X = np.random.default_rng(3).normal(size=20)
STEPS = 2500


def followed(steps: Iterable[StepRow], config: TunerConfig | None = None, flush: int = 16) -> Iterator[RunRow]:
    """The run's row after each flush."""
    config = config or TunerConfig()
    stats, buffer = RunStats(), b""
    for count, step in enumerate(steps, 1):
        buffer += pack(1, step)
        if count % flush == 0:
            stats, buffer = stats.after(1, first_scale(config), buffer), b""
            yield row(stats, step, config)


def row(stats: RunStats, step: StepRow, config: TunerConfig) -> RunRow:
    return RunRow(
        id=1,
        project="p",
        run="r",
        labels={},
        config=config,
        status=RunStatus.RUNNING,
        status_message="",
        epoch=1,
        session=1,
        last_step=step.step,
        state=b"",
        scale=step.scale,
        create_time=S,
        open_time=S,
        step_time=step.time,
        interval=S,
        session_count=1,
        rewinds=0,
        stats=stats,
    )


def judged(steps: Iterable[StepRow], config: TunerConfig | None = None) -> dict[str, list[Alert]]:
    """Every need that a watcher would have seen while the training went on, by kind."""
    seen: dict[str, list[Alert]] = {}
    for each in followed(steps, config):
        for need in alerts(each, each.step_time, SILENCE):
            seen.setdefault(need.kind, []).append(need)
    return seen


def at_end(steps: Iterable[StepRow], config: TunerConfig | None = None) -> RunRow:
    *_, last = followed(steps, config)
    return last


def of(found: list[Alert], kind: str) -> Alert:
    (need,) = [need for need in found if need.kind == kind]
    return need


# --- healthy ---------------------------------------------------------------------------------------------------------


def cosine(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / STEPS))


def restarts(step: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * (step % 500) / 500))


def warmup(step: int) -> float:
    return min(1.0, step / 500)


def from_zero(step: int) -> float:
    return min(1.0, (step - 1) / 100)


def skipped_now_and_then(step: int, reductions: Any) -> Any:
    """As a gradient scaler does: some overflows at the start, then one here and there."""
    overflow = step <= 8 or step % 200 == 0
    return reductions._replace(g_norm_sq=math.inf) if overflow else reductions


HEALTHY: dict[str, Callable[[int], Iterator[StepRow]]] = {
    "regression, Adam": lambda seed: trainings.train(X, trainings.regression(), trainings.adam(), STEPS, seed=seed),
    "regression from zero, SGD": lambda seed: trainings.train(0 * X, trainings.regression(), trainings.sgd(), STEPS, seed=seed),
    "regression, a sample at a time": lambda seed: trainings.train(
        X, trainings.regression(batch=1), trainings.adam(), STEPS, seed=seed
    ),
    "ill-conditioned, little but noise": lambda seed: trainings.train(
        X, trainings.regression(condition=1e4, noise=10, batch=2), trainings.adam(), STEPS, seed=seed
    ),
    "network, Adam, cosine": lambda seed: network(trainings.adam(), cosine, seed=seed),
    "network, Adam, warm restarts": lambda seed: network(trainings.adam(), restarts, batch=2, seed=seed),
    "network, momentum, warm-up": lambda seed: network(trainings.sgd(0.9), warmup, seed=seed),
    "network, warm-up from lr = 0": lambda seed: network(trainings.adam(), from_zero, seed=seed),
    "network, a sample at a time": lambda seed: network(trainings.sgd(), batch=1, seed=seed),
    "network, lr = 1e-3 as without MECHANIC": lambda seed: network(trainings.adam(1e-3), cosine, batch=32, seed=seed),
    "overflows of a gradient scaler": lambda seed: network(trainings.adam(), spoil=skipped_now_and_then, seed=seed),
    "S held by hand": lambda seed: network(trainings.adam(), hold=lambda step: step > 1000, seed=seed),
}


def network(base: Any, schedule: Any = trainings.constant, batch: int = 16, seed: int = 0, **options: Any) -> Iterator[StepRow]:
    start, gradient = trainings.classification(batch=batch)
    steps: Iterator[StepRow] = trainings.train(start, gradient, base, STEPS, schedule, seed=seed, **options)
    return steps


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_training_needs_nothing(kind: str, seed: int) -> None:
    assert judged(HEALTHY[kind](seed)) == {}


@pytest.mark.parametrize("convention", ["pytorch", "optax", "theory"])
def test_nor_does_it_in_the_other_conventions(convention: Any) -> None:
    config = TunerConfig(convention=convention, s_init=1e-6 if convention == "optax" else 1e-8)
    start, gradient = trainings.classification()
    assert judged(trainings.train(start, gradient, trainings.adam(), STEPS, cosine, config), config) == {}
    assert judged(trainings.train(X, trainings.regression(), trainings.sgd(), STEPS, config=config), config) == {}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_run_without_a_step_needs_nothing_yet(convention: Any) -> None:
    config = TunerConfig(convention=convention)
    nan = (math.nan,)
    assert alerts(row(RunStats(), StepRow(0, S, 1, nan, nan, nan, nan, nan, (0.0,), None), config), S, SILENCE) == []


# --- stuck -----------------------------------------------------------------------------------------------------------


def noise(x: Any, rng: np.random.Generator) -> Any:
    return rng.normal(size=x.shape)


def test_a_gradient_of_noise_alone_is_stuck_after_a_thousand_steps_and_not_before() -> None:
    steps = list(trainings.train(X, noise, trainings.adam(), 1200))
    assert judged(steps[:992]) == {}
    seen = judged(steps)
    assert list(seen) == ["stuck"]
    assert "after 1008 steps and never left the scale of s_init = 1e-08" in seen["stuck"][0].message
    assert seen["stuck"][0].step == 1


def test_a_wrong_sign_is_stuck() -> None:
    wrong = trainings.train(
        X, trainings.regression(), trainings.adam(), 1100, spoil=lambda step, r: r._replace(delta_dot_g=-r.delta_dot_g)
    )
    assert list(judged(wrong)) == ["stuck"]


def test_gradients_of_zero_are_stuck_at_zero_and_a_learning_rate_of_zero_is_left_alone() -> None:
    still = at_end(trainings.train(X, lambda x, rng: 0 * x, trainings.sgd(), 1100))
    assert "no update moves the parameters" in of(alerts(still, still.step_time, SILENCE), "stuck").message
    assert judged(trainings.train(X, trainings.regression(), trainings.adam(), 1100, lambda step: 0.0)) == {}


def test_an_s_init_that_is_no_underestimate_is_not_called_stuck() -> None:
    config = TunerConfig(s_init=0.01)
    assert judged(trainings.train(X, trainings.regression(), trainings.adam(), 1500, config=config), config) == {}


def test_stuck_begins_to_count_anew_after_a_rewind() -> None:
    steps = list(trainings.train(X, noise, trainings.adam(), 1100))
    since = RunStats(since=600).after(1, 1e-8, b"".join(pack(1, step) for step in steps[600:]))
    assert since.tuned == 500
    last = row(since, steps[-1], TunerConfig())
    assert alerts(last, last.step_time, SILENCE) == []


# --- collapsed, running away, oscillating ----------------------------------------------------------------------------


def turned(at: int, until: int = 10**9) -> Any:
    """The gradient of a problem whose target moves far away at a step: what was descent is ascent."""
    count = 0

    def gradient(x: Any, rng: np.random.Generator) -> Any:
        nonlocal count
        count += 1
        return (x - (30.0 if at < count < until else -30.0)) + 0.3 * rng.normal(size=x.shape)

    return gradient


def test_s_that_falls_to_a_thousandth_has_collapsed() -> None:
    fallen = at_end(trainings.train(0 * X + 0.1, lambda x, rng: -x, trainings.sgd(), 400))
    need = of(alerts(fallen, fallen.step_time, SILENCE), "collapsed")
    assert max(fallen.scale) < 1e-3 * fallen.stats.peak
    assert need.step == fallen.stats.peak_step
    assert f"down from {fallen.stats.peak:.3g} at step {need.step}" in need.message


def test_s_that_falls_by_a_factor_of_thirty_has_not() -> None:
    start = list(trainings.train(X, trainings.regression(), trainings.adam(), 640))
    low = [step._replace(step=step.step + 640, scale=(step.scale[0] / 30,)) for step in start[320:]]
    assert judged([*start, *low]) == {}
    lower = [step._replace(step=step.step + 640, scale=(step.scale[0] / 3000,)) for step in start[320:]]
    assert list(judged([*start, *lower])) == ["collapsed"]


def test_a_dip_of_a_few_steps_is_no_collapse() -> None:
    steps = list(trainings.train(X, trainings.regression(), trainings.adam(), 640))
    dip = [step._replace(scale=(step.scale[0] / 1e4,)) if 500 < step.step < 510 else step for step in steps]
    assert judged(dip) == {}


def test_a_loss_without_a_floor_runs_away_and_stays_so() -> None:
    steps = trainings.train(X, lambda x, rng: -np.ones(20) + 0.1 * rng.normal(size=20), trainings.adam(), 1000)
    rows = list(followed(steps))
    kinds = [[need.kind for need in alerts(each, each.step_time, SILENCE)] for each in rows]
    assert all("running_away" in found for found in kinds[16:])
    assert "limited only by s_decay = 0.01" in of(alerts(rows[-1], rows[-1].step_time, SILENCE), "running_away").message


def test_parameters_and_s_that_explode_together_run_away() -> None:
    config = TunerConfig(s_decay=0.0)
    rows = list(followed(trainings.train(0.01 * X, lambda x, rng: -x, trainings.sgd(), 160, config=config), config))
    found = [need for each in rows for need in alerts(each, each.step_time, SILENCE) if need.kind == "running_away"]
    assert "S grew from" in found[0].message
    assert "and ‖x‖ from" in found[0].message


def test_s_at_the_bound_of_the_tuner_runs_away_whatever_else_is_known() -> None:
    """One h that never changes, no decay, nothing forgotten: S grows until it saturates."""
    config = TunerConfig(s_decay=0.0, betas=(1.0,))
    steps = trainings.train(X, noise, trainings.sgd(), 3000, config=config, spoil=lambda step, r: r._replace(delta_dot_g=-1.0))
    last = at_end(steps, config)
    assert max(last.scale) == 1e30
    assert "it is growing without bound" in of(alerts(last, last.step_time, SILENCE), "running_away").message


def test_a_ramp_that_finds_a_floor_does_not_run_away() -> None:
    """From x = 0, where ‖x‖ grows with S by every factor of ten that S does."""
    for seed in range(3):
        assert judged(trainings.train(0 * X, trainings.regression(), trainings.adam(), 300, warmup, seed=seed)) == {}


def flipping(period: int) -> Any:
    count = 0

    def gradient(x: Any, rng: np.random.Generator) -> Any:
        nonlocal count
        count += 1
        return np.ones(20) * (1 if count // period % 2 else -1) + 0.1 * rng.normal(size=20)

    return gradient


def test_a_direction_that_turns_again_and_again_oscillates() -> None:
    seen = judged(trainings.train(X, flipping(50), trainings.adam(), 1000))
    assert "oscillating" in seen
    assert "S has reversed direction 8 times since step" in seen["oscillating"][0].message


def test_one_that_turns_twice_does_not() -> None:
    assert "oscillating" not in judged(trainings.train(X, flipping(400), trainings.adam(), 1000))


def test_an_oscillation_is_over_when_it_has_been_calm_for_longer_than_it_swung() -> None:
    steps = list(trainings.train(X, flipping(50), trainings.adam(), 480))
    first, *_, last = at_end(steps).stats.turns
    calm = [steps[-1]._replace(step=480 + n, time=(480 + n) * S) for n in range(1, 801)]
    for each in followed([*steps, *calm]):
        if each.last_step > last:
            swinging = [need.kind for need in alerts(each, each.step_time, SILENCE) if need.kind == "oscillating"]
            assert bool(swinging) == (each.last_step - last <= last - first)


# --- non-finite ------------------------------------------------------------------------------------------------------


def nan_from(first: int) -> Any:
    return lambda step, r: r._replace(delta_dot_g=math.nan) if step >= first else r


def test_a_loss_that_is_nan_from_some_step_on_is_named_by_that_step() -> None:
    steps = list(trainings.train(X, trainings.regression(), trainings.adam(), 400, spoil=nan_from(320)))
    assert judged(steps[:320]) == {}
    found = judged(steps)
    assert list(found) == ["non_finite"]
    last = found["non_finite"][-1]
    assert (last.step, "the last 81 steps" in last.message) == (320, True)


@pytest.mark.parametrize(("every", "expected"), [(4, ["non_finite"]), (20, [])])
def test_a_fourth_of_the_steps_without_a_number_is_too_many_and_a_twentieth_is_not(every: int, expected: list[str]) -> None:
    spoiled = trainings.train(
        X,
        trainings.regression(),
        trainings.adam(),
        600,
        spoil=lambda step, r: r._replace(x_norm_sq=math.nan) if step % every == 0 else r,
    )
    assert list(judged(spoiled)) == expected


# --- silent, outage --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def well() -> RunRow:
    """A healthy run in training, step 320 at second 320."""
    return at_end(trainings.train(X, trainings.regression(), trainings.adam(), 320))


@pytest.mark.parametrize(("quiet", "expected"), [(30, []), (31, ["silent"])])
def test_a_run_without_steps_is_silent_as_its_status_is(well: RunRow, quiet: int, expected: list[str]) -> None:
    found = alerts(well, well.step_time + quiet * S, SILENCE)
    assert [need.kind for need in found] == expected
    assert all(need.step == 320 and "usually one every 1 s" in need.message for need in found)


def test_a_run_that_is_done_needs_nobody(well: RunRow) -> None:
    gone = replace(well.stats, away=well.step_time)
    done = replace(well, status=RunStatus.FINISHED, session=0, stats=gone)
    assert alerts(done, well.step_time + 10**6 * S, SILENCE) == []


@pytest.mark.parametrize(("quiet", "expected"), [(10, []), (11, ["outage"]), (60, ["silent", "outage"])])
def test_a_trainer_whose_connection_ended_is_cut_off_or_dead_and_the_words_say_both(
    well: RunRow, quiet: int, expected: list[str]
) -> None:
    gone = replace(well, stats=replace(well.stats, away=well.step_time))
    found = alerts(gone, well.step_time + quiet * S, SILENCE)
    assert [need.kind for need in found] == expected
    for need in found[1:]:
        assert f"ended {'11 s' if quiet == 11 else '1 min'} ago" in need.message
        assert "the server can't tell which" in need.message


def test_a_session_that_comes_and_goes_is_named_while_it_does(well: RunRow) -> None:
    stats = well.stats
    for seconds in (100, 200):
        stats = stats.came_back(well.step_time - seconds * S)
    assert alerts(replace(well, stats=stats), well.step_time, SILENCE) == []
    shaken = replace(well, stats=stats.came_back(well.step_time))
    assert "came back 3 times in the last 10 min" in of(alerts(shaken, well.step_time, SILENCE), "outage").message
    later = replace(shaken, step_time=well.step_time + 590 * S)
    assert alerts(later, later.step_time, SILENCE) == []


# --- the vitals under them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", [1, 7, 64, 1000])
def test_the_vitals_do_not_depend_on_how_the_steps_were_flushed(flush: int) -> None:
    steps = list(
        trainings.train(X, flipping(70), trainings.adam(), 1000, spoil=nan_from(990), hold=lambda step: 500 < step < 520)
    )
    whole = RunStats().after(1, 1e-8, b"".join(pack(1, step) for step in steps))
    parts = RunStats()
    for begin in range(0, 1000, flush):
        parts = parts.after(1, 1e-8, b"".join(pack(1, step) for step in steps[begin : begin + flush]))
    assert parts == whole
    assert (whole.tuned, whole.held, whole.non_finite, whole.non_finite_streak) == (970, 19, 11, 11)
    assert [mark.step for mark in whole.marks] == [896, 960]
    scales = [step.scale[0] for step in steps]
    assert whole.peak == max(scales)
    assert whole.peak_step == scales.index(whole.peak) + 1
    assert whole.trough == min(scale for scale in scales[whole.peak_step - 1 :] if scale > 0)


def test_the_vitals_of_several_groups_are_of_the_largest_s() -> None:
    nan = (math.nan, math.nan)
    steps = [StepRow(n, n, 1, nan, nan, nan, (9.0, 16.0), nan, (n * 1e-3, 5.0 - n), 0.5) for n in range(1, 5)]
    stats = RunStats().after(2, 1e-8, b"".join(pack(2, step) for step in steps))
    assert (stats.peak, stats.peak_step, stats.trough, stats.trough_step) == (4.0, 1, 1.0, 4)
    assert stats.marks[0].x_norm == 5.0
    assert stats.base_lr == 0.5


def test_the_vitals_come_back_from_their_text_and_what_is_unknown_in_it_is_passed_over(well: RunRow) -> None:
    stats = replace(well.stats.came_back(5), away=7, base_lr=math.inf)
    assert RunStats.from_text(stats.to_text()) == stats
    assert RunStats.from_text('{"tuned": 3, "of a later version": [1]}') == RunStats(tuned=3)
    assert RunStats.from_text("") == RunStats()
    assert RunStats().to_text() == "{}"


def test_every_kind_of_need_is_in_the_contract() -> None:
    from mechanicd.v1 import resources_pb2

    assert [f"NEED_KIND_{kind.upper()}" for kind in AlertKind] == list(resources_pb2.NeedKind.keys())[1:]
