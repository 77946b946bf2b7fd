"""A history as text: what csv and json write of the same rows, whatever they hold."""

import csv
import io
import json
import math
from typing import Any

import pytest

from mechanicd.runs import EXPORT_COLUMNS, EXPORT_FORMATS, StepRow, export_rows, pack, unpack_columns

GROUPS = ("all", 'a,"b"', "", "two\nlines", "Größe")
AWKWARD = (0.1, -0.0, 1e300, 5e-324, math.nan, math.inf, -math.inf, 1 / 3)


def steps(groups: int) -> list[StepRow]:
    def values(start: int) -> tuple[float, ...]:
        return tuple(AWKWARD[(start + group) % len(AWKWARD)] for group in range(groups))

    lr = (None, 0.1, math.nan, -0.0)
    times = (0, 10**18, 10**18 + 999_999_999, 10**18 + 1_000_000_000)
    return [
        StepRow(
            *(number, times[number % 4], number % 3 + 1, values(number), values(number + 1), values(number + 2)),
            *(values(number + 3), values(number + 4), values(number + 5), lr[number % 4]),
        )
        for number in range(1, 1200)
    ]


def plain(row: StepRow, groups: int) -> list[tuple[Any, ...]]:
    """The rows of a step, written out by hand."""
    time = {0: "1970-01-01T00:00:00.000+00:00", 10**18: "2001-09-09T01:46:40.000+00:00"}
    time |= {10**18 + 999_999_999: "2001-09-09T01:46:40.999+00:00", 10**18 + 10**9: "2001-09-09T01:46:41.000+00:00"}
    outcome = ("", "tuned", "non_finite", "held")[row.outcome]
    return [
        (
            row.step,
            time[row.time],
            outcome,
            GROUPS[at],
            row.scale[at],
            row.h[at],
            row.delta_dot_g[at],
            row.delta_dot_x[at],
            row.g_norm_sq[at],
            row.x_norm_sq[at],
            row.base_lr,
        )
        for at in range(groups)
    ]


@pytest.mark.parametrize("groups", [1, 5])
def test_every_format_writes_every_bit(groups: int) -> None:
    given = steps(groups)
    data = [pack(groups, row) for row in given]
    expected = [row for step in given for row in plain(step, groups)]

    def text(format_: str) -> str:
        portions = (unpack_columns(groups, b"".join(data[begin : begin + 500])) for begin in range(0, len(data), 500))
        return "".join(EXPORT_FORMATS[format_](export_rows(portions, GROUPS[:groups])))

    written = io.StringIO()
    csv.writer(written).writerows([EXPORT_COLUMNS, *expected])
    assert text("csv") == written.getvalue()

    def shown(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
        return value

    objects = [dict(zip(EXPORT_COLUMNS, map(shown, row), strict=True)) for row in expected]
    lines = text("jsonl").splitlines()
    assert list(map(json.loads, lines)) == objects
    assert list(map(repr, map(json.loads, lines))) == list(map(repr, objects)), "−0.0 too"
    assert json.loads(text("json")) == objects


def test_a_history_without_steps_has_the_heading_alone() -> None:
    assert ["".join(write(export_rows([unpack_columns(2, b"")], ["a", "b"]))) for write in EXPORT_FORMATS.values()] == [
        ",".join(EXPORT_COLUMNS) + "\r\n",
        "[]",
        "",
    ]
