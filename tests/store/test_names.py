"""Archived and renamed runs, in every store."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus, pack
from mechanicd.store import Claim, Commit, OwnershipLost, Rename, RunExists, SQLStore, Store, copy, open_store
from mechanicd.tuner import TunerConfig, TunerState
from tests.store.world import step

PLAIN = TunerConfig()
EVENT = EventRow(9, 30, EventKind.RENAMED, "so")


def trained(store: Store, run: str, session: int) -> RunRow:
    """A run of 30 steps that a session holds."""
    state = TunerState.initial(PLAIN)
    row = store.create("p", run, PLAIN, state.to_bytes(), state.scale, 1)
    row = store.claim(
        Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=session,
            after_step=0,
            state=row.state,
            scale=row.scale,
            labels={},
            time=2,
        )
    )
    records = b"".join(pack(1, step(number, 1, run)) for number in range(1, 31))
    held = {"run_id": row.id, "epoch": row.epoch, "session": session, "after_step": 0, "last_step": 30}
    commit = Commit(**held, state=b"30", scale=(0.5,), step_time=3, records=records)
    assert store.commit([commit], []) == [True]
    return got(store, run)


def got(store: Store, run: str) -> RunRow:
    row = store.get("p", run)
    assert row is not None
    return row


def rename(store: Store, row: RunRow, run: str, **changes: Any) -> RunRow:
    wanted = Rename(run_id=row.id, expected_epoch=row.epoch, project="p", run=run, session=7, message="why", events=(EVENT,))
    return store.rename(replace(wanted, **changes))


def test_a_renamed_run_is_the_same_run_under_another_name(store: Store) -> None:
    before = trained(store, "a", 11)
    steps = store.steps(before, 0, 1, 99, 99)
    row = rename(store, before, "b")
    assert row == got(store, "b")
    assert row == replace(before, run="b", epoch=before.epoch + 1, session=7, status=RunStatus.PREEMPTED, status_message="why")
    assert row.revision > before.revision
    assert store.events(row.id)[-1] == EVENT
    assert len(steps) == 30
    assert store.steps(row, 0, 1, 99, 99) == steps
    assert store.get("p", "a") is None
    assert store.renamed("p", "a") == row
    assert (store.fenced_by_rename(11), store.fenced_by_rename(7)) == (True, False)
    late = Commit(
        run_id=row.id,
        epoch=before.epoch,
        session=11,
        after_step=30,
        last_step=31,
        state=b"",
        scale=(0.5,),
        step_time=3,
        records=pack(1, step(31, 1, "a")),
    )
    assert store.commit([late], []) == [False], "the session is fenced"
    assert store.steps(row, 0, 1, 99, 99) == steps


def test_a_former_name_means_the_run_until_another_one_takes_it(store: Store) -> None:
    row = rename(store, rename(store, trained(store, "a", 21), "b"), "c")
    assert store.renamed("p", "a") == store.renamed("p", "b") == row
    trained(store, "b", 22)
    assert store.renamed("p", "b") is None
    row = rename(store, row, "a")
    assert store.renamed("p", "a") is None
    assert store.renamed("p", "c") == row
    store.delete(row.id)
    assert store.renamed("p", "c") is None
    assert not store.fenced_by_rename(21)


def test_a_name_that_is_taken_and_a_session_that_came_meanwhile_stop_a_rename(store: Store) -> None:
    row, other = trained(store, "a", 31), trained(store, "b", 32)
    with pytest.raises(RunExists):
        rename(store, row, "b")
    with pytest.raises(OwnershipLost):
        rename(store, row, "c", session=0)
    with pytest.raises(OwnershipLost):
        rename(store, row, "c", expected_epoch=row.epoch - 1)
    assert (got(store, "a"), got(store, "b")) == (row, other)
    assert store.renamed("p", "a") is None


def test_archiving_is_kept_until_it_is_undone_or_a_session_opens_the_run(store: Store) -> None:
    row = trained(store, "a", 41)
    event = EventRow(5, 30, EventKind.ARCHIVED, "by hand")
    store.archive(row.id, 5, event)
    archived = got(store, "a")
    assert archived == replace(row, archive_time=5)
    assert archived.revision > row.revision
    assert store.events(row.id)[-1] == event
    store.archive(row.id, 0, event._replace(kind=EventKind.RESTORED))
    assert got(store, "a") == row
    store.archive(row.id, 6, event)
    claim = Claim(
        run_id=row.id,
        expected_epoch=row.epoch,
        session=42,
        after_step=30,
        state=row.state,
        scale=row.scale,
        labels={},
        time=7,
    )
    assert store.claim(claim).archive_time == 0
    store.archive(row.id + 99, 6, event)  # deleted meanwhile


def test_a_copy_of_a_store_has_archived_runs_and_former_names(store: Store, tmp_path: Path) -> None:
    row = rename(store, trained(store, "a", 51), "b")
    store.archive(row.id, 5, EVENT)
    other = open_store(f"sqlite:///{tmp_path / 'copy.db'}")
    copy(cast(SQLStore, store), cast(SQLStore, other))
    assert other.renamed("p", "a") == got(other, "b") == replace(row, archive_time=5)
    assert other.fenced_by_rename(51)
    other.close()
