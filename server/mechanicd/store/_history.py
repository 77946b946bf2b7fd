"""The history of steps: a journal of flushes, folded in the background into chunks of one run each.

A flush is one journal row, however many runs it covers: that keeps a commit to one small write. Folding moves the steps into
chunks. A chunk spans `chunk_steps` steps of one branch of one run and carries its own part of the pyramid; `_pyramid` holds the
levels above. A journal segment counts only while it belongs to its run's epoch and lies above the run's folded step. So folding
may be killed and restarted anywhere without losing or doubling a step; whoever starts a new epoch folds the run first.

Each function works inside the caller's transaction.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from mechanicd.runs import record_dtype, record_layout
from mechanicd.store import _chunks, _pyramid, _summary, _sums
from mechanicd.store._chunks import Chunk, Gap
from mechanicd.store._journal import Segment
from mechanicd.store._sql import TABLES, Database, insert

_WRITE = insert("chunks") + (
    " ON CONFLICT (run_id, branch, number) DO UPDATE SET first_step = excluded.first_step, last_step = excluded.last_step,"
    " thinned = excluded.thinned, coarse = excluded.coarse, fine = excluded.fine, records = excluded.records,"
    " sums = excluded.sums"
)


def valid(found: Iterable[Segment], epoch: int, folded_step: int) -> list[Segment]:
    """The journal segments of a run that still count, in step order."""
    counting = [segment for segment in found if segment.epoch == epoch and segment.last_step > folded_step]
    return sorted(counting, key=lambda segment: segment.first_step)


def fold(db: Database, run_id: int, groups: int, found: Iterable[Segment]) -> None:
    """Moves a run's steps from the journal into its chunks.

    Args:
        found: what the journal holds for the run; segments that no longer count are skipped.
    """
    row = db.execute(f"SELECT epoch, folded_step FROM runs WHERE id = :id{db.for_update}", {"id": run_id}).fetchone()
    if row is None:
        return
    counting = valid(found, *row)
    if not counting:
        return
    fresh = False
    whole = [_chunks.readable(groups, segment.records, segment.first_step, segment.last_step)[0] for segment in counting]
    for number, records in split(groups, b"".join(whole)) if any(whole) else ():
        new = _summary.of_steps(groups, records)
        chunk = _chunks.read(db, run_id, groups, 0, number)
        if chunk is None:
            _write(db, run_id, groups, Chunk(0, number, False, new, records))
            fresh = True
        else:
            fine = _summary.merge(np.concatenate((chunk.fine, new)), _summary.FINEST)
            _write(db, run_id, groups, Chunk(0, number, chunk.thinned, fine, chunk.records + records))
    if fresh:
        _pyramid.rise(db, run_id, groups, 0)
    sealing = _sums.before(db, run_id)
    # Moves in the same transaction as the chunks: from here on the journal's copy of these steps no longer counts.
    db.execute("UPDATE runs SET folded_step = :step WHERE id = :id", {"step": counting[-1].last_step, "id": run_id})
    _sums.after(db, run_id, sealing)


def branch_off(db: Database, run_id: int, groups: int, after_step: int, branch: int) -> None:
    """Moves the steps above `after_step` to a branch; the run must be folded. A chunk that holds both kinds is cut in two.

    If its exact steps were thinned out, the bucket at the cut goes to both sides whole.
    """
    _pyramid.cut(db, run_id, groups, after_step)
    _cut_chunks(db, run_id, groups, after_step, branch)
    _pyramid.rise(db, run_id, groups, branch)


def copy_whole(db: Database, run_id: int, to: int, groups: int, after_step: int, after: int, most: int) -> int | None:
    """Copies chunks of a run's current history to another run: those that end before the one with `after_step`.

    Args:
        after: the number of the last chunk that was copied before, −1 if none was.
        most: about how many bytes to copy.

    Returns:
        The number of the last chunk copied now; None if there was none left to copy.
    """
    number, span = (after_step - 1) // _summary.chunk_steps(groups), _summary.chunk_steps(groups)
    size = span * record_layout(groups).size + span // _summary.FINEST * _summary.dtype(groups).itemsize
    between = {"run_id": run_id, "after": after, "number": number, "most": max(1, most // size)}
    chosen = db.execute(
        "SELECT number FROM chunks WHERE run_id = :run_id AND branch = 0 AND number > :after AND number < :number"
        " ORDER BY number LIMIT :most",
        between,
    ).fetchall()
    if not chosen:
        return None
    last = int(chosen[-1][0])
    columns = ", ".join(column for column in TABLES["chunks"] if column != "run_id")
    db.execute(
        f"INSERT INTO chunks (run_id, {columns}) SELECT :to, {columns} FROM chunks"
        " WHERE run_id = :run_id AND branch = 0 AND number > :after AND number <= :last",
        {"run_id": run_id, "to": to, "after": after, "last": last},
    )
    return last


def copy_cut(db: Database, run_id: int, to: int, groups: int, after_step: int) -> None:
    """Copies the steps up to `after_step` of the chunk that it lies in; the source must be folded.

    If the exact steps of that chunk were thinned out, its last bucket is copied whole.
    """
    number = (after_step - 1) // _summary.chunk_steps(groups)
    chunk = _chunks.read(db, run_id, groups, 0, number) if after_step else None
    if chunk is not None and int(chunk.fine["first_step"][0]) <= after_step:
        below, _ = _cut(groups, chunk, after_step, 0)
        _write(db, to, groups, below)


def _cut_chunks(db: Database, run_id: int, groups: int, after_step: int, branch: int) -> None:
    number = (after_step - 1) // _summary.chunk_steps(groups)
    chunk = _chunks.read(db, run_id, groups, 0, number) if after_step else None
    above = {"run_id": run_id, "branch": branch, "after_step": after_step}
    db.execute("UPDATE chunks SET branch = :branch WHERE run_id = :run_id AND branch = 0 AND first_step > :after_step", above)
    if chunk is None or int(chunk.fine["last_step"][-1]) <= after_step or int(chunk.fine["first_step"][0]) > after_step:
        return
    for part in _cut(groups, chunk, after_step, branch):
        _write(db, run_id, groups, part)


def _cut(groups: int, chunk: Chunk, after_step: int, branch: int) -> tuple[Chunk, Chunk]:
    """Splits a chunk: the steps up to `after_step`, and the later ones as part of a branch."""
    size = record_layout(groups).size
    steps = np.frombuffer(chunk.records, record_dtype(groups))["step"]
    at = int(np.searchsorted(steps, after_step, side="right")) * size
    below, above = chunk.records[:at], chunk.records[at:]
    if chunk.thinned:
        fine_below = chunk.fine[chunk.fine["first_step"] <= after_step]
        fine_above = chunk.fine[chunk.fine["last_step"] > after_step]
    else:
        fine_below, fine_above = _summary.of_steps(groups, below), _summary.of_steps(groups, above)
    return (
        Chunk(chunk.branch, chunk.number, chunk.thinned, fine_below, below),
        Chunk(branch, chunk.number, chunk.thinned, fine_above, above),
    )


def records(
    db: Database, run_id: int, groups: int, branch: int, first: int, last: int, limit: int, found: Iterable[Segment]
) -> Iterator[bytes]:
    """Exact steps in order, packed; see `Store.records`.

    Args:
        found: the run's segments in the journal.

    Raises:
        StoreDamaged: where steps can't be read; those before them were given.
    """
    if limit <= 0:
        return
    given = 0
    key = {"run_id": run_id, "branch": branch}
    span = _summary.chunk_steps(groups)
    numbers = db.execute(
        "SELECT number FROM chunks WHERE run_id = :run_id AND branch = :branch AND number BETWEEN :low AND :high"
        " ORDER BY number",
        {**key, "low": (first - 1) // span, "high": (last - 1) // span},
    ).fetchall()

    def blobs() -> Iterator[tuple[bytes, list[Gap]]]:
        for (number,) in numbers:
            row = db.execute(
                "SELECT first_step, last_step, thinned, records, sums FROM chunks"
                " WHERE run_id = :run_id AND branch = :branch AND number = :number",
                {**key, "number": number},
            ).fetchone()
            low, high, thinned, packed, sums = row or (0, 0, 0, b"", None)  # None: a damaged database contradicts itself
            yield _chunks.records_of(groups, number, (low, high), bool(thinned), bytes(packed), sums)
        for segment in found:
            if segment.last_step >= first and segment.first_step <= last:
                yield _chunks.readable(groups, segment.records, segment.first_step, segment.last_step)

    width = record_layout(groups).size
    for packed, gaps in blobs():
        known = _chunks.steps_of(groups, packed)
        end_before = next((gap for gap in gaps if gap.last >= first and gap.first <= last), None)
        until = last if end_before is None else end_before.first - 1
        begin = int(np.searchsorted(known, min(first, 2**63), side="left"))
        end = min(int(np.searchsorted(known, min(max(until, 0), 2**63), side="right")), begin + limit - given)
        yield packed[begin * width : end * width]
        given += max(0, end - begin)
        if given >= limit:
            return
        if end_before is not None:
            raise _chunks.damaged(branch, end_before)


def thin(db: Database, keep_steps: int, most: int) -> int:
    """Drops the exact steps of at most `most` chunks that end more than `keep_steps` steps before their run does."""
    rows = db.execute(
        "SELECT chunks.run_id, chunks.branch, chunks.number, chunks.first_step, chunks.last_step, chunks.sums"
        " FROM chunks JOIN runs ON runs.id = chunks.run_id"
        " WHERE chunks.thinned = 0 AND chunks.last_step <= runs.last_step - :keep LIMIT :most",
        {"keep": keep_steps, "most": most},
    ).fetchall()
    if rows:
        db.executemany(
            "UPDATE chunks SET records = :empty, thinned = 1, sums = :sums"
            " WHERE run_id = :run_id AND branch = :branch AND number = :number",
            [
                {"run_id": row[0], "branch": row[1], "number": row[2], "empty": b"", "sums": _sums.thinned(row[2:5], row[5])}
                for row in rows
            ],
        )
    return len(rows)


def split(groups: int, records: bytes) -> Iterator[tuple[int, bytes]]:
    """Splits records in step order at chunk boundaries: (chunk number, its records)."""
    width = record_layout(groups).size
    numbers = (np.frombuffer(records, record_dtype(groups))["step"].astype(np.int64) - 1) // _summary.chunk_steps(groups)
    starts = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    for begin, end in pairwise(starts):
        yield int(numbers[begin]), records[begin * width : end * width]


def _write(db: Database, run_id: int, groups: int, chunk: Chunk) -> None:
    db.execute(
        _WRITE, chunk_values(run_id, groups, chunk.branch, chunk.number, chunk.fine, chunk.records, thinned=chunk.thinned)
    )


def chunk_values(
    run_id: int, groups: int, branch: int, number: int, fine: _summary.Buckets, records: bytes, *, thinned: bool
) -> dict[str, Any]:
    """A row of the table `chunks`, with every level of its part of the pyramid."""
    head = number, int(fine["first_step"][0]), int(fine["last_step"][-1]), int(thinned)
    coarse = _summary.upper(groups, fine, _summary.FINEST, _summary.chunk_steps(groups)).tobytes()
    return {
        "run_id": run_id,
        "branch": branch,
        **dict(zip(("number", "first_step", "last_step", "thinned"), head, strict=True)),
        "coarse": coarse,
        "fine": (packed := fine.tobytes()),
        "records": records,
        "sums": _sums.of_chunk(groups, head, coarse, packed, records).to_bytes(),
    }
