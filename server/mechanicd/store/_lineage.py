"""Rewinding and renaming a run by hand, and forking one from another. Each function works inside the caller's transaction."""

import json
from dataclasses import asdict, replace
from typing import Any, Final

from mechanicd.runs import RunRow, RunStats, RunStatus
from mechanicd.store import _history, _pyramid
from mechanicd.store._errors import OwnershipLost, RunExists
from mechanicd.store._model import Fork, Rename, Rewind
from mechanicd.store._sql import TABLES, Database, floats_out, insert

_NEW: Final = tuple(column for column in TABLES["runs"] if column != "id")


def rewind(db: Database, before: RunRow, change: Rewind) -> None:
    """See `Store.rewind`; the run must be folded."""
    if before.session and before.status == RunStatus.RUNNING and not change.session:
        raise OwnershipLost(f"projects/{before.project}/runs/{before.run} has a session now")
    rewinds = before.rewinds
    if change.after_step < before.last_step:
        rewinds += 1
        _history.branch_off(db, before.id, len(before.config.scale_groups), change.after_step, rewinds)
    db.execute(
        "UPDATE runs SET epoch = epoch + 1, session = :session, last_step = :after_step, folded_step = :after_step,"
        " state = :state, scale = :scale, status = :status, status_message = :message, rewinds = :rewinds, vitals = :vitals,"
        " revision = revision + 1 WHERE id = :id",
        {
            "id": before.id,
            "session": change.session,
            "after_step": change.after_step,
            "state": change.state,
            "scale": floats_out(change.scale),
            "status": RunStatus.PREEMPTED,
            "message": change.message,
            "rewinds": rewinds,
            "vitals": RunStats(since=change.after_step).to_text(),
        },
    )


def rename(db: Database, before: RunRow, change: Rename) -> None:
    """See `Store.rename`; the run must be folded, because its journal counts only in the epoch that ends here."""
    held = before.session and before.status == RunStatus.RUNNING
    if held and not change.session:
        raise OwnershipLost(f"projects/{before.project}/runs/{before.run} has a session now")
    name = {"project": change.project, "run": change.run}
    if db.execute("SELECT 1 FROM runs WHERE project = :project AND run = :run", name).fetchone() is not None:
        raise RunExists(f"projects/{change.project}/runs/{change.run} exists")
    take_name(db, change.project, change.run)
    take_name(db, before.project, before.run)
    former = {"project": before.project, "run": before.run, "run_id": before.id, "session": before.session if held else 0}
    db.execute(insert("former_names"), former)
    db.execute(
        "UPDATE runs SET project = :project, run = :run, epoch = epoch + 1, session = :session, status = :status,"
        " status_message = :message, revision = revision + 1 WHERE id = :id",
        {
            **name,
            "id": before.id,
            "session": change.session if held else before.session,
            "status": RunStatus.PREEMPTED if held else before.status,
            "message": change.message if held else before.status_message,
        },
    )


def take_name(db: Database, project: str, run: str) -> None:
    """From now on a run has this name: no run that had it before is meant by it."""
    db.execute("DELETE FROM former_names WHERE project = :project AND run = :run", {"project": project, "run": run})


def fork(db: Database, source: RunRow, change: Fork) -> int:
    """See `Store.fork`; the source must be folded. The id of the new run."""
    there = change.after_step == source.last_step
    stats = replace(source.stats, away=0, returns=()) if there else RunStats(since=change.after_step)
    values: dict[str, Any] = dict.fromkeys(_NEW, 0) | {
        "project": change.project,
        "run": change.run,
        "labels": json.dumps(source.labels),
        "config": json.dumps(asdict(source.config)),
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
    made = db.execute(f"{insert('runs', _NEW)} ON CONFLICT (project, run) DO NOTHING RETURNING id", values).fetchone()
    if made is None:
        raise RunExists(f"projects/{change.project}/runs/{change.run} exists")
    take_name(db, change.project, change.run)
    (run_id,) = made
    groups = len(source.config.scale_groups)
    _history.copy_up_to(db, source.id, int(run_id), groups, change.after_step)
    _pyramid.rise(db, int(run_id), groups, 0)
    return int(run_id)
