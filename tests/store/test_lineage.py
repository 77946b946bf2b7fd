"""A run taken back by hand, and a run that begins as a copy of another, in every store."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mechanicd.runs import EventKind, EventRow, RunRow, RunStats, RunStatus, StepRow, pack
from mechanicd.store import Claim, Commit, Fork, OwnershipLost, Release, Rewind, RunExists, Store
from mechanicd.tuner import TunerConfig, TunerState

ALL = 2**62
PLAIN, GROUPS = TunerConfig(), TunerConfig(scale_groups=("a", "b", "c"))
STEPS = 2500
_sessions = itertools.count(1)


def step(number: int, groups: int) -> StepRow:
    def values(shift: float) -> tuple[float, ...]:
        return tuple((number * 7919 % 1000) / 100.0 + shift + group for group in range(groups))

    return StepRow(number, 10**18 + number, 1, values(1), values(2), values(3), values(4), values(5), values(6), 1.0 / number)


def claim(store: Store, row: RunRow) -> RunRow:
    return store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=next(_sessions),
            after_step=row.last_step,
            state=row.state,
            scale=row.scale,
            labels={"batch": "256"},
            time=2_000,
        )
    )


def commit(store: Store, row: RunRow, count: int) -> RunRow:
    groups, last = len(row.config.scale_groups), row.last_step + count
    change = Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=row.last_step,
        last_step=last,
        state=b"state %d" % last,
        scale=(float(last),) * groups,
        step_time=10**18 + last,
        stats=RunStats(tuned=last),
        records=b"".join(pack(groups, step(number, groups)) for number in range(row.last_step + 1, last + 1)),
    )
    assert store.commit([change], []) == [True]
    return got(store, row.run)


def got(store: Store, run: str) -> RunRow:
    row = store.get("p", run)
    assert row is not None
    return row


def trained(store: Store, config: TunerConfig = PLAIN, *, closed: bool = True) -> RunRow:
    """A run of 2,500 steps in three commits; nobody holds it, where it is closed."""
    state = TunerState.initial(config)
    row = claim(store, store.create("p", "r", config, state.to_bytes(), state.scale, 1_000))
    for count in (1000, 1499, 1):
        row = commit(store, row, count)
    if closed:
        store.commit([], [Release(run_id=row.id, epoch=row.epoch, session=row.session, status="finished", message="done")])
    return got(store, "r")


def rewind(store: Store, row: RunRow, after_step: int, **changes: Any) -> RunRow:
    wanted = Rewind(
        run_id=row.id,
        expected_epoch=row.epoch,
        after_step=after_step,
        state=b"state %d" % after_step,
        scale=(float(after_step),) * len(row.config.scale_groups),
        message="by hand",
        events=(EventRow(5, after_step, EventKind.REWOUND_BY_HAND, "so"),),
    )
    return store.rewind(replace(wanted, **changes))


def forked(row: RunRow, after_step: int, run: str = "new") -> Fork:
    return Fork(
        source_id=row.id,
        expected_epoch=row.epoch,
        after_step=after_step,
        project="p",
        run=run,
        state=b"state %d" % after_step,
        scale=(float(after_step),) * len(row.config.scale_groups),
        time=7_000,
        message="a copy",
        events=(EventRow(7, after_step, EventKind.FORKED, "so"),),
    )


def fork(store: Store, row: RunRow, after_step: int, run: str = "new") -> RunRow:
    return store.fork(forked(row, after_step, run))


def history(store: Store, row: RunRow, branch: int = 0) -> list[StepRow]:
    return [each._replace(branch=0) for each in store.steps(row, branch, 1, ALL, ALL)]


def steps(first: int, last: int, groups: int = 1) -> list[StepRow]:
    return [step(number, groups) for number in range(first, last + 1)]


def same_summaries(store: Store, row: RunRow, other: RunRow, last: int) -> bool:
    """Whether two runs look alike at every zoom, up to a step."""
    return all(
        np.array_equal(a[field], b[field], equal_nan=field in ("min", "max", "last"))
        for most in (2, 3, 40, 200, 5000)
        for first in (1, last // 2 + 1)
        for a, b in [(store.summary(row, 0, first, last, most), store.summary(other, 0, first, last, most))]
        for field in a.dtype.names
    )


CUTS = [0, 1, 1000, 1024, 1025, 2499]


@pytest.mark.parametrize("after_step", CUTS)
def test_a_rewind_keeps_what_it_gives_up_as_a_branch_and_the_run_goes_on(store: Store, after_step: int) -> None:
    before = trained(store)
    row = rewind(store, before, after_step)
    assert row == got(store, "r")
    assert (row.last_step, row.state, row.scale) == (after_step, b"state %d" % after_step, (float(after_step),))
    assert (row.epoch, row.session, row.session_count, row.rewinds) == (before.epoch + 1, 0, 1, 1)
    assert (row.status, row.status_message, row.labels) == (RunStatus.PREEMPTED, "by hand", before.labels)
    assert row.revision > before.revision
    assert store.events(row.id)[-1] == EventRow(5, after_step, EventKind.REWOUND_BY_HAND, "so")
    assert history(store, row) == steps(1, after_step)
    assert history(store, row, 1) == steps(after_step + 1, STEPS)
    row = commit(store, claim(store, row), 700)
    assert history(store, row) == steps(1, after_step + 700)
    assert history(store, row, 1) == steps(after_step + 1, STEPS)


def test_a_rewind_to_where_the_run_is_makes_no_branch(store: Store) -> None:
    row = rewind(store, trained(store), STEPS)
    assert (row.rewinds, row.last_step) == (0, STEPS)
    assert history(store, row) == steps(1, STEPS)


def test_a_run_that_somebody_holds_or_took_meanwhile_is_not_taken_back(store: Store) -> None:
    held = trained(store, closed=False)
    with pytest.raises(OwnershipLost, match="has a session now"):
        rewind(store, held, 10)
    closed = trained_again(store, held)
    claim(store, closed)
    with pytest.raises(OwnershipLost, match="is at epoch"):
        rewind(store, closed, 10)
    row = got(store, "r")
    assert (row.last_step, row.rewinds) == (STEPS, 0)
    assert history(store, row) == steps(1, STEPS)


def test_a_run_taken_from_its_session_counts_as_nobodys_and_the_session_writes_nothing_more(store: Store) -> None:
    held = trained(store, closed=False)
    row = rewind(store, held, 100, session=77)
    assert (row.session, row.status, row.last_step) == (77, RunStatus.PREEMPTED, 100)
    late = Commit(
        run_id=held.id,
        epoch=held.epoch,
        session=held.session,
        after_step=STEPS,
        last_step=STEPS + 1,
        state=b"late",
        scale=(1.0,),
        step_time=1,
        records=pack(1, step(STEPS + 1, 1)),
    )
    assert store.commit([late], []) == [False]
    with pytest.raises(OwnershipLost):
        store.take_over(row.id, row.epoch, held.session)
    assert rewind(store, row, 50).rewinds == 2
    assert history(store, got(store, "r")) == steps(1, 50)


def trained_again(store: Store, row: RunRow) -> RunRow:
    store.commit([], [Release(run_id=row.id, epoch=row.epoch, session=row.session, status="failed", message="")])
    return got(store, row.run)


@pytest.mark.parametrize(
    ("config", "after_step"), [*((PLAIN, cut) for cut in [*CUTS, 16, STEPS]), (GROUPS, 1000), (GROUPS, 1024)]
)
def test_a_fork_has_the_history_up_to_its_step_and_goes_its_own_way(store: Store, config: TunerConfig, after_step: int) -> None:
    source = trained(store, config, closed=False)
    groups = len(config.scale_groups)
    made = fork(store, source, after_step)
    assert made == got(store, "new")
    assert (made.last_step, made.state, made.config, made.labels) == (
        *(after_step, b"state %d" % after_step),
        *(config, source.labels),
    )
    assert (made.epoch, made.session, made.session_count, made.rewinds) == (0, 0, 0, 0)
    assert (made.status, made.status_message, made.create_time) == (RunStatus.PREEMPTED, "a copy", 7_000)
    assert store.events(made.id) == [EventRow(7, after_step, EventKind.FORKED, "so")]
    assert history(store, made) == steps(1, after_step, groups)
    assert got(store, "r") == source, "the other run stays as it is"
    made = commit(store, claim(store, made), 300)
    source = commit(store, source, 100)
    assert history(store, made) == steps(1, after_step + 300, groups)
    assert history(store, source) == steps(1, STEPS + 100, groups)
    assert same_summaries(store, made, source, min(after_step + 300, STEPS) // 1024 * 1024 or 16)
    store.delete(source.id)
    assert history(store, made) == steps(1, after_step + 300, groups)


def test_a_fork_at_the_last_step_has_the_vital_signs_too(store: Store) -> None:
    source = trained(store)
    assert fork(store, source, STEPS).stats == source.stats == RunStats(tuned=STEPS)
    assert fork(store, source, 5, "other").stats == RunStats(since=5)


def test_a_fork_of_a_rewound_run_has_what_the_run_has_now(store: Store) -> None:
    row = commit(store, claim(store, rewind(store, trained(store), 1500)), 10)
    made = fork(store, row, 1505)
    assert (history(store, made), made.rewinds, history(store, made, 1)) == (steps(1, 1505), 0, [])


def test_a_name_that_is_taken_is_refused_and_nothing_is_made(store: Store) -> None:
    source = trained(store)
    made = fork(store, source, 10)
    with pytest.raises(RunExists, match="projects/p/runs/new"):
        fork(store, source, 20)
    assert got(store, "new") == made
    assert history(store, made) == steps(1, 10)


def test_a_fork_of_a_run_that_was_opened_or_deleted_meanwhile_is_refused(store: Store) -> None:
    source = trained(store)
    claim(store, source)
    with pytest.raises(OwnershipLost):
        fork(store, source, 10)
    store.delete(source.id)
    with pytest.raises(OwnershipLost, match="deleted"):
        fork(store, source, 10)
    assert store.get("p", "new") is None


def test_a_fork_within_thinned_steps_keeps_their_last_bucket_whole(store: Store) -> None:
    source = trained(store)
    while store.fold():
        pass
    while store.retain(keep_steps=100, oldest=None):
        pass
    made = fork(store, source, 1000)
    assert history(store, made) == []
    buckets = store.summary(made, 0, 1, 1000, 100)
    assert (int(buckets["first_step"][0]), int(buckets["last_step"][-1])) == (1, 1008)


def test_what_was_forked_and_rewound_is_on_disk(store: Store, reopen: Callable[[], Store]) -> None:
    source = trained(store)
    made, back = fork(store, source, 1100), rewind(store, source, 50)
    again = reopen()
    assert (got(again, "new"), got(again, "r")) == (made, back)
    assert history(again, made) == steps(1, 1100)
    assert history(again, back, 1) == steps(51, STEPS)
