"""The journal: one flush packs the segments of all its runs into one blob, so it is one row however many runs it has."""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from mechanicd.store._sql import Database

_HEADER: Final = struct.Struct("<qqqqQ")


class Segment(NamedTuple):
    """Consecutive steps of one run, as committed. They count only while the run is still in `epoch`."""

    run_id: int
    epoch: int
    first_step: int
    last_step: int
    records: bytes


def pack(segments: Iterable[Segment]) -> bytes:
    """One blob; each segment is a header of 40 bytes and its records."""
    parts = []
    for segment in segments:
        parts.append(_HEADER.pack(*segment[:4], len(segment.records)))
        parts.append(segment.records)
    return b"".join(parts)


def unpack(data: bytes) -> Iterator[Segment]:
    """The segments of a blob in order."""
    at = 0
    while at < len(data):
        run, epoch, first, last, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        yield Segment(run, epoch, first, last, data[at : at + length])
        at += length


class Index:
    """An in-memory index of the journal by run. Each row is read once: ids are never reused, and rows never change."""

    def __init__(self) -> None:
        self._runs_of: dict[int, tuple[int, ...]] = {}
        self._by_run: dict[int, dict[int, list[Segment]]] = {}

    def refresh(self, db: Database) -> None:
        """Reads new rows, and drops those that were folded."""
        there = {int(id_) for (id_,) in db.execute("SELECT id FROM journal").fetchall()}
        self.forget(self._runs_of.keys() - there)
        new = there - self._runs_of.keys()
        if not new:
            return
        # Ids are assigned in order, but with several writers a row may become visible after the next one.
        rows = db.execute("SELECT id, data FROM journal WHERE id >= :id ORDER BY id", {"id": min(new)}).fetchall()
        for id_, data in rows:
            if id_ in new:
                found: dict[int, list[Segment]] = {}
                for segment in unpack(bytes(data)):
                    found.setdefault(segment.run_id, []).append(segment)
                self._runs_of[id_] = tuple(found)
                for run_id, segments in found.items():
                    self._by_run.setdefault(run_id, {})[id_] = segments

    def forget(self, ids: Iterable[int]) -> None:
        """Drops rows that were deleted."""
        for id_ in ids:
            for run_id in self._runs_of.pop(id_, ()):
                of_run = self._by_run[run_id]
                del of_run[id_]
                if not of_run:
                    del self._by_run[run_id]

    def of(self, run_id: int) -> list[Segment]:
        """All segments of a run, whether or not they still count."""
        return [segment for segments in self._by_run.get(run_id, {}).values() for segment in segments]

    @property
    def rows(self) -> list[int]:
        """The ids of all rows."""
        return list(self._runs_of)

    @property
    def runs(self) -> list[int]:
        """The runs that have segments."""
        return list(self._by_run)
