"""List filters: what matches, how texts are quoted, and where a filter is wrong."""

import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.runs import RunRow, RunStatus
from mechanicd.service import ServiceError
from mechanicd.service._convert import filter_in as parse
from mechanicd.tuner import TunerConfig

ROW = RunRow(
    id=1,
    project="vision",
    run="resnet/seed0",
    labels={"batch": "256", "note": 'says "hi" \\ bye', "optimizer.name": "adam-w", "empty": ""},
    config=TunerConfig(scale_groups=("a", "b")),
    status=RunStatus.RUNNING,
    status_message="",
    epoch=1,
    session=1,
    last_step=1500,
    state=b"",
    scale=(1e-8, 2.5e-3),
    create_time=1,
    open_time=1,
    interval=0,
    session_count=1,
    step_time=1,
    rewinds=0,
)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   \t\n",
        "status = RUNNING",
        "status=running",
        'status = "Running"',
        "status != FAILED",
        "status : RUN",
        "step = 1500",
        "step >= 1500",
        "step<=1.5e3",
        "step > 1499.5",
        "step != 1",
        "scale = 2.5e-3",
        "scale > 1e-3",
        "scale < inf",
        'name = "projects/vision/runs/resnet/seed0"',
        "name=projects/vision/runs/resnet/seed0",
        "name : resnet",
        'name : "vision/runs"',
        "name : runs/resnet",
        "name : projects/vision/",
        "name : vision/resnet",
        "name : vision",
        "name > projects/vision",
        "labels.batch = 256",
        'labels.batch = "256"',
        "labels.batch : 5",
        "labels.batch >= 256",
        "labels.optimizer.name = adam-w",
        "labels.missing != 256",
        'labels.empty = ""',
        r'labels.note = "says \"hi\" \\ bye"',
        r'labels.note : "\"hi\""',
        "status = RUNNING AND step > 1000",
        "status = RUNNING  AND\nstep > 1000 AND scale < 1",
        'labels.batch = "256"AND step > 1',
    ],
)
def test_a_filter_that_the_run_meets(text: str) -> None:
    assert parse(text)(ROW)


@pytest.mark.parametrize(
    "text",
    [
        "status = FAILED",
        "status != running",
        "status : DONE",
        "step < 1500",
        "step != 1500",
        "scale < 1e-3",
        "scale = 1e-8",
        "scale = nan",
        "name = resnet/seed0",
        "name : ResNet",
        "name : run",
        "name : runs",
        "name : project",
        "name : s/",
        "labels.batch = 25",
        "labels.batch : 25x",
        "labels.missing = 256",
        "labels.missing : 2",
        "labels.missing < z",
        'labels.missing = ""',
        'labels.empty != ""',
    ],
)
def test_a_filter_that_the_run_does_not_meet(text: str) -> None:
    assert not parse(text)(ROW)


TRUE, FALSE = "step = 1500", "status = FAILED"


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6))
def test_and_asks_for_all_of_its_comparisons(parts: list[bool]) -> None:
    text = " AND ".join(TRUE if part else FALSE for part in parts)
    assert parse(text)(ROW) == all(parts)


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])), st.text(string.ascii_letters + ' ="\\:<>AND'))
def test_a_quoted_text_means_itself_whatever_is_in_it(value: str, other: str) -> None:
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    row = replace(ROW, labels={"k": value})
    assert parse(f"labels.k = {quoted}")(row)
    assert parse(f"{TRUE} AND labels.k={quoted} AND labels.k:{quoted}")(row)
    assert parse(f"labels.k = {quoted}")(replace(ROW, labels={"k": other})) == (value == other)


@settings(deadline=None)
@given(st.integers(0, 2**53), st.sampled_from(["=", "!=", "<", "<=", ">", ">="]), st.integers(0, 2**53))
def test_numbers_are_compared_as_numbers(have: int, operator: str, wanted: int) -> None:
    expected = {"=": have == wanted, "!=": have != wanted, "<": have < wanted, "<=": have <= wanted}
    expected |= {">": have > wanted, ">=": have >= wanted}
    assert parse(f"step {operator} {wanted}")(replace(ROW, last_step=have)) == expected[operator]


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("status", 0, "expected FIELD OPERATOR VALUE"),
        ("= RUNNING", 0, "expected FIELD OPERATOR VALUE"),
        ("status RUNNING", 0, "expected FIELD OPERATOR VALUE"),
        ("status ~ RUNNING", 0, "expected FIELD OPERATOR VALUE"),
        ("status = ", 0, "expected FIELD OPERATOR VALUE"),
        ('labels.a = "open', 0, "expected FIELD OPERATOR VALUE"),
        ("labels. = 3", 0, "expected FIELD OPERATOR VALUE"),
        ("(step = 3)", 0, "expected FIELD OPERATOR VALUE"),
        ("step = 3 OR step = 4", 9, "expected AND"),
        ("step = 3 and step = 4", 9, "expected AND"),
        ("step = 3 ANDstep = 4", 9, "expected AND"),
        ("step = 3 step = 4", 9, "expected AND"),
        ('labels.a = "b"c', 14, "expected AND"),
        ("step = 3 AND", 12, "expected FIELD OPERATOR VALUE"),
        ("step = 3 AND AND step = 4", 12, "expected FIELD OPERATOR VALUE"),
        ("color = red", 0, "unknown field 'color'; choose one of name, status, step, scale, needs, labels.KEY"),
        ("  color = red", 2, "unknown field 'color'"),
        ("step = 3 AND color = red", 13, "unknown field 'color'"),
        ("label.a = 3", 0, "expected FIELD OPERATOR VALUE"),
        ("step = many", 7, "expected a number to compare step with, got 'many'"),
        ('scale < ""', 8, "expected a number to compare scale with, got ''"),
        ("step : 3", 5, "':' is for text"),
    ],
)
def test_a_wrong_filter_is_refused_with_its_place(text: str, position: int, said: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse(text)
    error = caught.value
    assert error.reason == "INVALID_FILTER"
    assert error.metadata == {"filter": text, "position": str(position)}
    assert [bad.field for bad in error.bad_fields] == ["filter"]
    assert said in error.message
    assert f"at character {position}" in error.message


LONG = " AND ".join(["step > 1"] * 100_000)


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        (LONG, 0, f"it has {len(LONG):,} characters; a filter has at most 10,000"),
        ("(" * 100_000, 0, "at most 10,000"),
        ('name = "' + "x" * 10**6 + '"', 0, "at most 10,000"),
        (" " * 100_000, 0, "at most 10,000"),
        (" AND ".join(["step>1"] * 101), 100 * 11 - 4, "at most 100 comparisons"),
        ("\n AND ".join(["step>1"] * 800), 100 * 12 - 4, "at most 100 comparisons"),
    ],
    ids=["ands", "brackets", "a text", "blanks", "one too many", "many"],
)
def test_a_filter_has_bounds(text: str, position: int, said: str) -> None:
    with pytest.raises(ServiceError, match=said) as caught:
        parse(text)
    assert caught.value.reason == "INVALID_FILTER"
    assert caught.value.metadata["position"] == str(position)
    assert len(caught.value.message) < 600, "it shows only the beginning of a long filter"


def test_the_longest_filter_is_taken() -> None:
    text = " AND ".join(["step > 1"] * 100)
    assert parse(text.ljust(10_000))(ROW)


class Counting(str):
    """A text that counts how often all of it is read anew."""

    __slots__ = ()
    read = 0

    def __getitem__(self, key: Any) -> str:
        Counting.read += len(range(len(self))[key]) if isinstance(key, slice) else 1
        return super().__getitem__(key)


def test_each_character_of_a_filter_is_read_once() -> None:
    text = Counting(" AND ".join([TRUE] * 90))
    Counting.read = 0
    assert parse(text)(ROW)
    assert Counting.read <= len(text)


@settings(deadline=None, max_examples=300)
@given(st.text(string.ascii_lowercase[:3] + 'steplabs.AND ="<:31\\'))
def test_any_text_is_a_filter_or_refused_as_one(text: str) -> None:
    try:
        answers: set[Any] = {type(parse(text)(row)) for row in (ROW, replace(ROW, labels={}, status=RunStatus.FAILED))}
    except ServiceError as error:
        answers, position = {bool}, int(error.metadata["position"])
    else:
        position = 0
    assert answers == {bool}
    assert 0 <= position <= len(text)
