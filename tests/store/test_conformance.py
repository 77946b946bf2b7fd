"""What every store keeps to, whatever database is under it."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mechanicd.runs import EventKind, EventRow, Mark, RunRow, RunStats, RunStatus, SessionRow, StepRow, pack
from mechanicd.store import Claim, Commit, OwnershipLost, Release, RunExists, Store
from mechanicd.tuner import TunerConfig, TunerState

ALL = 2**62
CONFIG = TunerConfig()
THREE_GROUPS = TunerConfig(convention="optax", betas=(0.5, 0.1 + 0.2), s_init=1e-300, scale_groups=("body", "head 2", "Größe"))
AWKWARD = [0.0, -0.0, 5e-324, -1.7976931348623157e308, math.inf, -math.inf, math.nan, 0.1]
_sessions = itertools.count(1)


def make(store: Store, run: str = "r", project: str = "p", config: TunerConfig = CONFIG) -> RunRow:
    state = TunerState.initial(config)
    return store.create(project, run, config, state.to_bytes(), state.scale, 1_000)


def claim(store: Store, row: RunRow, after_step: int | None = None, **changes: Any) -> RunRow:
    """The run in the hands of a new session."""
    after = row.last_step if after_step is None else after_step
    wanted = Claim(
        run_id=row.id,
        expected_epoch=row.epoch,
        session=next(_sessions),
        after_step=after,
        state=b"state after %d" % after,
        scale=(after * 0.1,) * len(row.config.scale_groups),
        labels=row.labels,
        time=2_000,
    )
    return store.claim(replace(wanted, **changes))


def step(number: int, groups: int = 1, about: str = "") -> StepRow:
    """A step that no other is like, with every kind of float somewhere."""
    rng = random.Random(f"{number} {groups} {about}")

    def values() -> tuple[float, ...]:
        return tuple(rng.choice([*AWKWARD, rng.gauss(0.0, 1.0)]) for _ in range(groups))

    lr = rng.choice([None, 0.0, rng.random()])
    return StepRow(
        number, rng.getrandbits(62), rng.choice([1, 2, 3]), values(), values(), values(), values(), values(), values(), lr
    )


def commit_of(row: RunRow, steps: list[StepRow]) -> Commit:
    last = steps[-1].step
    groups = len(row.config.scale_groups)
    return Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=row.last_step,
        last_step=last,
        state=b"state after %d" % last,
        scale=(last * 0.1,) * groups,
        step_time=last * 1_000,
        interval=500,
        records=b"".join(pack(groups, each) for each in steps),
    )


def commit(store: Store, row: RunRow, steps: list[StepRow]) -> RunRow:
    """The run with these steps on top."""
    assert store.commit([commit_of(row, steps)], []) == [True]
    return got(store, row)


def got(store: Store, row: RunRow) -> RunRow:
    now = store.get(row.project, row.run)
    assert now is not None
    return now


def history(store: Store, row: RunRow, branch: int = 0, first: int = 1, last: int = ALL, limit: int = ALL) -> list[bytes]:
    """The steps as exact bytes, since NaN is not equal to itself."""
    found = list(store.steps(row, branch, first, last, limit))
    assert all(each.branch == branch for each in found)
    return exact([each._replace(branch=0) for each in found], len(row.config.scale_groups))


def exact(steps: list[StepRow], groups: int = 1) -> list[bytes]:
    return [pack(groups, each) for each in steps]


# --- runs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, THREE_GROUPS], ids=["default", "three groups"])
def test_a_new_run_is_as_it_was_created_and_nobody_holds_it(store: Store, config: TunerConfig) -> None:
    row = make(store, "bert/seed0", config=config)
    state = TunerState.initial(config)
    assert (row.project, row.run, row.config) == ("p", "bert/seed0", config)
    assert (row.state, row.scale) == (state.to_bytes(), state.scale)
    assert (row.status, row.status_message, row.labels) == (RunStatus.RUNNING, "", {})
    assert (row.epoch, row.session, row.last_step, row.rewinds) == (0, 0, 0, 0)
    assert (row.create_time, row.step_time) == (1_000, 0)
    assert store.get("p", "bert/seed0") == row
    assert history(store, row) == []


def test_a_run_that_nobody_created_is_not_there(store: Store) -> None:
    make(store, "r", "p")
    assert store.get("p", "other") is None
    assert store.get("other", "r") is None


def test_a_second_run_of_a_name_is_refused_and_the_first_stays_as_it_was(store: Store) -> None:
    first = commit(store, claim(store, make(store)), [step(1)])
    with pytest.raises(RunExists, match="projects/p/runs/r"):
        make(store, config=THREE_GROUPS)
    assert got(store, first) == first
    assert make(store, "r", "another project").last_step == 0


NAMES = [("P", "z"), ("a", "B"), ("a", "a"), ("a", "a-b"), ("a", "a.b"), ("a", "a/b"), ("a", "a0"), ("b", "a"), ("b-", "a")]


@pytest.mark.parametrize("page", [1, 2, 4, 100])
def test_pages_of_runs_are_the_whole_list_in_the_order_of_bytes(store: Store, page: int) -> None:
    for project, run in random.Random(0).sample(NAMES, len(NAMES)):
        make(store, run, project)
    listed: list[tuple[str, str]] = []
    while rows := store.list_runs(None, listed[-1] if listed else None, page):
        assert len(rows) <= page
        listed += [(row.project, row.run) for row in rows]
    assert listed == sorted(NAMES)


def test_a_list_of_one_project_has_its_runs_alone(store: Store) -> None:
    for project, run in NAMES:
        make(store, run, project)
    assert [row.run for row in store.list_runs("a", None, 100)] == ["B", "a", "a-b", "a.b", "a/b", "a0"]
    assert [row.run for row in store.list_runs("a", ("a", "a-b"), 2)] == ["a.b", "a/b"]
    assert list(store.list_runs("a", ("a", "a0"), 100)) == []
    assert list(store.list_runs("missing", None, 100)) == []


def test_a_run_looks_the_same_in_a_list_as_alone(store: Store) -> None:
    row = commit(store, claim(store, make(store), labels={"batch": "256"}), [step(1)])
    assert list(store.list_runs(None, None, 10)) == [row]


def test_labels_are_replaced_as_a_whole_and_nothing_else_changes(store: Store) -> None:
    row = claim(store, make(store), labels={"a": "1", "b": "2"})
    store.set_labels(row.id, {"b": 'quoted "3"', "ключ": "\x00\n✓"})
    assert got(store, row) == replace(row, labels={"b": 'quoted "3"', "ключ": "\x00\n✓"})


def test_a_deleted_run_takes_its_history_its_branches_and_its_sessions_with_it(store: Store) -> None:
    kept = commit(store, claim(store, make(store, "kept")), [step(1)])
    row = commit(store, claim(store, make(store, "gone")), [step(n) for n in range(1, 6)])
    row = claim(store, row, after_step=2)
    store.delete(row.id)
    assert store.get("p", "gone") is None
    assert store.by_session(row.session) is None
    assert store.commit([commit_of(row, [step(3)])], []) == [False]
    again = claim(store, make(store, "gone"))
    assert (again.last_step, again.epoch, again.rewinds, again.labels) == (0, 1, 0, {})
    assert [history(store, again, branch) for branch in (0, 1)] == [[], []]
    assert got(store, kept) == kept
    assert history(store, kept) == exact([step(1)])


# --- watching --------------------------------------------------------------------------------------------------------


def test_the_pulse_moves_with_each_change_that_a_reader_can_see_and_with_nothing_else(store: Store) -> None:
    row, other = make(store), make(store, "other")
    assert set(store.pulse()) == {row.id, other.id}

    def changes(act: Callable[[], Any]) -> None:
        before = store.pulse()
        act()
        after = store.pulse()
        assert after[row.id] > before[row.id]
        assert after[other.id] == before[other.id]
        assert got(store, row).revision == after[row.id]

    changes(lambda: claim(store, row))
    changes(lambda: commit(store, got(store, row), [step(1)]))
    changes(lambda: store.set_labels(row.id, {"a": "b"}))
    changes(lambda: store.take_over(row.id, 1, got(store, row).session))
    held = got(store, row)
    changes(
        lambda: store.commit([], [Release(run_id=row.id, epoch=2, session=held.session, status=RunStatus.FAILED, message="")])
    )
    before = store.pulse()
    store.commit(
        [commit_of(held, [step(2)])], [Release(run_id=row.id, epoch=9, session=9, status=RunStatus.FAILED, message="")]
    )
    store.steps(row, 0, 1, ALL, ALL)
    while store.fold():
        pass
    store.ping()
    assert store.pulse() == before, "what was refused, read or folded is no change"
    store.delete(row.id)
    assert set(store.pulse()) == {other.id}


def test_rows_are_those_of_the_ids_in_their_order_and_the_gone_are_missing(store: Store) -> None:
    made = [make(store, f"r{index}") for index in range(1100)]
    store.delete(made[3].id)
    wanted = [made[index].id for index in (7, 3, 1099, 0, 7)]
    assert store.rows(wanted) == [made[0], made[7], made[1099]]
    assert store.rows([made[7].id], states=False) == [replace(made[7], state=b"")]
    assert store.rows([]) == []
    assert [row.id for row in store.rows(row.id for row in made)] == [row.id for row in made if row.id != made[3].id]


VITALS = RunStats(tuned=3, base_lr=0.5, peak=1e-300, turns=(1, 2), marks=(Mark(1, 0.1, 0.2, 0),), returns=(5,), away=6)


def test_vitals_and_command_are_kept_with_the_row(store: Store, reopen: Callable[[], Store]) -> None:
    row = make(store)
    assert (row.stats, row.command) == (RunStats(), "")
    row = claim(store, row, command="python 'my train.py' --lr=1 ✓", stats=RunStats(since=7))
    assert (row.stats, row.command) == (RunStats(since=7), "python 'my train.py' --lr=1 ✓")
    assert store.commit([replace(commit_of(row, [step(1)]), stats=VITALS)], []) == [True]
    again = got(reopen(), row)
    assert (again.stats, again.command) == (VITALS, row.command)


def test_a_takeover_keeps_the_vitals_unless_it_has_others(store: Store) -> None:
    row = claim(store, make(store), stats=VITALS)
    row = store.take_over(row.id, row.epoch, row.session)
    assert row.stats == VITALS
    row = store.take_over(row.id, row.epoch, row.session, VITALS.came_back(9), [EventRow(9, 0, EventKind.REATTACHED, "back")])
    assert row.stats == got(store, row).stats == replace(VITALS, away=0, returns=(5, 9))
    assert store.events(row.id) == [EventRow(9, 0, EventKind.REATTACHED, "back")]


# --- events ----------------------------------------------------------------------------------------------------------


def event(number: int, kind: str = EventKind.OUTAGE) -> EventRow:
    return EventRow(10**18 + number, number, kind, f"„{number}“")


def test_events_come_with_what_they_tell_of_in_the_order_they_happened(store: Store, reopen: Callable[[], Store]) -> None:
    row = claim(store, make(store), events=(event(1, EventKind.FENCED), event(2, EventKind.OPENED)))
    other = claim(store, make(store, "other"), events=(event(7),))
    assert store.commit([replace(commit_of(row, [step(1)]), events=(event(3),)), commit_of(other, [step(1)])], []) == [
        True,
        True,
    ]
    release = Release(run_id=row.id, epoch=1, session=row.session, status=RunStatus.FINISHED, message="", events=(event(4),))
    store.commit([], [release])
    store = reopen()
    assert store.events(row.id) == [event(1, EventKind.FENCED), event(2, EventKind.OPENED), event(3), event(4)]
    assert store.events(other.id) == [event(7)]
    store.delete(row.id)
    assert store.events(row.id) == []


def test_a_commit_of_events_alone_adds_no_step(store: Store) -> None:
    row = commit(store, claim(store, make(store)), [step(1)])
    alone = replace(commit_of(row, [step(2)]), last_step=1, records=b"", events=(event(1),), stats=VITALS)
    assert store.commit([alone], []) == [True]
    after = got(store, row)
    assert (after.last_step, after.stats, store.events(row.id)) == (1, VITALS, [event(1)])
    row = commit(store, row, [step(2)])
    assert history(store, row) == exact([step(1), step(2)])


def test_events_of_who_does_not_hold_the_run_are_not_noted(store: Store) -> None:
    old = claim(store, make(store))
    new = claim(store, old)
    assert store.commit([replace(commit_of(old, [step(1)]), events=(event(1),))], []) == [False]
    store.commit(
        [], [Release(run_id=old.id, epoch=1, session=old.session, status=RunStatus.FAILED, message="", events=(event(2),))]
    )
    with pytest.raises(OwnershipLost):
        claim(store, old, events=(event(3),))
    with pytest.raises(OwnershipLost):
        store.take_over(old.id, old.epoch, old.session, None, [event(4)])
    assert store.events(new.id) == []


def test_of_very_many_events_the_last_are_given(store: Store) -> None:
    row = claim(store, make(store), events=tuple(event(number) for number in range(1200)))
    assert store.events(row.id) == [event(number) for number in range(200, 1200)]


# --- claims ----------------------------------------------------------------------------------------------------------


def test_a_claim_begins_the_next_epoch_of_the_run(store: Store) -> None:
    row = make(store)
    store.commit([], [Release(run_id=row.id, epoch=0, session=0, status=RunStatus.FAILED, message="out of memory")])
    for epoch in (1, 2, 3):
        before = row
        row = claim(store, before, session=epoch * 10**17, state=b"S", scale=(0.5,), labels={"epoch": str(epoch)})
        assert (row.epoch, row.session, row.state, row.scale) == (epoch, epoch * 10**17, b"S", (0.5,))
        assert (row.status, row.status_message, row.labels) == (RunStatus.RUNNING, "", {"epoch": str(epoch)})
        assert (row.id, row.create_time, row.last_step, row.rewinds) == (before.id, 1_000, 0, 0)
        assert got(store, row) == row


def test_a_claim_on_an_epoch_that_is_over_is_lost_and_changes_nothing(store: Store) -> None:
    stale = make(store)
    row = commit(store, claim(store, stale), [step(1), step(2)])
    with pytest.raises(OwnershipLost, match="projects/p/runs/r is at epoch 1, not 0"):
        claim(store, stale, after_step=0, session=987)
    assert got(store, row) == row
    assert history(store, row) == exact([step(1), step(2)])
    assert store.by_session(987) is None
    assert commit(store, row, [step(3)]).last_step == 3, "who holds the run goes on"


def test_a_claim_on_a_deleted_run_is_lost(store: Store) -> None:
    row = make(store)
    store.delete(row.id)
    with pytest.raises(OwnershipLost, match="deleted"):
        claim(store, row)


@pytest.mark.parametrize("cut", range(9))
@pytest.mark.parametrize("config", [CONFIG, THREE_GROUPS], ids=["one group", "three groups"])
def test_a_claim_below_the_last_step_moves_the_steps_above_it_to_a_branch(
    store: Store, cut: int, config: TunerConfig, reopen: Callable[[], Store]
) -> None:
    """Commits of 3, 1 and 4 steps: the cut falls on their borders and into them."""
    groups = len(config.scale_groups)
    steps = [step(number, groups) for number in range(1, 9)]
    row = claim(store, make(store, config=config))
    for part in (steps[:3], steps[3:4], steps[4:]):
        row = commit(store, row, part)
    row = claim(store, row, after_step=cut)
    store = reopen()
    assert got(store, row) == row
    assert (row.last_step, row.rewinds) == (cut, 1 if cut < 8 else 0)
    assert history(store, row) == exact(steps[:cut], groups)
    assert history(store, row, branch=1) == exact(steps[cut:], groups)


def test_each_rewind_has_a_branch_of_its_own_and_no_step_is_ever_lost(store: Store) -> None:
    first, second, third = ([step(n, about=about) for n in range(1, 11)] for about in ("first", "second", "third"))
    row = commit(store, claim(store, make(store)), first)
    row = commit(store, claim(store, row, after_step=6), second[6:9])
    row = commit(store, claim(store, row, after_step=7), third[7:])
    row = claim(store, row, after_step=0)
    assert row.rewinds == 3
    assert history(store, row) == []
    assert history(store, row, branch=1) == exact(first[6:])
    assert history(store, row, branch=2) == exact(second[7:9])
    assert history(store, row, branch=3) == exact([*first[:6], second[6], *third[7:]])


def test_a_claim_above_the_last_step_leaves_a_gap_and_no_branch(store: Store) -> None:
    row = commit(store, claim(store, make(store)), [step(1), step(2)])
    row = commit(store, claim(store, row, after_step=10), [step(11)])
    assert (row.last_step, row.rewinds) == (11, 0)
    assert history(store, row) == exact([step(1), step(2), step(11)])
    row = claim(store, row, after_step=5)
    assert history(store, row) == exact([step(1), step(2)])
    assert history(store, row, branch=1) == exact([step(11)])


# --- commits ---------------------------------------------------------------------------------------------------------


def test_a_commit_moves_the_run_to_its_last_step(store: Store) -> None:
    row = claim(store, make(store))
    after = commit(store, row, [step(1), step(2), step(3)])
    assert after == replace(row, last_step=3, state=b"state after 3", scale=(3 * 0.1,), step_time=3_000, interval=500)


@pytest.mark.parametrize("changes", [{"epoch": 2}, {"epoch": 0}, {"session": 77}, {"after_step": 0}, {"after_step": 3}])
def test_a_commit_by_who_does_not_hold_the_run_writes_nothing_while_the_others_do(
    store: Store, changes: dict[str, int]
) -> None:
    mine, other = (commit(store, claim(store, make(store, run)), [step(1), step(2)]) for run in ("mine", "other"))
    lost = replace(commit_of(mine, [step(3)]), **changes)
    assert store.commit([commit_of(other, [step(3)]), lost, commit_of(claim(store, make(store)), [step(1)])], []) == [
        True,
        False,
        True,
    ]
    assert got(store, mine) == mine
    assert history(store, mine) == exact([step(1), step(2)])
    assert history(store, other) == exact([step(1), step(2), step(3)])


def test_a_commit_of_a_fenced_session_writes_nothing(store: Store) -> None:
    old = commit(store, claim(store, make(store)), [step(1)])
    new = claim(store, old)
    assert store.commit([commit_of(old, [step(2, about="zombie")])], []) == [False]
    assert history(store, commit(store, new, [step(2)])) == exact([step(1), step(2)])


def test_the_same_commit_twice_counts_once(store: Store) -> None:
    row = claim(store, make(store))
    once = commit_of(row, [step(1)])
    assert store.commit([once, once], []) == [True, False]
    assert store.commit([once], []) == [False]
    assert history(store, row) == exact([step(1)])


def test_nothing_to_commit_is_no_error(store: Store) -> None:
    assert store.commit([], []) == []


@pytest.mark.parametrize("status", [RunStatus.PREEMPTED, RunStatus.FAILED, RunStatus.FINISHED])
def test_a_release_says_why_and_leaves_the_run_to_nobody(store: Store, status: str) -> None:
    row = commit(store, claim(store, make(store)), [step(1)])
    release = Release(run_id=row.id, epoch=row.epoch, session=row.session, status=status, message="told to „stop“")
    assert store.commit([commit_of(row, [step(2)])], [release]) == [True]
    after = got(store, row)
    assert (after.status, after.status_message, after.session, after.last_step) == (status, "told to „stop“", 0, 2)
    assert store.commit([commit_of(replace(row, last_step=2), [step(3)])], []) == [False], "the session is over"


@pytest.mark.parametrize("changes", [{"epoch": 0}, {"epoch": 2}, {"session": 77}])
def test_a_release_by_who_does_not_hold_the_run_changes_nothing(store: Store, changes: dict[str, int]) -> None:
    row = claim(store, make(store))
    release = Release(run_id=row.id, epoch=row.epoch, session=row.session, status=RunStatus.FINISHED, message="")
    store.commit([], [replace(release, **changes)])
    assert got(store, row) == row


# --- sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 1_999, 2_000, 2**63 - 1])
def test_a_newer_session_of_a_run_was_opened_later_whatever_the_clock_says(store: Store, time: int) -> None:
    first = claim(store, make(store))
    second = claim(store, first, time=time)
    third = claim(store, second, time=5)
    assert first.open_time == 2_000
    assert second.open_time == max(time, 2_001)
    assert third.open_time == min(second.open_time + 1, 2**63 - 1)


def test_a_session_leads_to_its_run_and_to_who_holds_it_now(store: Store, reopen: Callable[[], Store]) -> None:
    largest = claim(store, make(store, "largest"), session=2**62)
    first = claim(store, make(store))
    second = claim(store, first)
    third = claim(store, make(store, "closed"))
    store.commit([], [Release(run_id=third.id, epoch=1, session=third.session, status=RunStatus.FINISHED, message="")])
    for each_store in (lambda: store, reopen):
        each = each_store()
        for session, row in ((first, second), (second, second), (third, got(each, third)), (largest, largest)):
            found = SessionRow(session=session.session, run_id=row.id, after_step=0, open_time=session.open_time)
            assert each.by_session(session.session) == (row, found)
        assert each.by_session(10**15) is None
        assert each.by_session(0) is None


# --- steps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def long(store: Store) -> RunRow:
    """Steps 1…10 and 15…20, in commits of different lengths."""
    row = claim(store, make(store))
    for first, last in ((1, 1), (2, 6), (7, 10)):
        row = commit(store, row, [step(n) for n in range(first, last + 1)])
    return commit(store, claim(store, row, after_step=14), [step(n) for n in range(15, 21)])


@pytest.mark.parametrize(
    ("first", "last", "limit", "expected"),
    [
        (1, ALL, ALL, [*range(1, 11), *range(15, 21)]),
        (1, 1, ALL, [1]),
        (4, 8, ALL, [4, 5, 6, 7, 8]),
        (9, 16, ALL, [9, 10, 15, 16]),
        (11, 14, ALL, []),
        (20, 20, 1, [20]),
        (21, ALL, ALL, []),
        (8, 4, ALL, []),
        (1, ALL, 0, []),
        (1, ALL, 1, [1]),
        (3, ALL, 5, [3, 4, 5, 6, 7]),
        (10, ALL, 2, [10, 15]),
        (5, 6, 100, [5, 6]),
    ],
)
def test_steps_are_given_in_order_within_the_range_up_to_the_limit(
    store: Store, long: RunRow, first: int, last: int, limit: int, expected: list[int]
) -> None:
    assert history(store, long, 0, first, last, limit) == exact([step(number) for number in expected])


def test_a_branch_that_there_is_not_is_empty(store: Store, long: RunRow) -> None:
    assert history(store, long, branch=1) == []


def test_steps_of_other_runs_do_not_mix_in(store: Store, long: RunRow) -> None:
    other = commit(store, claim(store, make(store, "other")), [step(1, about="other")])
    assert history(store, other) == exact([step(1, about="other")])
    assert len(history(store, long)) == 16


def test_every_float_comes_back_bit_for_bit_in_each_group(store: Store, reopen: Callable[[], Store]) -> None:
    groups = len(THREE_GROUPS.scale_groups)
    turned = [tuple(AWKWARD[(i + j) % len(AWKWARD)] for j in range(groups)) for i in range(len(AWKWARD))]
    steps = [StepRow(n + 1, n, 1, *(turned[(n + k) % len(turned)] for k in range(6)), None) for n in range(len(turned))]
    row = commit(store, claim(store, make(store, config=THREE_GROUPS)), steps)
    assert history(reopen(), row) == exact(steps, groups)


# --- reopening -------------------------------------------------------------------------------------------------------


def test_after_a_close_and_an_open_all_is_there_and_goes_on(store: Store, reopen: Callable[[], Store]) -> None:
    rows = []
    for index, config in enumerate([CONFIG, THREE_GROUPS, CONFIG]):
        row = claim(store, make(store, f"run{index}", config=config), labels={"index": str(index)})
        steps = [step(n, len(config.scale_groups), row.run) for n in range(1, 21)]
        row = commit(store, commit(store, row, steps[:15]), steps[15:])
        rows.append(row)
    rows[2] = claim(store, rows[2], after_step=13)
    before = [[history(store, row, branch) for branch in (0, 1)] for row in rows]
    store = reopen()
    assert list(store.list_runs(None, None, 100)) == rows
    assert [[history(store, row, branch) for branch in (0, 1)] for row in rows] == before
    assert commit(store, rows[2], [step(14)]).last_step == 14
