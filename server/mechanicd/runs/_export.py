"""A history as text, exact to the last bit: the format of `mechanicd runs export` and of the page's export. Pure."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final

from mechanicd.runs._records import StepRow
from mechanicd.runs._values import StepOutcome

COLUMNS: Final = (
    *("step", "time", "outcome", "scale_group", "scale", "h"),
    *("delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq", "base_lr"),
)
"""The columns of a row, in order."""

_PORTION: Final = 512

Row = tuple[Any, ...]


def rows(steps: Iterable[StepRow], groups: Sequence[str]) -> Iterator[Row]:
    """One row per step and scale group; `base_lr` is None if the trainer sent none.

    Args:
        groups: the names of the run's scale groups.
    """
    for step in steps:
        time, outcome = iso(step.time), StepOutcome(step.outcome).name.lower()
        for index, group in enumerate(groups):
            yield (
                *(step.step, time, outcome, group, step.scale[index], step.h[index]),
                *(step.delta_dot_g[index], step.delta_dot_x[index], step.g_norm_sq[index], step.x_norm_sq[index]),
                step.base_lr,
            )


def as_csv(rows: Iterator[Row]) -> Iterator[str]:
    """CSV in portions of lines, the header in the first. A number reads back as the same float64."""
    heading: list[Row] = [COLUMNS]
    while portion := heading + list(islice(rows, _PORTION)):
        text = io.StringIO()
        csv.writer(text).writerows(portion)
        yield text.getvalue()
        heading = []


def as_jsonl(rows: Iterator[Row]) -> Iterator[str]:
    """JSON Lines in portions."""
    while portion := list(islice(rows, _PORTION)):
        yield "".join(f"{_object(row)}\n" for row in portion)


def as_json(rows: Iterator[Row]) -> Iterator[str]:
    """One JSON array of objects, in portions."""
    before = "["
    while portion := list(islice(rows, _PORTION)):
        yield before + ",\n".join(map(_object, portion))
        before = ",\n"
    yield "[]" if before == "[" else "]"


FORMATS: Final = {"csv": as_csv, "json": as_json, "jsonl": as_jsonl}


def json_value(value: Any) -> Any:
    """A JSON value. NaN and infinities become strings, as in protobuf's JSON mapping."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def iso(time: int) -> str:
    """ns since 1970 as ISO 8601 in UTC, to the millisecond."""
    seconds, nanoseconds = divmod(time, 10**9)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 10**6 * 1000)
    return moment.isoformat(timespec="milliseconds")


def _object(row: Row) -> str:
    return json.dumps(dict(zip(COLUMNS, map(json_value, row), strict=True)), allow_nan=False)
