"""RunService's SketchRuns: the course of S of many runs, from the summaries that the store has. Knows no transport."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from mechanicd.runs import RunRow
from mechanicd.service import _convert
from mechanicd.service._errors import ServiceError
from mechanicd.store import SERIES, Buckets, Store, SummaryRequest
from mechanicd.v1 import names, run_service_pb2

MOST_RUNS: Final = 1000
_POINTS, _MOST_POINTS = 100, 400
_CELLS: Final = 100
"""The store is asked for so many scale groups at a time, so that commits get their turn in between."""


class Sketches:
    """Draws the runs of a store.

    Args:
        store: where the runs are kept.
        call: runs a store method on the store's thread.
    """

    def __init__(self, store: Store, call: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._call = call

    async def of(
        self, request: run_service_pb2.SketchRunsRequest, rows: Callable[[], Awaitable[Sequence[RunRow]]]
    ) -> run_service_pb2.SketchRunsResponse:
        """See RunService.SketchRuns.

        Args:
            rows: reads every run.
        """
        if len(request.names) > MOST_RUNS:
            told = f"got {len(request.names):,} names; ask for at most {MOST_RUNS:,} at a time"
            raise ServiceError("INVALID_RANGE", told, field="names")
        wanted = [_convert.run_name_in(name, f"names[{index}]") for index, name in enumerate(request.names)]
        points = min(request.points or _POINTS, _MOST_POINTS)
        known = set(wanted)
        found = {name: row for row in await rows() if (name := names.RunName(row.project, row.run)) in known}
        drawn: dict[int, list[float]] = {}
        for portion in _portions(list(found.values())):
            asked = [SummaryRequest(row, 0, 1, _convert.MAX_INTEGER, points) for row in portion]
            for row, buckets in zip(portion, await self._call(self._store.summaries, asked), strict=True):
                drawn[row.id] = _largest(len(row.config.scale_groups), buckets)
        sketches = [
            run_service_pb2.Sketch(name=str(name), scale=drawn[found[name].id])
            for name in dict.fromkeys(wanted)
            if name in found
        ]
        return run_service_pb2.SketchRunsResponse(sketches=sketches)


def _portions(rows: Sequence[RunRow]) -> Iterator[list[RunRow]]:
    portion: list[RunRow] = []
    groups = 0
    for row in rows:
        portion.append(row)
        groups += len(row.config.scale_groups)
        if groups >= _CELLS:
            yield portion
            portion, groups = [], 0
    if portion:
        yield portion


def _largest(groups: int, buckets: Buckets) -> list[float]:
    """The largest S of all groups in each bucket."""
    place = SERIES.index("scale") * groups
    largest: list[float] = np.fmax.reduce(buckets["max"][:, place : place + groups], axis=1).tolist()
    return largest
