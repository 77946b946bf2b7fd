"""The history in any engine: folding may stop anywhere, the pyramid hides no spike, what is given up is given up on purpose."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus, StepRow, pack
from mechanicd.store import (
    SERIES,
    Claim,
    Commit,
    Release,
    SQLiteStore,
    SQLStore,
    StoreNotWritable,
    _deletions,
    _store,
    _summary,
    check,
    copy,
)
from mechanicd.store._journal import Segment, portion
from mechanicd.tuner import Reductions, Tuner, TunerConfig, TunerState

CONFIG = TunerConfig()
TWO = TunerConfig(scale_groups=("body", "head"))
ALL = 2**62
_sessions = itertools.count(1)
_names = itertools.count()


class Training:
    """A run with a real tuner, whose steps go to a store as commits of any length."""

    def __init__(self, store: SQLStore, seed: int, config: TunerConfig = CONFIG, run: str = "") -> None:
        self.store, self.config, self.rng = store, config, random.Random(seed)
        self.tuner = Tuner(config)
        self.states = [self.tuner.init()]
        state = self.states[0]
        self.row = store.create("p", run or f"r{next(_names)}", config, state.to_bytes(), state.scale, 1)
        self.steps: list[StepRow] = []
        self.claim(0)

    def claim(self, after_step: int) -> None:
        state = self.states[after_step]
        self.row = self.store.claim(
            Claim(
                run_id=self.row.id,
                expected_epoch=self.row.epoch,
                session=next(_sessions),
                after_step=after_step,
                state=state.to_bytes(),
                scale=state.scale,
                labels={},
                time=2,
            )
        )
        del self.states[after_step + 1 :]
        del self.steps[after_step:]

    def train(self, count: int) -> None:
        """One commit of `count` steps, some of them without an update, some with a spike."""
        after = self.row.last_step
        new = [self._step(step) for step in range(after + 1, after + count + 1)]
        state = self.states[-1]
        commit = Commit(
            run_id=self.row.id,
            epoch=self.row.epoch,
            session=self.row.session,
            after_step=after,
            last_step=after + count,
            state=state.to_bytes(),
            scale=state.scale,
            step_time=after + count,
            records=b"".join(pack(len(self.config.scale_groups), step) for step in new),
        )
        assert self.store.commit([commit], []) == [True]
        self.steps += new
        self.row = self.now()

    def now(self) -> RunRow:
        row = self.store.get("p", self.row.run)
        assert row is not None
        return row

    def kept(self, branch: int = 0) -> list[bytes]:
        return self.packed(self.store.steps(self.row, branch, 1, ALL, ALL))

    def packed(self, steps: list[StepRow]) -> list[bytes]:
        return [pack(len(self.config.scale_groups), step._replace(branch=0)) for step in steps]

    def _step(self, step: int) -> StepRow:
        state, rng, groups = self.states[-1], self.rng, len(self.config.scale_groups)
        spike = 10.0 ** rng.uniform(3, 9) if rng.random() < 0.01 else 1.0
        taken = [Reductions(rng.gauss(-0.1, spike), rng.gauss(0, 1), spike * rng.random(), rng.random()) for _ in range(groups)]
        bad = rng.random() < 0.02
        if bad:
            taken[0] = taken[0]._replace(g_norm_sq=math.nan)
        h = self.tuner.h(state, taken)
        after = self.tuner.hold(state) if h is None else self.tuner.advance(state, h)
        self.states.append(after)
        g, x, gg, xx = zip(*taken, strict=True)
        shown = (math.nan,) * groups if h is None else h
        lr = None if rng.random() < 0.3 else rng.random()
        return StepRow(step, 10 * step, 2 if h is None else 1, g, x, gg, xx, shown, after.scale, lr)


def values(step: StepRow, groups: int) -> list[float]:
    """The series of one step, as a bucket holds them."""
    lr = math.nan if step.base_lr is None else step.base_lr
    fields = (step.delta_dot_g, step.delta_dot_x, step.g_norm_sq, step.x_norm_sq, step.h, step.scale)
    return [value for field in fields for value in field] + [scale * lr for scale in step.scale] + [lr]


def extreme(choose: Callable[[list[float]], float], found: list[float]) -> float:
    known = [value for value in found if not math.isnan(value)]
    return choose(known) if known else math.nan


def hold_to(buckets: Any, steps: list[StepRow], groups: int) -> None:
    """Each bucket has exactly the extremes, the last value and the counts of its steps, and no step is in none or in two."""
    at = 0
    for bucket in buckets:
        inside = steps[at : at + int(bucket["count"])]
        at += len(inside)
        assert (int(bucket["first_step"]), int(bucket["last_step"])) == (inside[0].step, inside[-1].step)
        assert (int(bucket["first_time"]), int(bucket["last_time"])) == (inside[0].time, inside[-1].time)
        assert int(bucket["non_finite"]) == sum(step.outcome == 2 for step in inside)
        columns = list(zip(*(values(step, groups) for step in inside), strict=True))
        assert len(columns) == len(SERIES) * groups + 1
        np.testing.assert_array_equal(bucket["min"], [extreme(min, list(column)) for column in columns])
        np.testing.assert_array_equal(bucket["max"], [extreme(max, list(column)) for column in columns])
        np.testing.assert_array_equal(bucket["last"], [column[-1] for column in columns])
    assert at == len(steps)


def fold_all(store: Any) -> int:
    portions = 1
    while store.fold(1):
        portions += 1
    return portions


# --- the pyramid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 3, 50, 400, 100_000])
def test_any_zoom_has_the_exact_extremes_of_its_steps(store: SQLStore, most: int) -> None:
    training = Training(store, seed=most)
    for count in (1, 15, 900, 300, 7, 1100, 500):
        training.train(count)
    for first, last in ((1, ALL), (1, 16), (17, 2000), (1000, 1100), (2800, ALL), (2823, 2823)):
        buckets = store.summary(training.row, 0, first, last, most)
        last = min(last, 2823)
        hold_to(buckets, training.steps[int(buckets["first_step"][0]) - 1 : int(buckets["last_step"][-1])], 1)
        assert int(buckets["first_step"][0]) <= first <= last <= int(buckets["last_step"][-1])
        assert len(buckets) <= most + 2, "about that many: the first and the last may lie in part outside"
    assert len(store.summary(training.row, 0, 5000, ALL, most)) == 0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_in_any_history_no_spike_is_lost(data: Any) -> None:
    """Commits of any lengths, folds at any moments, rewinds to any step, any range at any width."""
    memory = SQLiteStore(":memory:")  # for each example: a shared one would hold, and check, those of all the others too
    config = data.draw(st.sampled_from([CONFIG, TWO]))
    training = Training(memory, data.draw(st.integers(0, 2**32)), config)
    branches: dict[int, list[StepRow]] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        act = data.draw(st.sampled_from(["train", "train", "train", "fold", "rewind"]))
        if act == "train":
            training.train(data.draw(st.integers(1, 700)))
        elif act == "fold":
            fold_all(memory)
        else:
            after = data.draw(st.integers(0, training.row.last_step))
            if after < training.row.last_step:
                branches[training.row.rewinds + 1] = training.steps[after:]
            training.claim(after)
    groups = len(config.scale_groups)
    for branch, steps in {0: training.steps, **branches}.items():
        assert training.kept(branch) == training.packed(steps)
        if not steps:
            continue
        first = data.draw(st.integers(steps[0].step, steps[-1].step))
        last = data.draw(st.integers(first, steps[-1].step))
        buckets = memory.summary(training.row, branch, first, last, data.draw(st.integers(1, 500)))
        begin, end = int(buckets["first_step"][0]), int(buckets["last_step"][-1])
        hold_to(buckets, [step for step in steps if begin <= step.step <= end], groups)
        assert begin <= first
        assert last <= end
    assert [finding for finding in check(memory) if not finding.harmless] == []
    memory.close()


@pytest.mark.parametrize("groups", [1, 21, 90, 400])
def test_runs_with_many_scale_groups_have_shorter_chunks_and_the_same_pyramid(store: SQLStore, groups: int) -> None:
    training = Training(store, seed=groups, config=TunerConfig(scale_groups=tuple(f"g{i}" for i in range(groups))))
    for count in (30, 10, 30):
        training.train(count)
    assert training.kept() == training.packed(training.steps)
    for most in (1, 4, 1000):
        hold_to(store.summary(training.row, 0, 1, ALL, most), training.steps, groups)


# --- folding ----------------------------------------------------------------------------------------------------------


def test_folding_goes_on_wherever_it_stopped(store: SQLStore, reopen: Callable[[], SQLStore]) -> None:
    """The process ends after each portion of a fold in turn; claims and commits fall in between."""
    rng = random.Random(5)
    trainings = [Training(store, seed) for seed in range(5)]
    for _ in range(12):
        for training in trainings:
            training.store = store
            training.train(rng.randint(1, 40))
        for _ in range(rng.randint(0, 4)):
            store.fold(1)
        chosen = rng.choice(trainings)
        if rng.random() < 0.5:
            chosen.claim(rng.randint(0, chosen.row.last_step))
        elif rng.random() < 0.5:
            chosen.row = store.take_over(chosen.row.id, chosen.row.epoch, chosen.row.session)
        store = reopen()
    for training in trainings:
        training.store = store
        assert training.kept() == training.packed(training.steps)
    fold_all(store)
    assert store.unfolded == 0
    for training in trainings:
        assert training.kept() == training.packed(training.steps)
    assert [finding for finding in check(store) if not finding.harmless] == []


def test_steps_of_a_deleted_run_in_the_journal_go_with_it(store: SQLStore) -> None:
    gone, kept = Training(store, 1), Training(store, 2)
    gone.train(10)
    kept.train(10)
    store.delete(gone.row.id)
    again = Training(store, 3, run=gone.row.run)
    again.train(3)
    fold_all(store)
    assert again.kept() == again.packed(again.steps)
    assert kept.kept() == kept.packed(kept.steps)


def test_a_takeover_keeps_every_step_and_shuts_the_former_owner_out(store: SQLStore) -> None:
    training = Training(store, 1)
    training.train(10)
    zombie = training.row
    training.row = store.take_over(zombie.id, zombie.epoch, zombie.session)
    assert (training.row.session, training.row.session_count) == (zombie.session, zombie.session_count)
    late = Commit(
        run_id=zombie.id,
        epoch=zombie.epoch,
        session=zombie.session,
        after_step=10,
        last_step=11,
        state=b"",
        scale=(0.0,),
        step_time=1,
        records=pack(1, training.steps[0]._replace(step=11)),
    )
    assert store.commit([late], []) == [False]
    training.train(5)
    assert training.kept() == training.packed(training.steps)


# --- what is given up -------------------------------------------------------------------------------------------------


def retain_all(store: SQLStore, keep_steps: int | None, oldest: int | None) -> None:
    while store.retain(keep_steps, oldest, most=2):
        pass


def test_thinning_keeps_the_last_steps_exact_and_the_extremes_of_all(store: SQLStore) -> None:
    training = Training(store, 1)
    for count in (3000, 3000):
        training.train(count)
    fold_all(store)
    retain_all(store, 1500, None)
    kept = store.steps(training.row, 0, 1, ALL, ALL)
    assert kept[-1].step == 6000
    assert 1500 <= len(kept) <= 1500 + 1024
    assert training.packed(kept) == training.packed(training.steps[-len(kept) :])
    for most in (1, 10, 300):
        hold_to(store.summary(training.row, 0, 1, ALL, most), training.steps, 1)
    fine = store.summary(training.row, 0, 1, 3000, 100_000)
    assert set(fine["size"].tolist()) == {16}, "what is left where exact steps were wanted"
    hold_to(fine, training.steps[: int(fine["last_step"][-1])], 1)
    (gaps,) = check(store)
    assert (gaps.reason, gaps.harmless) == ("HISTORY_HAS_GAPS", True)
    training.train(100)
    assert store.steps(training.row, 0, 6001, ALL, ALL)[-1].step == 6100


@pytest.mark.parametrize("after", [0, 5, 16, 1000, 1024, 2500])
def test_a_rewind_into_thinned_steps_keeps_what_there_is_on_both_sides(store: SQLStore, after: int) -> None:
    training = Training(store, 1)
    training.train(3000)
    fold_all(store)
    retain_all(store, 0, None)
    training.claim(after)
    training.train(50)
    fold_all(store)
    main = store.summary(training.row, 0, 1, ALL, 1)
    assert int(main["count"].sum()) >= after + 50
    assert int(main["last_step"][-1]) == after + 50
    branch = store.summary(training.row, 1, 1, ALL, 1)
    assert int(branch["count"].sum()) >= 3000 - after
    assert training.packed(store.steps(training.row, 0, after + 1, ALL, ALL)) == training.packed(training.steps[after:])


def test_runs_without_a_step_for_long_are_deleted_and_others_stay(store: SQLStore) -> None:
    old, new, fresh = Training(store, 1), Training(store, 2), Training(store, 3)
    old.train(50)
    new.train(60)
    assert fresh.row.step_time == 0
    retain_all(store, None, 55)
    assert [row.run for row in store.list_runs(None, None, 10)] == [new.row.run]
    retain_all(store, None, None)
    assert new.kept() == new.packed(new.steps)


def test_a_run_that_a_trainer_holds_is_kept_although_no_step_comes(store: SQLStore) -> None:
    """It evaluates, or it waits in a notebook; that its connection is there is in its row, or the server knows it."""
    here, seen, away, gone, closed = (Training(store, seed) for seed in range(1, 6))
    for training in (here, seen, away, gone, closed):
        training.train(10)
    commits = [
        replace(commit_of(seen.row), stats=replace(seen.row.stats, seen=90)),
        replace(commit_of(away.row), stats=replace(away.row.stats, away=90)),
        replace(commit_of(gone.row), stats=replace(gone.row.stats, away=30)),
    ]
    row = closed.row
    release = Release(run_id=row.id, epoch=row.epoch, session=row.session, status=RunStatus.FINISHED, message="", events=())
    assert store.commit(commits, [release]) == [True] * 3
    while store.retain(None, 80, held=frozenset([here.row.id])):
        pass
    kept = [row.id for row in store.list_runs(None, None, 10)]
    assert kept == [here.row.id, seen.row.id, away.row.id]


def commit_of(row: RunRow) -> Commit:
    """A commit without steps."""
    return Commit(
        run_id=row.id,
        epoch=row.epoch,
        session=row.session,
        after_step=row.last_step,
        last_step=row.last_step,
        state=row.state,
        scale=row.scale,
        step_time=row.step_time,
        interval=row.interval,
        stats=row.stats,
        events=(),
        records=b"",
    )


# --- a copy -----------------------------------------------------------------------------------------------------------


def test_a_copy_has_every_run_to_the_last_bit_and_goes_on(store: SQLStore, tmp_path: Path) -> None:
    trainings = [Training(store, seed, config) for seed, config in enumerate([CONFIG, TWO, CONFIG])]
    for count in (1500, 3):
        for training in trainings:
            training.train(count)
        fold_all(store)
    trainings[2].claim(700)
    trainings[0].train(20)
    seen: list[tuple[int, int]] = []
    target = SQLiteStore(str(tmp_path / "copy.db"))
    assert copy(store, target, lambda done, all_: seen.append((done, all_))) == seen[-1][0] == seen[-1][1]
    assert list(target.list_runs(None, None, 10)) == list(store.list_runs(None, None, 10))
    for training in trainings:
        training.store = target
        assert training.kept() == training.packed(training.steps)
        training.train(5)
        assert training.kept() == training.packed(training.steps)
    another = Training(target, 9)
    another.train(5)
    assert another.row.id not in {training.row.id for training in trainings}
    with pytest.raises(StoreNotWritable, match="already has runs"):
        copy(store, target)
    target.close()


def test_a_copy_of_a_copy_goes_back_into_an_engine_of_any_kind(store: SQLStore, tmp_path: Path) -> None:
    source = SQLiteStore(str(tmp_path / "source.db"))
    training = Training(source, 1)
    training.train(1200)
    copy(source, store)
    source.close()
    training.store = store
    training.train(3)
    other = Training(store, 2)
    other.train(1)
    assert training.kept() == training.packed(training.steps)
    assert other.kept() == other.packed(other.steps)


# --- the check --------------------------------------------------------------------------------------------------------


def overwritten(at: int, value: bytes) -> Callable[[Any], None]:
    """Eight bytes of the first chunk's records are others."""

    def spoil(db: Any) -> None:
        (records,) = db.execute("SELECT records FROM chunks").fetchone()
        db.execute("UPDATE chunks SET records = :new, sums = NULL", {"new": records[:at] + value + records[at + 8 :]})

    return spoil


def changed(statement: str) -> Callable[[Any], None]:
    return lambda db: db.execute(statement)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (changed("UPDATE runs SET state = x'00'"), "STATE_UNREADABLE"),
        (changed("UPDATE runs SET last_step = 405"), "STATE_MISPLACED"),
        (changed("DELETE FROM journal"), "HISTORY_ENDS_EARLY"),
        (overwritten(800, (9).to_bytes(8, "little")), "HISTORY_DISORDERED"),
        (overwritten(832, b"\1\2\3\4\5\6\7\x40"), "SCALE_DIFFERS"),
        (changed("UPDATE chunks SET fine = zeroblob(length(fine))"), "SUMMARY_DIFFERS"),
    ],
)
def test_the_check_finds_what_is_wrong(spoil: Callable[[Any], None], reason: str, tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    training = Training(store, 1)
    training.train(400)
    fold_all(store)
    training.train(10)
    assert list(check(store)) == []
    with store.transaction() as db:
        spoil(db)
    assert reason in [finding.reason for finding in check(store)]
    store.close()


def test_the_check_says_how_far_it_is(store: SQLStore) -> None:
    for seed in range(3):
        Training(store, seed).train(5)
    seen: list[tuple[int, int]] = []
    assert list(check(store, lambda done, all_: seen.append((done, all_)))) == []
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def adopt(training: Training, state: TunerState, *events: EventRow) -> None:
    """A new session goes on from another state than the store's."""
    training.row = training.store.claim(
        Claim(
            run_id=training.row.id,
            expected_epoch=training.row.epoch,
            session=next(_sessions),
            after_step=state.step,
            state=state.to_bytes(),
            scale=state.scale,
            labels={},
            time=3,
            events=events,
        )
    )


def test_an_adopted_gap_is_worth_knowing_and_harmless(store: SQLStore) -> None:
    training = Training(store, 1)
    training.train(10)
    state = training.tuner.init()
    for _ in range(20):
        state = training.tuner.update(state, [Reductions(1.0, 1.0, 1.0, 1.0)])
    training.states += [TunerState.initial(CONFIG)] * 9 + [state]
    adopt(training, state)
    training.train(5)
    (finding,) = check(store)
    assert (finding.reason, finding.harmless) == ("HISTORY_HAS_GAPS", True)
    assert "10 of 25 steps" in finding.message


def test_another_state_at_the_same_step_is_no_damage(store: SQLStore) -> None:
    """A replay of the steps gives other values of S from there on; without the event, that would be damage."""
    for event in (EventRow(3, 10, EventKind.ADOPTED, "the checkpoint's"), EventRow(3, 10, EventKind.OPENED, "no checkpoint")):
        training = Training(store, 1)
        training.train(10)
        state = training.tuner.init()
        for _ in range(10):
            state = training.tuner.update(state, [Reductions(1.0, 1.0, 1.0, 1.0)])
        training.states[-1] = state
        adopt(training, state, event)
        training.train(5)
        (finding,) = check(store)
        assert (finding.reason, finding.harmless) == ("SCALE_DIFFERS", event.kind == EventKind.ADOPTED)
        assert ("after step 10" in finding.message) == finding.harmless
        store.delete(training.row.id)


def test_who_held_a_deleted_run_is_remembered(store: SQLStore, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, stays = (Training(store, seed) for seed in range(1, 4))
    one.train(10)
    sessions = [one.row.session]
    one.claim(10)
    sessions.append(one.row.session)
    store.delete(one.row.id)
    assert [store.deleted(session) for session in sessions] == [("p", one.row.run)] * 2
    other.train(5)
    stays.train(90)
    retain_all(store, None, 50)
    assert store.deleted(other.row.session) == ("p", other.row.run)
    assert [store.deleted(session) for session in (stays.row.session, 2**62)] == [None, None]
    monkeypatch.setattr(_deletions, "_KEPT", 2)
    store.delete(stays.row.id)
    known = [store.deleted(session) is not None for session in (*sessions, other.row.session, stays.row.session)]
    assert known == [False, False, True, True], "the newest"


def test_labels_that_many_runs_have_are_in_memory_once(store: SQLStore) -> None:
    for seed in (1, 2):
        store.set_labels(Training(store, seed).row.id, {"dataset name": "imagenet, 256 px"})
    (one,), (other,) = (row.labels.items() for row in store.list_runs(None, None, 10))
    assert one == other == ("dataset name", "imagenet, 256 px")
    assert one[0] is other[0]
    assert one[1] is other[1]


def test_a_long_journal_of_one_run_is_folded_in_portions_while_it_trains(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_store, "_FOLD_BYTES", 40_000)
    training, other = Training(store, 1), Training(store, 2)
    for _ in range(30):
        training.train(80)
        other.train(3)
    waiting, portions = store.unfolded, 1
    while store.fold():
        portions += 1
        assert training.kept() == training.packed(training.steps)
        if portions < 4:
            training.train(5)
    assert portions > 4 or not waiting, "one kind of store folds at each commit"
    training.claim(2_350)
    training.train(20)
    assert fold_all(store) == 1
    for each in (training, other):
        assert each.kept() == each.packed(each.steps)
    assert list(check(store)) == []


def test_steps_of_very_many_scale_groups_are_folded_a_chunk_at_a_time() -> None:
    wide = [Segment(1, 1, step, step, bytes(1000)) for step in range(1, 101)]
    narrow = [Segment(2, 1, 100 * step + 1, 100 * step + 100, bytes(1000)) for step in range(100)]
    assert portion({1: wide, 2: narrow}, 16, 100) == {1: _summary.FINEST}
    assert portion({2: narrow, 1: wide}, 16, 100) == {2: 1}
    assert portion({1: wide[:3], 2: narrow}, 16, 5000) == {1: 3, 2: 2}
