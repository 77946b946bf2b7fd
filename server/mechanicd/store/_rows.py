"""Rows of runs and events, as both engines keep them: how they are read and written."""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache, partial
from sys import intern
from typing import Any, Final

from mechanicd.runs import EventRow, RunRow, RunStats, RunStatus
from mechanicd.store import _chunks, _journal, _sums
from mechanicd.store._errors import OwnershipLost, StoreDamaged
from mechanicd.store._journal import Segment
from mechanicd.store._model import Commit
from mechanicd.store._sql import TABLES, Database, floats_in, floats_out, insert
from mechanicd.tuner import TunerConfig

_READ: Final = TABLES["runs"][: TABLES["runs"].index("folded_step")]
RUN: Final = ", ".join(f"runs.{column}" for column in _READ)
WITHOUT_STATE: Final = RUN.replace("runs.state", "NULL AS state")
_READ_OTHERWISE: Final = ("labels", "config", "state", "scale", "status", "step_interval", "vitals")
_SUM: Final = "crc32"
_COUNTS: Final = (
    "epoch",
    "session",
    "last_step",
    "create_time",
    "open_time",
    "step_time",
    "session_count",
    "rewinds",
    "archive_time",
)
_MOST: Final = 2**31 - 1
"""Each session and each rewind begins an epoch, and the contract counts them in 32 bits."""
_UNREADABLE: Final = (ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError)
_PLAIN: Final = tuple(column for column in _READ if column not in _READ_OTHERWISE)


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
            insert("events", ("run_id", *EventRow._fields, "checksum")),
            [_sums.sealed("events", {"run_id": run_id, **event._asdict()}) for event in events],
        )


def moved(commit: Commit) -> dict[str, Any]:
    """What `Database.advance` takes."""
    segment = Segment(commit.run_id, commit.epoch, commit.after_step + 1, commit.last_step, commit.records)
    written = {
        "last_step": commit.last_step,
        "scale": floats_out(commit.scale),
        "step_time": commit.step_time,
        "step_interval": commit.interval,
        "vitals": commit.stats.to_text(),
    }
    return written | {
        "id": commit.run_id,
        "epoch": commit.epoch,
        "session": commit.session,
        "after_step": commit.after_step,
        "state": commit.state,
        "step_sum": _sums.of(written[column] for column in _sums.OF_STEPS),
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


def config_out(config: TunerConfig) -> str:
    """JSON, with a checksum: a flipped bit in a β would change the training."""
    values = asdict(config)
    return json.dumps({**values, _SUM: zlib.crc32(json.dumps(values).encode())})


@lru_cache(maxsize=256)
def config_in(text: str) -> TunerConfig:
    """The inverse of `config_out`, and of what was written before schema 5. Raises ValueError, TypeError."""
    values = json.loads(text)
    checksum = values.pop(_SUM, None)
    if checksum is not None and checksum != zlib.crc32(json.dumps(values).encode()):
        raise ValueError("the config does not have its checksum")
    return TunerConfig(**values)


def _labels_in(text: str) -> dict[str, str]:
    labels = json.loads(text)
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise ValueError("labels are no JSON object of strings")
    if "\\u" in text or not text.isascii():  # half of a character, or bytes that are no UTF-8, can't be sent
        "".join((*labels, *labels.values())).encode()
    return {intern(key): intern(value) for key, value in labels.items()}  # many runs have the same ones


def _count_in(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a count or a time is below 0")
    return value


def _text_in(value: str) -> str:
    value.encode()  # raises ValueError where bytes were no UTF-8
    return value


def _readers(values: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[], Any], Any]]:
    """The fields of a `RunRow`: for each, its column, how it is read, and what stands in for it where that fails."""
    readers: dict[str, tuple[str, Callable[[], Any], Any]] = {
        "labels": ("labels", lambda: _labels_in(values["labels"]), {}),
        "config": ("config", lambda: config_in(values["config"]), TunerConfig()),
        "state": ("state", lambda: bytes(values["state"] or b""), b""),
        "scale": ("scale", lambda: floats_in(values["scale"]), ()),
        "status": ("status", lambda: RunStatus(values["status"]), RunStatus.FAILED),
        "interval": ("step_interval", lambda: max(0, values["step_interval"]), 0),
        "stats": ("vitals", lambda: RunStats.from_text(values["vitals"]), RunStats()),
    }
    for name in _PLAIN:
        read, otherwise = (_text_in, "") if isinstance(values[name], str) else (_count_in, 0)
        readers[name] = (name, partial(read, values[name]), otherwise)
    return readers


def run_in(row: Sequence[Any]) -> RunRow:
    """Raises StoreDamaged."""
    found = listed_in(row)
    if found.damaged:
        raise StoreDamaged(found.damaged)
    return found


def listed_in(row: Sequence[Any]) -> RunRow:
    """A run with all that can be read of its row; `damaged` says what can't."""
    values: Mapping[str, Any] = dict(zip(TABLES["runs"], row, strict=False))
    try:
        return _whole(values)
    except _UNREADABLE:
        return _what_is_left(values)


def _whole(values: Mapping[str, Any]) -> RunRow:
    """Raises one of `_UNREADABLE`."""
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
    f"{read.project}{read.run}{read.command}{read.status_message}".encode()  # raises ValueError where bytes were no UTF-8
    if (
        min(map(values.__getitem__, _COUNTS)) < 0
        or max(read.rewinds, read.session_count) > min(read.epoch, _MOST)
        or len(read.scale) != len(read.config.scale_groups)
    ):
        raise ValueError("counts, or a number of scales, that no run has")
    return read


def _what_is_left(values: Mapping[str, Any]) -> RunRow:
    read: dict[str, Any] = {}
    lost = []
    for name, (column, reader, otherwise) in _readers(values).items():
        try:
            read[name] = reader()
        except _UNREADABLE:
            read[name] = otherwise
            lost.append(column)
    for name in ("rewinds", "session_count"):
        if not 0 <= read[name] <= min(read["epoch"], _MOST):
            read[name] = 0
            lost.append(name)
    if len(read["scale"]) != len(read["config"].scale_groups):
        lost += ["scale"] if "config" not in lost and "scale" not in lost else []
        read["scale"] = (read["scale"] or (0.0,))[: len(read["config"].scale_groups)]
        read["config"] = replace(read["config"], scale_groups=read["config"].scale_groups[: len(read["scale"])])
    if not lost:
        return RunRow(**read)
    for name in ("project", "run"):
        read[name] = values[name].encode("utf-8", "replace").decode() or "?"
    what = f"projects/{read['project']}/runs/{read['run']} can't be read: its row is damaged ({', '.join(dict.fromkeys(lost))})"
    return RunRow(**read, damaged=f"{what}; `mechanicd store check` lists all damage, and a backup may still have it")


def again(row: RunRow) -> dict[str, Any]:
    """The columns of a run that stand for what could be read of it."""
    return {
        **{name: getattr(row, name) for name in _PLAIN},
        "labels": json.dumps(row.labels),
        "status": row.status,
        "scale": floats_out(row.scale),
        "step_interval": row.interval,
        "vitals": row.stats.to_text(),
    }


def readable(rows: Iterable[Sequence[Any]]) -> Iterator[RunRow]:
    """The runs of a list; one that is damaged is told of, and keeps no other from being seen."""
    for row in rows:
        found = listed_in(row)
        if found.damaged:
            _chunks.tell(int(row[0]), 0, -2, found.damaged)
        yield found
