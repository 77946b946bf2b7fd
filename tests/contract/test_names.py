"""Names and labels: well-formed ones survive a round trip, others are rejected with a helpful message."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanicd.v1 import names

SEGMENTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
RUNS = st.lists(SEGMENTS, min_size=1, max_size=8).map("/".join)


@settings(deadline=None)
@given(SEGMENTS, RUNS)
def test_a_run_name_survives_a_round_trip(project: str, run: str) -> None:
    name = names.run_name(project, run)
    assert str(name) == f"projects/{project}/runs/{run}"
    assert names.parse_run(str(name)) == name == (project, run)


@settings(deadline=None)
@given(SEGMENTS)
def test_a_project_survives_a_round_trip(project: str) -> None:
    assert names.parse_project(f"projects/{project}") == project


def test_a_dash_means_all_projects() -> None:
    assert names.parse_project(f"projects/{names.ALL_PROJECTS}") is None


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(), st.builds("projects/{}/runs/{}".format, st.one_of(SEGMENTS, st.text()), st.one_of(RUNS, st.text())))
)
def test_any_text_is_malformed_or_the_one_spelling_of_a_name(text: str) -> None:
    try:
        spelled = str(names.parse_run(text))
    except names.MalformedName as error:
        spelled, reason = text, error.reason
    else:
        reason = "MALFORMED_NAME"
    assert (spelled, reason) == (text, "MALFORMED_NAME")


EXPECTED_FORM = "expected projects/{project}/runs/{run}"
EXPECTED_PROJECT = "a project is one segment of 1 to 63 characters of A–Z a–z 0–9 . _ -"
EXPECTED_RUN = "a run is one to eight segments joined by '/', 1 to 63 characters of A–Z a–z 0–9 . _ -"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", EXPECTED_FORM),
        ("bert/seed0", EXPECTED_FORM),
        ("projects/p", EXPECTED_FORM),
        ("projects/p/run/r", EXPECTED_FORM),
        ("/projects/p/runs/r", EXPECTED_FORM),
        ("Projects/p/runs/r", EXPECTED_FORM),
        ("projects//runs/r", EXPECTED_PROJECT),
        ("projects/-/runs/r", EXPECTED_PROJECT),
        ("projects/.p/runs/r", EXPECTED_PROJECT),
        ("projects/a b/runs/r", EXPECTED_PROJECT),
        (f"projects/{'p' * 64}/runs/r", EXPECTED_PROJECT),
        ("projects/p/runs/", EXPECTED_RUN),
        ("projects/p/runs/a//b", EXPECTED_RUN),
        ("projects/p/runs/a/", EXPECTED_RUN),
        ("projects/p/runs/a/../b", EXPECTED_RUN),
        ("projects/p/runs/r\n", EXPECTED_RUN),
        ("projects/p/runs/größe", EXPECTED_RUN),
        ("projects/p/runs/٣", EXPECTED_RUN),
        ("projects/p/runs/" + "/".join("123456789"), EXPECTED_RUN),
        (f"projects/p/runs/{'r' * 64}", EXPECTED_RUN),
    ],
)
def test_a_malformed_name_is_rejected_with_what_was_given_and_expected(name: str, said: str) -> None:
    with pytest.raises(names.MalformedName) as caught:
        names.parse_run(name)
    assert caught.value.reason == "MALFORMED_NAME"
    assert said in str(caught.value)
    at_fault = {EXPECTED_FORM: name, EXPECTED_PROJECT: name.split("/")[1:2], EXPECTED_RUN: name.split("/", 3)[3:]}[said]
    assert repr(at_fault[0] if isinstance(at_fault, list) else at_fault) in str(caught.value)


@pytest.mark.parametrize("parent", ["", "p", "projects", "projects/", "projects/a/b", "projects/--", "runs/p"])
def test_a_malformed_project_is_rejected_with_how_to_name_all(parent: str) -> None:
    with pytest.raises(names.MalformedName, match="projects/- for all of them") as caught:
        names.parse_project(parent)
    assert caught.value.reason == "MALFORMED_NAME"
    assert repr(parent) in str(caught.value)


@pytest.mark.parametrize("part", [None, 3, b"r"])
def test_a_part_that_is_not_a_string_is_malformed(part: object) -> None:
    for project, run in [(part, "r"), ("p", part)]:
        with pytest.raises(names.MalformedName):
            names.run_name(project, run)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.dictionaries(SEGMENTS, st.text(max_size=256), max_size=64))
def test_labels_within_the_limits_are_kept_unchanged(labels: dict[str, str]) -> None:
    assert names.check_labels(labels) == labels


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({f"k{i}": "" for i in range(65)}, "65 labels; a run has at most 64"),
        ({"": "x"}, "label key ''"),
        ({"a b": "x"}, "label key 'a b'"),
        ({".a": "x"}, "label key '.a'"),
        ({"k" * 64: "x"}, "1 to 63 characters"),
        ({"k": "v" * 257}, "up to 256 characters"),
        ({"k": 3}, "label k=3: a value is a string"),
        ({3: "v"}, "label key 3"),
    ],
)
def test_labels_beyond_a_limit_are_rejected_with_that_limit(labels: dict[str, str], said: str) -> None:
    with pytest.raises(names.MalformedName) as caught:
        names.check_labels(labels)
    assert caught.value.reason == "INVALID_LABELS"
    assert said in str(caught.value)
