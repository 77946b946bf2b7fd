"""Rows of runs and events, as both engines keep them: how they are read and written."""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from sys import intern
from typing import Any, Final

from mechanicd.runs import EventRow, RunRow, RunStats, RunStatus
from mechanicd.store import _chunks, _journal
from mechanicd.store._errors import OwnershipLost, StoreDamaged
from mechanicd.store._journal import Segment
from mechanicd.store._model import Commit
from mechanicd.store._sql import TABLES, Database, floats_in, floats_out, insert
from mechanicd.tuner import TunerConfig

RUN: Final = ", ".join(f"runs.{column}" for column in TABLES["runs"][:-1])
WITHOUT_STATE: Final = RUN.replace("runs.state", "NULL AS state")
_READ_OTHERWISE: Final = ("labels", "config", "state", "scale", "status", "step_interval", "vitals")
_PLAIN: Final = tuple(column for column in TABLES["runs"][:-1] if column not in _READ_OTHERWISE)

_COUNTS: Final = ("last_step", "create_time", "open_time", "step_time", "session_count", "archive_time")


def has_trainer(row: Sequence[Any], oldest: int) -> bool:
    """Whether a session holds the run of (id, session, status, vitals), and its trainer was there after a time."""
    _, session, status, vitals = row
    if not session or status != RunStatus.RUNNING:
        return False
    try:
        stats = RunStats.from_text(vitals)
    except (ValueError, TypeError):  # damaged: what can't be judged is kept
        return True
    return max(stats.seen, stats.away) >= oldest


def note(db: Database, run_id: int, events: Sequence[EventRow]) -> None:
    if events:
        db.executemany(
            insert("events", ("run_id", *EventRow._fields)), [{"run_id": run_id, **event._asdict()} for event in events]
        )


def moved(commit: Commit) -> dict[str, Any]:
    """What `Database.advance` takes."""
    segment = Segment(commit.run_id, commit.epoch, commit.after_step + 1, commit.last_step, commit.records)
    return {
        "id": commit.run_id,
        "epoch": commit.epoch,
        "session": commit.session,
        "after_step": commit.after_step,
        "last_step": commit.last_step,
        "state": commit.state,
        "scale": floats_out(commit.scale),
        "step_time": commit.step_time,
        "step_interval": commit.interval,
        "vitals": commit.stats.to_text(),
        "segment": _journal.pack([segment]) if commit.records else b"",
    }


def by_id(db: Database, run_id: int, hold: str = "") -> RunRow:
    row = db.execute(f"SELECT {RUN} FROM runs WHERE id = :id{hold}", {"id": run_id}).fetchone()
    if row is None:
        raise OwnershipLost("the run was deleted")
    return run_in(row)


def held(db: Database, run_id: int, expected_epoch: int) -> RunRow:
    """A run that is locked until the end of the transaction. Raises OwnershipLost if it has another epoch."""
    row = by_id(db, run_id, db.for_update)
    if row.epoch != expected_epoch:
        raise OwnershipLost(f"projects/{row.project}/runs/{row.run} is at epoch {row.epoch}, not {expected_epoch}")
    return row


@lru_cache(maxsize=256)
def config_in(text: str) -> TunerConfig:
    return TunerConfig(**json.loads(text))


def _labels_in(text: str) -> dict[str, str]:
    labels = json.loads(text)
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("labels are no JSON object of strings")
    if "\\u" in text:  # half of a character can be written so, and can't be sent
        "".join((*labels, *labels.values())).encode()
    return {intern(key): intern(value) for key, value in labels.items()}  # many runs have the same ones


def run_in(row: Sequence[Any]) -> RunRow:
    """Raises StoreDamaged."""
    values: Mapping[str, Any] = dict(zip(TABLES["runs"], row, strict=False))
    try:
        read = RunRow(
            labels=_labels_in(values["labels"]),
            config=config_in(values["config"]),
            state=bytes(values["state"] or b""),
            scale=floats_in(values["scale"]),
            status=RunStatus(values["status"]),
            interval=max(0, values["step_interval"]),  # version 0.1 stored negative ones where the clock was set back
            stats=RunStats.from_text(values["vitals"]),
            **{name: values[name] for name in _PLAIN},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        told = f"projects/{values['project']}/runs/{values['run']} can't be read: its row is damaged ({type(error).__name__})"
        raise StoreDamaged(f"{told}; `mechanicd store check` lists all damage, and a backup may still have it") from None
    if not 0 <= read.rewinds <= read.epoch:  # each rewind begins an epoch; clients count on it
        raise StoreDamaged(f"projects/{read.project}/runs/{read.run} can't be read: its row has {read.rewinds} rewinds")
    if not all(0 <= values[name] < 2**63 for name in _COUNTS) or max(read.session_count, read.rewinds) >= 2**32:
        raise StoreDamaged(f"projects/{read.project}/runs/{read.run} can't be read: its row has a number that no run has")
    if len(read.scale) != len(read.config.scale_groups):
        raise StoreDamaged(f"projects/{read.project}/runs/{read.run} can't be read: its row has another number of scales")
    return read


def readable(rows: Iterable[Sequence[Any]]) -> Iterator[RunRow]:
    """The runs of a list; one that is damaged is told of, and keeps no other from being seen."""
    for row in rows:
        try:
            yield run_in(row)
        except StoreDamaged as error:
            _chunks.tell(int(row[0]), 0, -2, str(error))
