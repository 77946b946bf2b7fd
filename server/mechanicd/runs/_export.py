"""A history as text, exact to the last bit: the format of `mechanicd runs export` and of the page's export. Pure."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import cycle, islice
from typing import Any, Final, TypeVar

from mechanicd.runs._records import StepColumns
from mechanicd.runs._values import StepOutcome

COLUMNS: Final = (
    *("step", "time", "outcome", "scale_group", "scale", "h"),
    *("delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq", "base_lr"),
)
"""The columns of a row, in order."""

_PORTION: Final = 512
_OUTCOMES: Final = {outcome.value: outcome.name.lower() for outcome in StepOutcome}
"""A number of a newer mechanicd stays a number."""

Row = tuple[Any, ...]
T = TypeVar("T")


def rows(portions: Iterable[StepColumns], groups: Sequence[str]) -> Iterator[Row]:
    """One row per step and scale group; `base_lr` is None if the trainer sent none.

    Args:
        groups: the names of the run's scale groups.
    """
    for steps in portions:
        times = list(map(iso, steps.time))
        outcomes = [_OUTCOMES.get(outcome, str(outcome)) for outcome in steps.outcome]
        by_step = [_for_each_group(column, len(groups)) for column in (steps.step, times, outcomes, steps.base_lr)]
        values = (steps.scale, steps.h, steps.delta_dot_g, steps.delta_dot_x, steps.g_norm_sq, steps.x_norm_sq)
        yield from zip(*by_step[:3], cycle(groups), *values, by_step[3])


def _for_each_group(column: Sequence[T], groups: int) -> Sequence[T]:
    return column if groups == 1 else [value for value in column for _ in range(groups)]


def as_csv(rows: Iterator[Row]) -> Iterator[str]:
    """CSV in portions of lines, the header in the first. A number reads back as the same float64, texts are those of `cell`."""
    heading = _quoted(COLUMNS)
    while (portion := list(islice(rows, _PORTION))) or heading:
        yield heading + "".join(map(_line, portion))
        heading = ""


def _line(row: Row) -> str:
    """What `csv.writer` writes, which takes twice as long."""
    if not _is_plain(row[3]):
        return _quoted(row)
    return _CSV % row if row[-1] is not None else _CSV_WITHOUT_LR % row[:-1]


_CSV_WITHOUT_LR: Final = "%d,%s,%s,%s,%r,%r,%r,%r,%r,%r,\r\n"
_CSV: Final = _CSV_WITHOUT_LR.replace(",\r", ",%r\r")


@lru_cache(maxsize=4096)
def _is_plain(group: str) -> bool:
    return _quoted((group,)) == f"{group}\r\n"


def _quoted(row: Row) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(map(cell, row))
    return text.getvalue()


_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_FORMULA: Final = re.compile(r"(^|[;|\t\r\n])(?=[\s'\"]*[=+\-@\t\r\n＝＋－＠])")


def cell(value: Any) -> Any:
    """A value as a spreadsheet may have it: text that it would take for a formula gets a ' before it, and stays text.

    That is text that begins with = + - @, a tab or the end of a line, also behind what other settings of a spreadsheet take
    for the end of a cell. A number stays a number, also one that is text, such as a label's "-0.5".
    """
    return _FORMULA.sub(r"\1'", value) if isinstance(value, str) and not _NUMBER.fullmatch(value) else value


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
    return f"{_second(seconds)}.{nanoseconds // 10**6:03d}+00:00"


@lru_cache(maxsize=1024)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat()


def _object(row: Row) -> str:
    try:
        return _encode(dict(zip(COLUMNS, row, strict=True)))
    except ValueError:  # it has a number that is not finite
        return _encode(dict(zip(COLUMNS, map(json_value, row), strict=True)))


_encode: Final = json.JSONEncoder(allow_nan=False).encode
