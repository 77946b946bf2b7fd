"""RunService's SketchRuns: the course of S of many runs, from the summaries that the store has. Knows no transport."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from mechanicd.runs import RunRow
from mechanicd.service import _convert
from mechanicd.service._errors import ServiceError
from mechanicd.service._slices import sliced
from mechanicd.store import SERIES, Buckets, Store, SummaryRequest
from mechanicd.v1 import run_service_pb2

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
        names = (_convert.run_name_in(name, f"names[{index}]") for index, name in enumerate(request.names))
        wanted: dict[tuple[str, str], RunRow | None] = {name: None async for name in sliced(names)}
        points = min(request.points or _POINTS, _MOST_POINTS)
        async for row in sliced(await rows()):
            if (row.project, row.run) in wanted:
                wanted[row.project, row.run] = row
        response = run_service_pb2.SketchRunsResponse()
        for portion in _portions([row for row in wanted.values() if row]):
            asked = [SummaryRequest(row, 0, 1, _convert.MAX_INTEGER, points) for row in portion]
            found = zip(portion, await self._call(self._store.summaries, asked), strict=True)
            response.sketches.extend([sketch async for sketch in sliced(_sketch(*each) for each in found)])
        return response


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


def _sketch(row: RunRow, buckets: Buckets) -> run_service_pb2.Sketch:
    """The largest S of all groups in each bucket."""
    groups = len(row.config.scale_groups)
    place = SERIES.index("scale") * groups
    largest = buckets["max"][:, place] if groups == 1 else np.fmax.reduce(buckets["max"][:, place : place + groups], axis=1)
    return run_service_pb2.Sketch(name=f"projects/{row.project}/runs/{row.run}", scale=largest.tolist())
