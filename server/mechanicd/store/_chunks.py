"""The rows of a history as they are read back: what is damaged is found, and everything else is still there.

A chunk has checksums (`_sums`): of 16 records together, so what is damaged costs no more than that. Chunks from before schema 5
have none, but a form: whole records, of the steps that their row stands for, in order. What breaks the form can't be read; the
records before and after it can. Each function works inside the caller's transaction.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from mechanicd.runs import record_dtype, record_layout
from mechanicd.store import _summary, _sums
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._sql import Database

log = logging.getLogger("mechanicd.store")

_COLUMNS: Final = ("branch", "number", "first_step", "last_step", "thinned", "fine", "records", "sums", "coarse")
_READ: Final = f"SELECT {', '.join(_COLUMNS)} FROM chunks WHERE run_id = :run_id AND branch = :branch AND number = :number"
_MOST_TOLD: Final = 1000
_told: set[tuple[int, int, int]] = set()


class Gap(NamedTuple):
    """Steps that can't be read, the first and the last of them included."""

    first: int
    last: int


class Damage(NamedTuple):
    """What can't be read: a reason of `check`, and words."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive steps of a branch: buckets for all of them, and exact records unless they were thinned out."""

    branch: int
    number: int
    thinned: bool
    fine: _summary.Buckets
    records: bytes


def read(db: Database, run_id: int, groups: int, branch: int, number: int) -> Chunk | None:
    """One chunk. Where it is damaged, what its records and its buckets still say together; None if that is nothing."""
    row = db.execute(_READ, {"run_id": run_id, "branch": branch, "number": number}).fetchone()
    return None if row is None else _intact(run_id, groups, row)


def chunk_in(run_id: int, groups: int, values: Mapping[str, Any]) -> Chunk | None:
    """As `read`, of a row."""
    return _intact(run_id, groups, [values.get(column) for column in _COLUMNS])


def records_of(
    groups: int, number: int, bounds: tuple[int, int], thinned: bool, data: bytes, sums: bytes | None
) -> tuple[bytes, list[Gap]]:
    """The readable records of a chunk, and the steps that are not readable.

    Args:
        bounds: the first and the last step of the chunk, as its row says.
        sums: its checksums, as stored.
    """
    low, high = span_of(groups, number)
    known = None if sums is None else _sums.ChunkSums.from_bytes(sums)
    if known is not None:
        right = known.head == _sums.of_head((number, *bounds, int(thinned)))
        return _summed(
            groups, data, known.blocks, bounds if right and not thinned else (low, high), exact=right and not thinned
        )
    if thinned:
        return readable(groups, data, low, high, exact=False)
    first, last = bounds
    return readable(groups, data, *((first, last) if low <= first <= last <= high else (low, high)))


def _summed(
    groups: int, data: bytes, sums: tuple[int, ...], bounds: tuple[int, int], *, exact: bool
) -> tuple[bytes, list[Gap]]:
    """The records whose checksums are right, and the steps between them, or up to the bounds, that are lost.

    Args:
        exact: the bounds are those of the records; otherwise they may be wider.
    """
    data = data[: len(data) // record_layout(groups).size * record_layout(groups).size]
    found = tuple(_sums.blocks(groups, data))
    if found == sums:
        known = steps_of(groups, data)
        if not len(known) and exact:
            return b"", [Gap(*bounds)]
        if not len(known) or (bounds[0] <= known[0] and known[-1] <= bounds[1]):
            return data, []
    size = _sums.BLOCK * record_layout(groups).size
    parts: list[bytes] = []
    gaps: list[Gap] = []
    at, lost = bounds[0], False  # the next step that may come, and whether some before it are lost
    for index in range(max(len(found), len(sums))):
        block = data[index * size : (index + 1) * size]
        steps: Any = steps_of(groups, block) if found[index : index + 1] == sums[index : index + 1] else ()
        if not len(steps) or int(steps[0]) < at or int(steps[-1]) > bounds[1]:
            lost = True
            continue
        if lost and int(steps[0]) > at:
            gaps.append(Gap(at, int(steps[0]) - 1))
        parts.append(block)
        at, lost = int(steps[-1]) + 1, False
    if lost and at <= bounds[1]:
        gaps.append(Gap(at, bounds[1]))
    return b"".join(parts), gaps


def span_of(groups: int, number: int) -> tuple[int, int]:
    """The steps that a chunk may have, the first and the last of them."""
    span = _summary.chunk_steps(groups)
    return number * span + 1, (number + 1) * span


def readable(groups: int, data: bytes, low: int, high: int, *, exact: bool = True) -> tuple[bytes, list[Gap]]:
    """The records that are whole, in order and of the steps low…high; and the steps that they lack, as far as that is damage.

    Args:
        exact: the first record is that of step `low`, the last that of step `high`.
    """
    width = record_layout(groups).size
    whole = len(data) // width
    steps = steps_of(groups, data[: whole * width])
    good = (steps >= low) & (steps <= high)
    good[1:] &= steps[1:] > steps[:-1]
    if whole * width == len(data) and good.all() and not (exact and (not whole or steps[0] != low or steps[-1] != high)):
        return data, []
    before = whole if good.all() else int(good.argmin())  # records up to the damage, and those after it
    after = before if whole * width == len(data) else whole  # a part of a record: none after it is where records begin
    while after < whole and not _goes_on(steps[after:], int(steps[before - 1]) + 1 if before else low, high):
        after += 1
    data = data[: before * width] + data[after * width : whole * width]
    known = [*steps[:before].tolist(), *steps[after:].tolist()]
    if not known:
        return b"", [Gap(low, high)]
    gaps = [Gap(low, known[0] - 1)] if exact or not before else []
    gaps += [Gap(known[before - 1] + 1, known[before] - 1)] if 0 < before < len(known) and after > before else []
    gaps += [Gap(known[-1] + 1, high)] if exact or after == whole else []
    return data, [gap for gap in gaps if gap.first <= gap.last]


def _goes_on(steps: Any, low: int, high: int) -> bool:
    return bool(low <= steps[0] and steps[-1] <= high and (steps[1:] > steps[:-1]).all())


def steps_of(groups: int, records: bytes) -> Any:
    """The step numbers of whole records."""
    return np.frombuffer(records, record_dtype(groups))["step"]


def buckets(groups: int, data: bytes, low: int, high: int) -> _summary.Buckets | None:
    """Buckets as stored, each level in order and within the steps low…high; None if they are damaged."""
    dtype = _summary.dtype(groups)
    if len(data) % dtype.itemsize:
        return None
    found = np.frombuffer(data, dtype)
    return found if plausible(found, low, high) else None


class Level(NamedTuple):
    """Buckets of one size, of many runs in turn: which run of a list each is of, and the buckets in order."""

    places: Any
    buckets: _summary.Buckets

    @classmethod
    def none(cls, groups: int) -> "Level":
        """No buckets."""
        return cls(np.empty(0, "<i8"), np.empty(0, _summary.dtype(groups)))

    @classmethod
    def joined(cls, groups: int, levels: "Sequence[Level]") -> "Level":
        """The buckets of all levels, one level after the other."""
        if len(levels) == 1:
            return levels[0]
        return cls(*map(np.concatenate, zip(cls.none(groups), *levels, strict=True)))


def level(groups: int, rows: Sequence[Any], span: int, stored: int) -> Level:
    """The buckets of `stored` steps of rows (place, number, buckets as stored …) that span so many steps each.

    As one array: with thousands of rows, handling each separately would cost more than its contents.

    Raises:
        StoreDamaged: a row has none, or what can't be.
    """
    dtype = _summary.dtype(groups)
    lengths = np.array([len(row[2]) for row in rows], "<i8")
    if (lengths % dtype.itemsize).any():
        raise StoreDamaged("a row has a part of a bucket")
    found = np.frombuffer(b"".join([row[2] for row in rows]), dtype)
    of = np.repeat(np.arange(len(rows)), lengths // dtype.itemsize)
    chosen = found["size"] == stored
    if not chosen.all():
        found, of = found[chosen], of[chosen]
    places, low = np.array([row[0] for row in rows], "<i8")[of], np.array([row[1] for row in rows], "<i8")[of] * span
    first, last = found["first_step"], found["last_step"]
    order = (first[1:] > last[:-1]) | (places[1:] != places[:-1])
    fits = (first > low) & (last <= low + span) & (first <= last) & (found["count"] > 0) & (last - first < stored)
    if not (order.all() and fits.all() and np.bincount(of, minlength=len(rows)).all()):
        raise StoreDamaged("a row has buckets that can't be")
    return Level(places, found)


def plausible(found: _summary.Buckets, low: int, high: int) -> bool:
    """Whether buckets have their form: sizes, bounds and counts that fit each other."""
    first, last, size, count = (found[field] for field in ("first_step", "last_step", "size", "count"))
    order = (first[1:] > last[:-1]) | (size[1:] > size[:-1])
    fits = (first >= low) & (last <= high) & (first <= last) & (size > 0) & (count > 0) & (last - first < size)
    return bool(order.all() and fits.all())


def damage(db: Database, run_id: int, groups: int) -> Iterator[Damage]:
    """What can't be read of a run's chunks."""
    keys = db.execute(
        "SELECT branch, number FROM chunks WHERE run_id = :run_id ORDER BY branch, number", {"run_id": run_id}
    ).fetchall()
    for branch, number in keys:
        row = db.execute(_READ, {"run_id": run_id, "branch": branch, "number": number}).fetchone()
        row = row or (branch, number, 0, 0, 0, b"", b"", None, b"")  # None: a damaged database contradicts itself
        yield from _damage_of(groups, row)


def damage_of(groups: int, values: Mapping[str, Any]) -> Iterator[Damage]:
    """What can't be read of a chunk's row."""
    return _damage_of(groups, [values.get(column) for column in _COLUMNS])


def _damage_of(groups: int, row: Any) -> Iterator[Damage]:
    branch, number = row[:2]
    _, gaps = records_of(groups, number, row[2:4], bool(row[4]), bytes(row[6]), row[7])
    whole = len(row[6]) % record_layout(groups).size == 0
    known: Any = steps_of(groups, bytes(row[6])) if whole else ()
    disordered = len(known) > 0 and not (known[0] >= row[2] and known[-1] <= row[3] and (known[1:] > known[:-1]).all())
    for gap in gaps:
        yield Damage("HISTORY_DISORDERED" if disordered else "HISTORY_DAMAGED", str(damaged(branch, gap)))
    low, high = span_of(groups, number)
    sums = None if row[7] is None else _sums.ChunkSums.from_bytes(row[7])
    if row[7] is not None and (sums is None or sums.head != _sums.of_head(row[1:5])):
        yield Damage("ROW_DAMAGED", f"the row of steps {low} to {high} of branch {branch} does not have its checksum")
    fine = _fine(groups, row)
    if fine is None or not len(fine) or (sums is not None and sums.coarse != zlib.crc32(row[8])):
        yield Damage("SUMMARY_DIFFERS", f"the summary of steps {low} to {high} of branch {branch} can't be read")


def damaged(branch: int, gap: Gap) -> StoreDamaged:
    """The error of a reader that meets steps that can't be read."""
    return StoreDamaged(
        f"steps {gap.first} to {gap.last} of branch {branch} can't be read: their stored bytes are damaged; "
        "`mechanicd store check` lists all damage, and a backup may still have them",
        branch,
        *gap,
    )


def tell(run_id: int, branch: int, number: int, what: str) -> None:
    """Logs damage that is worked around, once for each place."""
    if (run_id, branch, number) not in _told and len(_told) < _MOST_TOLD:
        _told.add((run_id, branch, number))
        where = f", chunk {number}" if number >= 0 else ""
        log.error("run %d, branch %d%s is damaged: %s", run_id, branch, where, what)


def _fine(groups: int, row: Any) -> _summary.Buckets | None:
    """The buckets of a chunk's row, None if they are damaged."""
    sums = None if row[7] is None else _sums.ChunkSums.from_bytes(row[7])
    if sums is not None and sums.fine != zlib.crc32(row[5]):
        return None
    return buckets(groups, bytes(row[5]), *span_of(groups, row[1]))


def _intact(run_id: int, groups: int, row: Any) -> Chunk | None:
    branch, number, first_step, last_step, thinned, _, data, sums, _ = row
    records, gaps = records_of(groups, number, (first_step, last_step), bool(thinned), bytes(data), sums)
    fine = _fine(groups, row)
    if not gaps and fine is not None and len(fine):
        return Chunk(branch, number, bool(thinned), fine, records)
    tell(run_id, branch, number, "; ".join(f"steps {gap.first} to {gap.last}" for gap in gaps) or "its summary")
    if fine is None or not len(fine):
        fine, gaps = _summary.of_steps(groups, records), []
    # Steps whose records are lost and whose buckets remain are as if they had been thinned out.
    return Chunk(branch, number, bool(thinned or gaps), fine, records) if len(fine) else None
