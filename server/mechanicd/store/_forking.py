"""Forking a run from another one, a portion at a time: a history may have gigabytes, and other trainers wait for the store.

The new run is made without a name, so that nobody sees it, and has its name once it is complete. Each portion is a transaction
of its own, conditional on the source's epoch: as long as that is the same, steps are only added after those that are copied. A
fork of a short run is one portion. What a process that was killed left without a name is deleted when a server opens the store.
"""

import json
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Final

from mechanicd.runs import RunRow, RunStats, RunStatus, record_layout
from mechanicd.store import _history, _lineage, _pyramid, _rows, _summary, _sums
from mechanicd.store._errors import OwnershipLost, RunExists, StoreRejected
from mechanicd.store._journal import Index, portion
from mechanicd.store._model import Fork
from mechanicd.store._sql import TABLES, Database, floats_out, insert

NAMED: Final = "project > ''"
"""The condition that a run has a name."""
_NAMELESS: Final = "project = '' AND epoch = 0 AND session_count = 0"
_NEW: Final = tuple(column for column in TABLES["runs"] if column != "id")
_PORTION: Final = 4 * 2**20
"""About how many bytes are copied at a time: a commit waits for them."""
_ABANDONED_NS: Final = 3600 * 10**9
"""A fork that began so long ago has no process any more that goes on with it."""


class Forking:
    """One fork as it is made. Each call is a transaction; use it where the store is used.

    Args:
        transaction: begins one.
        journal: the index of the journal.
        change: what is asked for.
    """

    def __init__(self, transaction: Callable[[], AbstractContextManager[Database]], journal: Index, change: Fork) -> None:
        self._transaction = transaction
        self._journal = journal
        self._change = change
        self._made = 0
        self._after = -1

    def more(self) -> RunRow | None:
        """Does a portion. Returns the new run once it is complete, and None before.

        Raises:
            OwnershipLost: the source has another epoch now, or is gone.
            RunExists: the name is taken.
        """
        try:
            return self._more(self._change)
        except StoreRejected:  # it took the name at the same moment as another server
            with self._transaction() as db:
                _free(db, self._change)
            raise

    def undo(self) -> bool:
        """Deletes a portion of what was made and has no name. Returns whether there may be more."""
        with self._transaction() as db:
            return bool(self._made) and _tidied(db, self._made)

    def _more(self, change: Fork) -> RunRow | None:
        with self._transaction() as db:
            source = _rows.held(db, change.source_id, change.expected_epoch)
            left = _PORTION - self._folded(db, source)
            if left <= 0:
                return None
            made, after = self._made or _begun(db, source, change), self._after
            groups = len(source.config.scale_groups)
            last = _history.copy_whole(db, source.id, made, groups, change.after_step, after, left)
            complete = last is None or last + 1 >= (change.after_step - 1) // _summary.chunk_steps(groups)
            if complete:
                _history.copy_cut(db, source.id, made, groups, change.after_step)
            if last is not None or complete:
                _pyramid.rise(db, made, groups, 0)
            if complete:
                _named(db, made, change)
                return _rows.by_id(db, made)
        self._made, self._after = made, after if last is None else last
        return None

    def _folded(self, db: Database, source: RunRow) -> int:
        """Folds a portion of the source's journal, as far as the fork needs it. Returns how many bytes that were."""
        self._journal.refresh(db)
        (folded_step,) = db.execute("SELECT folded_step FROM runs WHERE id = :id", {"id": source.id}).fetchone()
        found = _history.valid(self._journal.of(source.id), source.epoch, folded_step)
        needed = [segment for segment in found if segment.first_step <= self._change.after_step]
        some = needed[: portion({source.id: needed}, 1, _PORTION)[source.id]]
        _history.fold(db, source.id, len(source.config.scale_groups), some)
        return sum(len(segment.records) for segment in some)


def tidy(transaction: Callable[[], AbstractContextManager[Database]], now: int) -> None:
    """Deletes the forks that nobody goes on with, a portion at a time.

    Args:
        now: ns since 1970; `LATEST` where no other process has the store.
    """
    with transaction() as db:
        old = {"old": now - _ABANDONED_NS}
        left = db.execute(f"SELECT id FROM runs WHERE {_NAMELESS} AND create_time < :old", old).fetchall()
    for (made,) in left:
        more = True
        while more:
            with transaction() as db:
                more = _tidied(db, made)


def _tidied(db: Database, made: int) -> bool:
    """Deletes a portion of a fork that has no name, and its row at the end. Returns whether there may be more."""
    row = db.execute(f"SELECT length(scale) / 8 FROM runs WHERE id = :id AND {_NAMELESS}", {"id": made}).fetchone()
    if row is None:
        return False
    most = max(1, _PORTION // (_summary.chunk_steps(row[0]) * record_layout(row[0]).size))
    some = db.execute(
        f"SELECT number FROM chunks WHERE run_id = :id AND branch = 0 ORDER BY number LIMIT {most}", {"id": made}
    ).fetchall()
    if not some:
        db.execute("DELETE FROM runs WHERE id = :id", {"id": made})
        return False
    db.execute("DELETE FROM chunks WHERE run_id = :id AND branch = 0 AND number <= :last", {"id": made, "last": some[-1][0]})
    return True


def _begun(db: Database, source: RunRow, change: Fork) -> int:
    """Makes the new run, without a name and without steps."""
    _free(db, change)
    there = change.after_step == source.last_step
    stats = replace(source.stats, away=0, returns=()) if there else RunStats(since=change.after_step)
    values: dict[str, Any] = dict.fromkeys(_NEW, 0) | {
        "project": "",
        "run": secrets.token_hex(16),
        "labels": json.dumps(source.labels),
        "config": _rows.config_out(source.config),
        "status": RunStatus.PREEMPTED,
        "status_message": change.message,
        "last_step": change.after_step,
        "folded_step": change.after_step,
        "state": change.state,
        "scale": floats_out(change.scale),
        "create_time": change.time,
        "command": source.command,
        "vitals": stats.to_text(),
    }
    (made,) = db.execute(f"{insert('runs', _NEW)} RETURNING id", _sums.sealed_run(values)).fetchone()
    return int(made)


def _named(db: Database, made: int, change: Fork) -> None:
    _free(db, change)
    name = {"project": change.project, "run": change.run}
    sealing = _sums.before(db, made)
    moved = db.execute("UPDATE runs SET project = :project, run = :run WHERE id = :id", {**name, "id": made})
    if not moved.rowcount:
        raise OwnershipLost("the fork was given up: it took too long")
    _sums.after(db, made, sealing)
    _lineage.take_name(db, change.project, change.run)
    _rows.note(db, made, change.events)


def _free(db: Database, change: Fork) -> None:
    name = {"project": change.project, "run": change.run}
    if db.execute("SELECT 1 FROM runs WHERE project = :project AND run = :run", name).fetchone() is not None:
        raise RunExists(f"projects/{change.project}/runs/{change.run} exists")
