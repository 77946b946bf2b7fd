"""Rewinding and renaming a run by hand. Each function works inside the caller's transaction."""

from mechanicd.runs import RunRow, RunStats, RunStatus
from mechanicd.store import _history, _sums
from mechanicd.store._errors import OwnershipLost, RunExists
from mechanicd.store._model import Rename, Rewind
from mechanicd.store._sql import Database, floats_out, insert


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
    db.execute(insert("former_names"), _sums.sealed("former_names", former))
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
