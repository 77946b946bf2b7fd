"""The sketch of S over the steps: it may be coarse, and it hides nothing that stands out."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.cli._text import sparkline

BARS = "▁▂▃▄▅▆▇█"
VALUES = st.lists(st.one_of(st.just(0.0), st.floats(5e-324, 1e300)), max_size=300)
WIDTHS = st.integers(1, 120)


def column_of(index: int, count: int, width: int) -> int:
    """The column that shows a value: the one whose range of values holds its index."""
    return next(column for column in range(width) if count * column // width <= index < count * (column + 1) // width)


@settings(deadline=None)
@given(VALUES, WIDTHS)
def test_it_is_as_wide_as_it_may_be_and_has_only_bars_and_blanks(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(BARS) | {" "}


@settings(deadline=None)
@given(VALUES.filter(any), WIDTHS)
def test_no_spike_is_hidden_the_column_of_the_largest_value_has_the_highest_bar(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    column = column_of(values.index(max(values)), len(values), len(line))
    assert line[column] == max(line)
    assert line[column] in BARS


@settings(deadline=None)
@given(st.lists(st.floats(1e-9, 1e-3), min_size=2, max_size=500), st.data(), WIDTHS)
def test_a_single_step_that_stands_out_is_seen_among_any_number(values: list[float], data: st.DataObject, width: int) -> None:
    spike = data.draw(st.integers(0, len(values) - 1))
    values[spike] = 1.0
    line = sparkline(values, width)
    column = column_of(spike, len(values), len(line))
    assert line[column] == ("█" if len(set(line)) > 1 else line[0])
    if len(line) > 1:
        assert line[column] == "█"
        assert line.count("█") == 1


@settings(deadline=None)
@given(VALUES, WIDTHS)
def test_a_column_is_blank_only_where_every_value_is_zero(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    for column, bar in enumerate(line):
        shown = values[len(values) * column // len(line) : len(values) * (column + 1) // len(line)]
        assert (bar == " ") == (not any(shown))


@settings(deadline=None)
@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=100))
def test_a_higher_value_never_has_a_lower_bar(values: list[float]) -> None:
    line = sparkline(values, len(values))
    pairs = sorted(zip(values, line, strict=True))
    assert [bar for _, bar in pairs] == sorted(line)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 10, ""),
        ([0.0, 0.0], 10, "  "),
        ([1e-8], 10, "▁"),
        ([10.0**power for power in range(8)], 8, BARS),
        ([10.0**power for power in range(8)], 4, "▁▃▆█"),
        ([0.0, 1e-8, 1e-4], 3, " ▁█"),
        ([1.0, 1e-9, 1.0], 3, "█▁█"),
    ],
)
def test_some_sketches(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_it_is_drawn_on_a_logarithmic_scale() -> None:
    line = sparkline([math.exp(step) for step in range(80)], 80)
    assert [line.count(bar) for bar in BARS] == [6, 11, 12, 11, 11, 12, 11, 6]
