"""The pyramid above the chunks: at every zoom, after anything that can happen to a history, no spike is lost and none made up.

Chunks and rows are made small here, so that a history of some thousand steps has three tiers.
"""

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mechanicd.runs import RunRow, StepRow, pack
from mechanicd.store import Claim, Commit, SQLiteStore, SQLStore, SummaryRequest, _pyramid, _summary, check, copy
from mechanicd.tuner import TunerConfig, TunerState

ALL = 2**62
CHUNK, FAN = 64, 4
CONFIG = TunerConfig(scale_groups=("a", "b"))
STATE = TunerState.initial(CONFIG)
MADE_UP = {"STATE_MISPLACED", "SCALE_DIFFERS"}
"""What the check rightly says of steps that no tuner took."""
_sessions = itertools.count(1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 steps a chunk, 4 buckets a row: 64, 256 and 1,024 steps a row of tier 1, 2 and 3."""
    monkeypatch.setattr(_summary, "chunk_steps", lambda groups: CHUNK)
    monkeypatch.setattr(_pyramid, "fan", lambda groups: FAN)


@pytest.fixture
def memory() -> Iterator[SQLStore]:
    store = SQLiteStore(":memory:")
    yield store
    store.close()


class History:
    """A run with made-up steps, and what its branches should hold."""

    def __init__(self, store: SQLStore, seed: int) -> None:
        self.store, self.rng = store, np.random.default_rng(seed)
        self.row = store.create("p", f"r{next(_sessions)}", CONFIG, STATE.to_bytes(), STATE.scale, 1)
        self.branches: dict[int, list[StepRow]] = {0: []}
        self.claim(0)

    def claim(self, after: int) -> None:
        """Back to a step, or on to one across a gap."""
        claimed = Claim(
            run_id=self.row.id,
            expected_epoch=self.row.epoch,
            session=next(_sessions),
            after_step=after,
            state=STATE.to_bytes(),
            scale=(0.0, 0.0),
            labels={},
            time=2,
        )
        self.row = self.store.claim(claimed)
        kept = [step for step in self.branches[0] if step.step <= after]
        if self.row.rewinds >= len(self.branches):
            self.branches[self.row.rewinds] = self.branches[0][len(kept) :]
        self.branches[0] = kept

    def train(self, count: int) -> None:
        """One commit, with spikes, steps that hold and steps that are no number."""
        after, rng = self.row.last_step, self.rng
        values = rng.normal(size=(count, 12)) * np.where(rng.random((count, 12)) < 0.01, 1e9, 1.0)
        values[:, 4:8] = np.abs(values[:, 4:8])
        values[rng.random((count, 12)) < 0.01] = math.nan
        outcomes = np.where(np.isnan(values).any(axis=1), 2, rng.choice([1, 3], size=count))
        steps = []
        for index in range(count):
            pairs = values[index].reshape(6, 2).tolist()
            lr = None if rng.random() < 0.3 else float(rng.random())
            steps.append(StepRow(after + index + 1, 10 * (after + index), int(outcomes[index]), *map(tuple, pairs), lr))
        commit = Commit(
            run_id=self.row.id,
            epoch=self.row.epoch,
            session=self.row.session,
            after_step=after,
            last_step=after + count,
            state=STATE.to_bytes(),
            scale=(0.0, 0.0),
            step_time=1,
            records=b"".join(pack(2, step) for step in steps),
        )
        assert self.store.commit([commit], []) == [True]
        self.branches[0] += steps
        row = self.store.get("p", self.row.run)
        assert row is not None
        self.row = row

    def hold_to_the_steps(self, branch: int, first: int, last: int, *zooms: int) -> None:
        """At each of these zooms."""
        steps = self.branches[branch]
        numbers, outcomes, values = columns(steps)
        for most in zooms:
            buckets = self.store.summary(self.row, branch, first, last, most)
            low, high = buckets["first_step"], buckets["last_step"]
            newest = steps[-1].step if steps else 0
            if _summary.size_for(min(last, newest) - first + 1, most) > 1:  # else there are the steps, or what is left of them
                keys = (low - 1) // buckets["size"]
                low, high = keys * buckets["size"] + 1, (keys + 1) * buckets["size"]
            begin, end = np.searchsorted(numbers, low), np.searchsorted(numbers, high, side="right")
            inside = [slice(*each) for each in zip(begin.tolist(), end.tolist(), strict=True)]
            assert (end > begin).all()
            assert (begin[1:] == end[:-1]).all(), "no step is in two buckets, or in none between them"
            wanted = np.flatnonzero((numbers >= first) & (numbers <= last))
            assert len(inside) or not len(wanted)
            assert not len(wanted) or (begin[0] <= wanted[0] and wanted[-1] < end[-1])
            np.testing.assert_array_equal(buckets["first_step"], numbers[begin])
            np.testing.assert_array_equal(buckets["last_step"], numbers[end - 1])
            np.testing.assert_array_equal(buckets["count"], end - begin)
            np.testing.assert_array_equal(buckets["non_finite"], [(outcomes[each] == 2).sum() for each in inside])
            np.testing.assert_array_equal(buckets["held"], [(outcomes[each] == 3).sum() for each in inside])
            np.testing.assert_array_equal(buckets["last"], values[end - 1])
            if inside:
                np.testing.assert_array_equal(buckets["min"], [np.fmin.reduce(values[each]) for each in inside])
                np.testing.assert_array_equal(buckets["max"], [np.fmax.reduce(values[each]) for each in inside])


def columns(steps: list[StepRow]) -> tuple[Any, Any, Any]:
    """Step, outcome, and every series, as a bucket holds them."""
    lr = np.array([math.nan if step.base_lr is None else step.base_lr for step in steps])
    fields = np.array([step[3:9] for step in steps]).reshape(len(steps), 12)
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.column_stack((fields, fields[:, 10:12] * lr[:, None], lr))
    return np.array([step.step for step in steps], dtype=np.int64), np.array([step.outcome for step in steps]), values


def fold_all(store: SQLStore) -> None:
    while store.fold(1):
        pass


def tiers_of(store: SQLStore, row: RunRow, branch: int = 0) -> list[tuple[int, int]]:
    """(tier, number of its rows) for each tier that a branch has."""
    with store.reading() as db:
        return [
            (int(tier), int(count))
            for tier, count in db.execute(
                "SELECT tier, count(*) FROM tiers WHERE run_id = :id AND branch = :branch GROUP BY tier ORDER BY tier",
                {"id": row.id, "branch": branch},
            ).fetchall()
        ]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_at_every_zoom_of_any_history_each_bucket_is_what_its_steps_say(data: Any) -> None:
    """Commits of any lengths, folds and thinnings at any moment, rewinds and gaps, part of it still in the journal."""
    memory = SQLiteStore(":memory:")
    history = History(memory, data.draw(st.integers(0, 2**32)))
    thinned = False
    acts = st.sampled_from(["train", "train", "train", "fold", "fold", "rewind", "gap", "thin"])
    for act in data.draw(st.lists(acts, min_size=1, max_size=8)):
        last = history.row.last_step
        if act == "train":
            history.train(data.draw(st.integers(1, 1200)))
        elif act == "fold":
            fold_all(memory)
        elif act == "gap":
            history.claim(last + data.draw(st.integers(1, 3000)))
        elif act == "thin":
            thinned |= memory.retain(data.draw(st.integers(0, 1000)), None, most=10_000)
        else:
            after = data.draw(st.integers(0, last))
            # Of thinned steps only the buckets are left: a cut through one goes to both sides whole.
            history.claim(after // 16 * 16 if thinned else after)
    for branch, steps in history.branches.items():
        if not steps:
            assert len(memory.summary(history.row, branch, 1, ALL, 10)) == 0
            continue
        history.hold_to_the_steps(branch, 1, ALL, 1, 2, 5, 20, 100, 1000, 100_000)
        first = data.draw(st.integers(1, steps[-1].step))
        last = data.draw(st.integers(first, steps[-1].step + 100))
        history.hold_to_the_steps(branch, first, last, data.draw(st.integers(1, 300)))
    reasons = {finding.reason for finding in check(memory)}
    assert not reasons & {"SUMMARY_DIFFERS", "HISTORY_DISORDERED", "STATE_UNREADABLE"}
    memory.close()


@pytest.mark.parametrize("after", [0, 1, 63, 64, 65, 256, 1000, 1024, 4095, 4096, 5000])
def test_a_rewind_cuts_every_tier_and_the_branch_has_its_own(store: SQLStore, after: int) -> None:
    history = History(store, after)
    for count in (3000, 2000):
        history.train(count)
    fold_all(store)
    history.claim(after)
    history.train(700)
    fold_all(store)
    for branch in history.branches:
        history.hold_to_the_steps(branch, 1, ALL, 1, 3, 20, 90, 400, 9000)


def test_a_gap_may_be_filled_after_a_rewind_to_before_it(store: SQLStore) -> None:
    """The chunk at the edge of the gap was complete, and then is not."""
    history = History(store, 1)
    history.train(100)
    history.claim(2000)
    history.train(100)
    fold_all(store)
    history.claim(100)
    history.train(1500)
    fold_all(store)
    for branch in (0, 1):
        history.hold_to_the_steps(branch, 1, ALL, 1, 3, 20, 90)


def test_a_tier_holds_what_is_complete_under_it_and_a_long_run_is_read_from_few_rows(store: SQLStore) -> None:
    history = History(store, 2)
    history.train(4096 * 2 + 100)
    fold_all(store)
    # 130 chunks: all but the last, a row of 4 quarters each; of these 129 rows all but the last, 4 a row; and so on.
    assert tiers_of(store, history.row) == [(1, 129), (2, 32), (3, 8), (4, 2), (5, 1)]
    history.hold_to_the_steps(0, 1, ALL, 3)
    with store.reading() as db:
        level, covered = _pyramid.read(db, 2, 0, [_pyramid.Reach(history.row.id, 1, ALL)], 4096)
    assert len(level.buckets) <= 5 * FAN
    assert covered == [128]


def test_small_and_frequent_folds_make_the_same_tiers_as_one_large(store: SQLStore) -> None:
    often, once = History(store, 3), History(store, 3)
    for _ in range(30):
        often.train(97)
        fold_all(store)
    once.train(30 * 97)
    fold_all(store)
    with store.reading() as db:
        rows = [
            db.execute(
                "SELECT tier, number, first_step, last_step FROM tiers WHERE run_id = :id ORDER BY tier, number",
                {"id": history.row.id},
            ).fetchall()
            for history in (often, once)
        ]
    assert rows[0] == rows[1]
    often.hold_to_the_steps(0, 1, ALL, 10)


def test_many_summaries_at_once_are_what_each_is_alone(store: SQLStore) -> None:
    histories = [History(store, seed) for seed in range(7)]
    for index, history in enumerate(histories):
        history.train(1 + 400 * index)
    fold_all(store)
    while store.retain(keep_steps=900, oldest=None):
        pass
    histories[3].claim(700)
    histories[6].claim(1500)
    for history in histories[2:]:
        history.train(30)
    gone = History(store, 7).row
    store.delete(gone.id)
    requests = [
        SummaryRequest(row, branch, first, last, most)
        for row in (*(history.row for history in histories), gone)
        for branch in (0, 1)
        for first, last in ((1, ALL), (300, 1100))
        for most in (1, 3, 40, 400, 5000)
    ]
    random.Random(0).shuffle(requests)
    alone = [store.summary(*request).tobytes() for request in requests]
    assert [found.tobytes() for found in store.summaries(requests)] == alone
    assert store.summaries([]) == []
    # One that is damaged is read as if it were alone, and the others as if it were not there.
    with store.transaction() as db:
        db.execute("UPDATE chunks SET fine = records, coarse = records WHERE run_id = :id", {"id": histories[4].row.id})
        db.execute("UPDATE tiers SET fine = coarse, coarse = fine WHERE run_id = :id", {"id": histories[5].row.id})
    spoiled = [store.summary(*request).tobytes() for request in requests]
    assert [found.tobytes() for found in store.summaries(requests)] == spoiled
    for request, before, now in zip(requests, alone, spoiled, strict=True):
        assert request.run.id == histories[4].row.id or before == now


def test_a_deleted_run_leaves_no_tiers_and_a_copy_has_them(store: SQLStore, memory: SQLStore) -> None:
    gone, kept = History(store, 1), History(store, 2)
    for history in (gone, kept):
        history.train(1000)
    fold_all(store)
    store.delete(gone.row.id)
    assert tiers_of(store, gone.row) == []
    copy(store, memory)
    assert tiers_of(memory, kept.row) == tiers_of(store, kept.row) != []
    kept.store = memory
    kept.train(500)
    fold_all(memory)
    kept.hold_to_the_steps(0, 1, ALL, 1, 20, 100)


def test_the_check_finds_a_tier_that_is_not_what_the_chunks_say(store: SQLStore) -> None:
    history = History(store, 4)
    history.train(3000)
    fold_all(store)
    assert {finding.reason for finding in check(store)} == MADE_UP
    with store.transaction() as db:
        (fine,) = db.execute("SELECT fine FROM tiers WHERE tier = 2 AND number = 0").fetchone()
        spoiled = np.frombuffer(bytes(fine), _summary.dtype(2)).copy()
        spoiled["max"][1][0] += 1
        db.execute("UPDATE tiers SET fine = :fine, checksum = NULL WHERE tier = 2 AND number = 0", {"fine": spoiled.tobytes()})
    found = [finding for finding in check(store) if finding.reason == "SUMMARY_DIFFERS"]
    assert found
    assert "do not match the level below" in found[0].message
