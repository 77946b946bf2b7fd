"""The export of a run's exact steps: one portion is read while the ones before it are being sent."""

import math
from collections.abc import AsyncIterator, Iterable, Iterator

from mechanicd.dashboard._bucket_range import END
from mechanicd.dashboard._reader import Reader
from mechanicd.dashboard._request import ExportRequest
from mechanicd.runs import EXPORT_FORMATS, RunRow, StepColumns, export_rows, unpack_columns
from mechanicd.store import Store, saved_records

MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "json": "application/json", "jsonl": "application/x-ndjson"}
_VALUES = 20_000
"""Of each column, at once."""


async def export(reader: Reader, run: RunRow, request: ExportRequest) -> AsyncIterator[str]:
    """The text, a portion at a time. It has its own connection, so a long history delays nobody else.

    Raises:
        StoreError: before the first portion, or later if the rest can no longer be read. StoreDamaged comes after all that can
            be read: the answer then ends without its end, so that no client takes it for complete.
    """
    try:
        portions: Iterator[str] | None = None

        def more(store: Store) -> str | None:
            nonlocal portions
            if portions is None:
                rows = export_rows(_steps(store, run, request), run.config.scale_groups)
                portions = iter(EXPORT_FORMATS[request.format](rows))
            return next(portions, None)

        while (text := await reader.call(more)) is not None:
            yield text
    finally:
        reader.close()


def _steps(store: Store, run: RunRow, request: ExportRequest) -> Iterable[StepColumns]:
    first = 1 if request.x0 is None else max(1, min(math.ceil(request.x0), END))
    last = END if request.x1 is None else max(0, min(math.floor(request.x1), END))
    groups = len(run.config.scale_groups)
    for portion in saved_records(store, run, request.branch, first, last, max(1, _VALUES // groups)):
        yield unpack_columns(groups, portion)
