"""A history at any zoom: buckets of a wanted size, of one run or of many at once.

Runs whose buckets have one size are read together: one statement for each level of their pyramids, and one pass over what all
of them found. By itself a run of a large fleet costs more in statements than in buckets.

Each function works inside the caller's transaction.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from mechanicd.runs import record_layout
from mechanicd.store import _chunks, _history, _pyramid, _summary
from mechanicd.store._chunks import Level
from mechanicd.store._errors import StoreDamaged
from mechanicd.store._journal import Index, Segment
from mechanicd.store._model import SummaryRequest
from mechanicd.store._pyramid import Reach
from mechanicd.store._sql import Database

_EXACT: Final = "chunks.records, chunks.fine, chunks.thinned, chunks.first_step, chunks.last_step, chunks.sums"


class Range(NamedTuple):
    """Steps of a run, the first and the last of them, and the run's segments in the journal."""

    run_id: int
    first: int
    last: int
    journal: Sequence[Segment]


def summaries(db: Database, requests: Sequence[SummaryRequest], journal: Index) -> list[_summary.Buckets]:
    """See `Store.summaries`; the journal's index must be fresh."""
    heads = _heads(db, requests)
    alike: dict[tuple[int, int, int], dict[int, Range]] = {}
    for index, (run, branch, first, last, most) in enumerate(requests):
        if run.damaged:
            continue
        epoch, folded_step, newest = heads.get((run.id, branch), (0, 0, 0))  # none: the run has been deleted
        unfolded = [] if branch else _history.valid(journal.of(run.id), epoch, folded_step)
        end = unfolded[-1].last_step if unfolded else newest or 0
        size = _summary.size_for(min(last, end) - first + 1, most)
        key = len(run.config.scale_groups), branch, size
        alike.setdefault(key, {})[index] = Range(run.id, first, last, unfolded)
    found: dict[int, _summary.Buckets] = {index: _summary.of_steps(1, b"") for index in range(len(requests))}
    for (groups, branch, size), wanted in alike.items():
        found |= zip(wanted, read(db, groups, branch, size, list(wanted.values())), strict=True)
    return [found[index] for index in range(len(requests))]


def _heads(db: Database, requests: Sequence[SummaryRequest]) -> dict[tuple[int, int], tuple[int, int, int | None]]:
    """The epoch, the folded step and the newest step in chunks, by run and branch."""
    found: dict[tuple[int, int], tuple[int, int, int | None]] = {}
    for branch in {request.branch for request in requests}:
        listed = ", ".join(str(int(request.run.id)) for request in requests if request.branch == branch)
        rows = db.execute(
            "SELECT id, epoch, folded_step, (SELECT last_step FROM chunks WHERE run_id = runs.id AND branch = :branch"
            f" ORDER BY number DESC LIMIT 1) FROM runs WHERE id IN ({listed})",
            {"branch": branch},
        ).fetchall()
        found |= {(id_, branch): (epoch, folded_step, newest) for id_, epoch, folded_step, newest in rows}
    return found


def read(db: Database, groups: int, branch: int, size: int, wanted: Sequence[Range]) -> list[_summary.Buckets]:
    """Buckets of `size` steps that overlap each range, in order.

    Takes from the pyramid the level that fits; only the newest steps, which no level has yet, are aggregated here.

    Args:
        wanted: of runs that all have so many scale groups.
    """
    # Buckets at the edges are returned whole.
    reaches = [Reach(each.run_id, (each.first - 1) // size * size + 1, ((each.last - 1) // size + 1) * size) for each in wanted]
    try:
        above, covered = _pyramid.read(db, groups, branch, reaches, size)
        below = _of_chunks(db, groups, branch, size, reaches, covered)
    except StoreDamaged:
        if len(wanted) > 1:
            return [found for each in wanted for found in read(db, groups, branch, size, [each])]
        above, below = _of_damaged(db, groups, branch, size, reaches[0])
    parts = [above, below, _of_journal(groups, wanted, reaches)]
    places, buckets = parts[1]
    if len(parts[0].buckets) or len(parts[2].buckets):
        places, buckets = (np.concatenate(each) for each in zip(*parts, strict=True))
        order = np.lexsort((buckets["first_step"], places))
        places, buckets = places[order], buckets[order]
    if size > 1 and (buckets is not below.buckets or size != _stored(groups, size)):  # else it is as it was asked for
        begins = _summary.begins(buckets, size, places)
        places, buckets = places[begins], _summary.gather(buckets, size, begins)
    first, last = (np.array(each, "<i8")[places] for each in ([each.first for each in wanted], [each.last for each in wanted]))
    chosen = (buckets["last_step"] >= first) & (buckets["first_step"] <= last)
    if not chosen.all():
        places, buckets = places[chosen], buckets[chosen]
    return [buckets[begin:end] for begin, end in pairwise(np.searchsorted(places, np.arange(len(wanted) + 1)).tolist())]


def _stored(groups: int, size: int) -> int:
    """The size of the buckets that chunks have for a zoom."""
    return min(size, _summary.chunk_steps(groups))


def _of_chunks(db: Database, groups: int, branch: int, size: int, reaches: Sequence[Reach], covered: Sequence[int]) -> Level:
    """The buckets of all chunks after those that the pyramid covers. Raises StoreDamaged."""
    span, stored = _summary.chunk_steps(groups), _stored(groups, size)
    column = _EXACT if stored == 1 else "chunks.fine" if stored == _summary.FINEST else "chunks.coarse"
    numbers = [(max(done + 1, (r.begin - 1) // span), (r.end - 1) // span) for r, done in zip(reaches, covered, strict=True)]
    rows = _pyramid.rows_of(db, "chunks", column, f"chunks.branch = {int(branch)}", reaches, numbers)
    return _exact(groups, rows) if stored == 1 else _chunks.level(groups, rows, span, stored)


def _exact(groups: int, rows: Sequence[Any]) -> Level:
    """Chunks as buckets of one step each; as their finest buckets where the steps were thinned out. Raises StoreDamaged."""
    steps: list[tuple[int, bytes]] = []
    thinned = [(row[0], row[1], row[3]) for row in rows if row[4]]
    for place, number, records, _, is_thinned, first_step, last_step, sums in rows:
        if not is_thinned:
            good, gaps = _chunks.records_of(groups, number, (first_step, last_step), False, bytes(records), sums)
            if gaps:
                raise StoreDamaged("a chunk is damaged")
            steps.append((place, good))
    exact = _of_steps(groups, steps)
    if not thinned:
        return exact
    fine = _chunks.level(groups, thinned, _summary.chunk_steps(groups), _summary.FINEST)
    places, buckets = (np.concatenate(each) for each in zip(exact, fine, strict=True))
    order = np.lexsort((buckets["first_step"], places))
    return Level(places[order], buckets[order])


def _of_steps(groups: int, found: Sequence[tuple[int, bytes]]) -> Level:
    """Records, each with its place, as buckets of one step."""
    buckets = _summary.of_steps(groups, b"".join(records for _, records in found), 1)
    counts = [len(records) // record_layout(groups).size for _, records in found]
    return Level(np.repeat(np.array([place for place, _ in found], "<i8"), counts), buckets)


def _of_journal(groups: int, wanted: Sequence[Range], reaches: Sequence[Reach]) -> Level:
    found = []
    for place, (each, reach) in enumerate(zip(wanted, reaches, strict=True)):
        for segment in each.journal:
            if segment.last_step >= reach.begin and segment.first_step <= reach.end:
                whole, _ = _chunks.readable(groups, segment.records, segment.first_step, segment.last_step)
                found.append((place, whole))
    return _of_steps(groups, found)


def _of_damaged(db: Database, groups: int, branch: int, size: int, reach: Reach) -> tuple[Level, Level]:
    """What the tiers and the chunks of one run still have."""
    try:
        above, covered = _pyramid.read(db, groups, branch, [reach], size)
    except StoreDamaged:  # the chunks have the same steps, in more rows
        _chunks.tell(reach.run_id, branch, -1, "its summaries of many chunks")
        above, covered = Level.none(groups), [-1]
    try:
        return above, _of_chunks(db, groups, branch, size, [reach], covered)
    except StoreDamaged:  # a row is damaged: each by itself
        span, stored = _summary.chunk_steps(groups), _stored(groups, size)
        numbers = db.execute(
            "SELECT number FROM chunks WHERE run_id = :run_id AND branch = :branch AND number BETWEEN :low AND :high"
            " ORDER BY number",
            {
                "run_id": reach.run_id,
                "branch": branch,
                "low": max(covered[0] + 1, (reach.begin - 1) // span),
                "high": (reach.end - 1) // span,
            },
        ).fetchall()
        chunks = (_chunks.read(db, reach.run_id, groups, branch, number) for (number,) in numbers)
        levels = [_of_chunk(groups, chunk, stored) for chunk in chunks if chunk]
        buckets = np.concatenate([np.empty(0, _summary.dtype(groups)), *levels])
        return above, Level(np.zeros(len(buckets), "<i8"), buckets)


def _of_chunk(groups: int, chunk: _chunks.Chunk, stored: int) -> _summary.Buckets:
    """A chunk's buckets of one size, made again."""
    if stored == 1:
        return chunk.fine if chunk.thinned else _summary.of_steps(groups, chunk.records, 1)
    return chunk.fine if stored == _summary.FINEST else _summary.merge(chunk.fine, stored)
