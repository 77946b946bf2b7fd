"""The journal: one flush packs the segments of all its runs into one blob, so it is one row however many runs it has."""

import logging
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from mechanicd.store import _summary
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._sql import Database

log = logging.getLogger("mechanicd.store")

_HEADER: Final = struct.Struct("<qqqqQI")
_SUM: Final = struct.Struct("<I")
_HEADER_4: Final = struct.Struct("<qqqqQ")
"""Before schema 5."""


class Segment(NamedTuple):
    """Consecutive steps of one run, as committed. They count only while the run is still in `epoch`."""

    run_id: int
    epoch: int
    first_step: int
    last_step: int
    records: bytes


def portion(found: Mapping[int, Sequence[Segment]], most_runs: int, most_bytes: int) -> dict[int, int]:
    """The next runs to fold, and how many of their first segments: about `most_bytes` of records, and one segment at least.

    Of a run with very many scale groups it is about a chunk, the least that is written: a step at a time would write that anew
    for each.
    """
    chosen: dict[int, int] = {}
    size = 0
    for run_id, segments in islice(found.items(), most_runs):
        chosen[run_id] = 0
        for segment in segments:
            if size >= max(most_bytes, _summary.FINEST * len(segment.records) // (segment.last_step - segment.first_step + 1)):
                return chosen
            chosen[run_id] += 1
            size += len(segment.records)
    return chosen


def pack(segments: Iterable[Segment]) -> bytes:
    """One blob; each segment is a header of 48 bytes, with checksums of itself and of the records, and its records."""
    parts: list[bytes] = []
    for segment in segments:
        head = _HEADER.pack(*segment[:4], len(segment.records), zlib.crc32(segment.records))
        parts += head, _SUM.pack(zlib.crc32(head)), segment.records
    return b"".join(parts)


def unpack(data: bytes) -> Iterator[Segment]:
    """The segments of a blob in order; of a damaged one, those that are whole.

    Raises:
        StoreDamaged: after them.
    """
    at, lost = 0, -1
    while at < len(data):
        found = _segment_at(data, at)
        if found is None:  # the next header is somewhere behind
            lost, at = at if lost < 0 else lost, at + 1
            continue
        segment, at, whole = found
        if whole:
            yield segment
        elif lost < 0:
            lost = at - len(segment.records)
    if lost >= 0:
        raise StoreDamaged(f"a row of the journal is damaged at byte {lost}")


def _segment_at(data: bytes, at: int) -> tuple[Segment, int, bool] | None:
    """The segment whose header is there, where it ends, and whether its records are whole; None if there is no header."""
    body = at + _HEADER.size
    begin = body + _SUM.size
    if begin > len(data) or zlib.crc32(data[at:body]) != _SUM.unpack_from(data, body)[0]:
        return None
    run, epoch, first, last, length, checksum = _HEADER.unpack_from(data, at)
    records = data[begin : begin + length]
    whole = len(records) == length and zlib.crc32(records) == checksum
    return Segment(run, epoch, first, last, records), begin + length, whole


def of_schema_4(data: bytes) -> bytes:
    """A row of the journal as it was written before schema 5, without checksums, as it is written now. What can't be read of it
    stays behind what can.
    """
    segments, at = [], 0
    while at < len(data):
        begin = at + _HEADER_4.size
        run, epoch, first, last, length = _HEADER_4.unpack_from(data, at) if begin <= len(data) else (0, 0, 0, 0, 1)
        at = begin + length
        if at > len(data) or not 0 < first <= last:
            break
        segments.append(Segment(run, epoch, first, last, data[begin:at]))
    else:
        return pack(segments)
    return pack(segments) + data[begin - _HEADER_4.size :]


class Index:
    """An in-memory index of the journal by run. Each row is read once: ids are never reused, and rows never change."""

    def __init__(self) -> None:
        self._runs_of: dict[int, tuple[int, ...]] = {}
        self._by_run: dict[int, dict[int, list[Segment]]] = {}
        self.damaged: set[int] = set()
        self.kept: set[int] = set()

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
                try:
                    for segment in unpack(bytes(data)):
                        found.setdefault(segment.run_id, []).append(segment)
                except StoreDamaged as error:
                    log.error("%s; its row %d stays, and what is whole is read", error, id_)
                    self.damaged.add(id_)
                self._runs_of[id_] = tuple(found)
                for run_id, segments in found.items():
                    self._by_run.setdefault(run_id, {})[id_] = segments

    def forget(self, ids: Iterable[int]) -> None:
        """Drops rows that were deleted. A damaged one stays known, and in the store, for whoever can read it by hand."""
        for id_ in ids:
            for run_id in self._runs_of.pop(id_, ()):
                of_run = self._by_run[run_id]
                del of_run[id_]
                if not of_run:
                    del self._by_run[run_id]

    def of(self, run_id: int) -> list[Segment]:
        """All segments of a run, whether or not they still count."""
        return [segment for segments in self._by_run.get(run_id, {}).values() for segment in segments]

    def keep(self, run_id: int) -> None:
        """The run can't be folded now, since its row is damaged: rows with its segments stay."""
        self.kept.update(self._by_run.get(run_id, ()))

    @property
    def rows(self) -> list[int]:
        """The ids of all rows that may be deleted once they are folded."""
        self.kept.clear()
        return [id_ for id_ in self._runs_of if id_ not in self.damaged]

    @property
    def runs(self) -> list[int]:
        """The runs that have segments."""
        return list(self._by_run)
