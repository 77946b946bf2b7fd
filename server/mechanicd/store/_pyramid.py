"""The pyramid above the chunks: each row holds the buckets of many chunks, so any zoom of a long run reads few rows.

A row of tier 1 holds up to 64 buckets of a quarter chunk each; a row of tier 2 holds one bucket for each of up to 64 rows of
tier 1, and so on. (A quarter chunk, because reading that level from the chunks would touch very many rows that mostly hold
other levels.) A tier holds only what is complete in the level below: all of its rows but the last, the only one that can still
grow. So a fold touches a tier rarely. A reader takes the highest tier that is fine enough, and the end of the run from the
levels below.

Each function works inside the caller's transaction.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

import numpy as np

from mechanicd.store import _chunks, _summary, _sums
from mechanicd.store._chunks import Level
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._sql import Database, insert

FAN: Final = 64
_WRITE: Final = insert("tiers") + (
    " ON CONFLICT (run_id, branch, tier, number) DO UPDATE SET first_step = excluded.first_step,"
    " last_step = excluded.last_step, coarse = excluded.coarse, fine = excluded.fine, checksum = excluded.checksum"
)
_PORTION: Final = 64
_ANY: Final = 2**62


@lru_cache(maxsize=256)
def fan(groups: int) -> int:
    """How many buckets a row holds at most: 64, or fewer for runs with more than about 90 scale groups."""
    count = _summary.FACTOR
    while count < FAN and count * _summary.FACTOR * _summary.dtype(groups).itemsize <= _summary.CHUNK_BYTES:
        count *= _summary.FACTOR
    return count


def bucket_steps(groups: int, tier: int) -> int:
    """How many steps a bucket of a tier spans. Tier 1 begins with buckets of a quarter of a chunk."""
    return int(max(_summary.FINEST, _summary.chunk_steps(groups) // _summary.FACTOR) * fan(groups) ** (tier - 1))


def _below_steps(groups: int, tier: int) -> int:
    """How many steps one row of the level below a tier spans: a chunk, or a row of the tier below."""
    return _summary.chunk_steps(groups) if tier == 1 else bucket_steps(groups, tier)


def rise(db: Database, run_id: int, groups: int, branch: int) -> None:
    """Adds to a branch's tiers whatever has become complete below them; where a row is damaged, they are made anew."""
    try:
        _rise(db, run_id, groups, branch)
    except StoreDamaged:
        db.execute("DELETE FROM tiers WHERE run_id = :run_id AND branch = :branch", {"run_id": run_id, "branch": branch})
        _rise(db, run_id, groups, branch)


def _rise(db: Database, run_id: int, groups: int, branch: int) -> None:
    tier = 1
    while _raised(db, run_id, groups, branch, tier):
        tier += 1


def cut(db: Database, run_id: int, groups: int, after_step: int) -> None:
    """Removes from the tiers of the current history every bucket that holds, or may still receive, steps above `after_step`."""
    key = {"run_id": run_id}
    (highest,) = db.execute("SELECT coalesce(max(tier), 0) FROM tiers WHERE run_id = :run_id AND branch = 0", key).fetchone()
    for tier in range(1, highest + 1):
        below = _below_steps(groups, tier)
        whole = after_step // below * below
        at = {**key, "tier": tier, "number": whole // (bucket_steps(groups, tier) * fan(groups))}
        row = db.execute(
            "SELECT fine FROM tiers WHERE run_id = :run_id AND branch = 0 AND tier = :tier AND number = :number", at
        ).fetchone()
        db.execute("DELETE FROM tiers WHERE run_id = :run_id AND branch = 0 AND tier = :tier AND number >= :number", at)
        fine = None if row is None else _chunks.buckets(groups, bytes(row[0]), 1, _ANY)
        if fine is not None:  # a damaged row is made again from the level below
            _write(db, run_id, groups, 0, tier, fine[fine["first_step"] <= whole])


class Reach(NamedTuple):
    """Steps begin…end of a run."""

    run_id: int
    begin: int
    end: int


def read(db: Database, groups: int, branch: int, reaches: Sequence[Reach], size: int) -> tuple[Level, list[int]]:
    """The tiers' buckets for a zoom, of at most `size` steps each, in order: of many runs with so many scale groups.

    Returns:
        Buckets that overlap begin…end (and some around them), and for each run the number of the last chunk they cover,
        −1 if none.

    Raises:
        StoreDamaged: a row of one of them can't be read.
    """
    width = fan(groups)
    parts: list[Level] = []
    covered = [-1] * len(reaches)
    for tier in reversed(range(1, _highest(groups, size) + 1)):
        least = bucket_steps(groups, tier)
        span = min(least * width, _ANY)
        stored = min(size, span)
        column = "tiers.fine" if stored == least else "tiers.coarse"
        where = f"tiers.branch = {int(branch)} AND tiers.tier = {tier}"
        numbers = [
            (max(done + 1, (r.begin - 1) // span), (r.end - 1) // span) for r, done in zip(reaches, covered, strict=True)
        ]
        rows = rows_of(db, "tiers", f"{column}, tiers.last_step", where, reaches, numbers)
        parts.append(_chunks.level(groups, rows, span, stored))
        below = _below_steps(groups, tier)
        ends = {row[0]: row[3] for row in rows}  # of the last row of each run
        covered = [
            (ends[place] - 1) // below if place in ends else (done + 1) * (span // below) - 1
            for place, done in enumerate(covered)
        ]
    return Level.joined(groups, parts), covered


def rows_of(
    db: Database, table: str, columns: str, where: str, reaches: Sequence[Reach], numbers: Sequence[tuple[int, int]]
) -> list[Any]:
    """Rows (place, number, columns …) of `chunks` or `tiers`, in order: for each run those of its range of numbers."""
    values = ", ".join(
        f"({place}, {int(reach.run_id)}, {low}, {high})"
        for place, (reach, (low, high)) in enumerate(zip(reaches, numbers, strict=True))
        if low <= high
    )
    if not values:
        return []
    # A cross join is what keeps SQLite from reading the whole table first.
    rows = db.execute(
        f"WITH wanted (place, run_id, low, high) AS (VALUES {values}) SELECT wanted.place, {table}.number, {columns}"
        f" FROM wanted CROSS JOIN {table} WHERE {table}.run_id = wanted.run_id AND {where}"
        f" AND {table}.number BETWEEN wanted.low AND wanted.high"
    ).fetchall()
    return sorted(rows, key=itemgetter(0, 1))


def _highest(groups: int, size: int) -> int:
    """The highest tier whose buckets are no larger than `size`; 0 if only the chunks are fine enough."""
    tier = 0
    while bucket_steps(groups, tier + 1) <= size:
        tier += 1
    return tier


def _raised(db: Database, run_id: int, groups: int, branch: int, tier: int) -> bool:
    """Brings one tier up to date with the level below. Returns whether anything was added."""
    size, raised = bucket_steps(groups, tier), False
    key = {"run_id": run_id, "branch": branch, "tier": tier, "below": tier - 1}
    newest = db.execute(
        "SELECT last_step, fine FROM tiers WHERE run_id = :run_id AND branch = :branch AND tier = :tier"
        " ORDER BY number DESC LIMIT 1",
        key,
    ).fetchone()
    covered = -1 if newest is None else (newest[0] - 1) // _below_steps(groups, tier)
    row = np.empty(0, _summary.dtype(groups)) if newest is None else _whole(groups, newest[1])
    source = "chunks WHERE" if tier == 1 else "tiers WHERE tier = :below AND"
    while True:
        below = db.execute(
            f"SELECT number, fine FROM {source} run_id = :run_id AND branch = :branch AND number > :covered"
            f" ORDER BY number LIMIT {_PORTION + 1}",
            {**key, "covered": covered},
        ).fetchall()[:-1]
        if not below:
            return raised
        whole = [_below(db, run_id, groups, branch, tier, number, fine) for number, fine in below]
        rows = _rows(np.concatenate((row, *(_summary.merge(fine, size) for fine in whole))), size * fan(groups))
        for each in rows:
            _write(db, run_id, groups, branch, tier, each)
        row, covered, raised = rows[-1], below[-1][0], True


def _below(db: Database, run_id: int, groups: int, branch: int, tier: int, number: int, data: bytes) -> _summary.Buckets:
    """A row of the level below a tier; of a damaged chunk what can be saved."""
    if tier > 1:
        return _whole(groups, data)
    fine = _chunks.buckets(groups, bytes(data), *_chunks.span_of(groups, number))
    if fine is not None:
        return fine
    chunk = _chunks.read(db, run_id, groups, branch, number)
    return np.empty(0, _summary.dtype(groups)) if chunk is None else chunk.fine


def _whole(groups: int, data: bytes) -> _summary.Buckets:
    found = _chunks.buckets(groups, bytes(data), 1, _ANY)
    if found is None or not len(found):
        raise StoreDamaged("a row of the pyramid is damaged")
    return found


def _rows(buckets: _summary.Buckets, span: int) -> list[_summary.Buckets]:
    """Splits buckets, in order, into the rows of a tier."""
    numbers = (buckets["first_step"] - 1) // span
    return list(np.split(buckets, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1))


def _write(db: Database, run_id: int, groups: int, branch: int, tier: int, fine: _summary.Buckets) -> None:
    if not len(fine):
        return
    size = bucket_steps(groups, tier)
    span = size * fan(groups)
    values: dict[str, Any] = {
        "run_id": run_id,
        "branch": branch,
        "tier": tier,
        "number": int(fine["first_step"][0] - 1) // span,
        "first_step": int(fine["first_step"][0]),
        "last_step": int(fine["last_step"][-1]),
        "coarse": _summary.upper(groups, fine, size, span).tobytes(),
        "fine": fine.tobytes(),
    }
    db.execute(_WRITE, _sums.sealed("tiers", values))
