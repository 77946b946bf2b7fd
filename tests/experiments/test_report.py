"""The report contains everything in the results file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments import _plan, _report
from experiments._catalogue import FULL, MECHANIC, PEER_ARMS, Training, start_of_sweep, sweep

Make = Callable[..., dict[str, Any]]

ROW = FULL[0].rows[1]  # letter with AdamW
TEST = {"mechanic": (90.0, 91.0, 95.0), "dadaptation": (70.0, 71.0, 69.0), "prodigy": (93.0, 93.0, 93.0)}


@pytest.fixture(scope="module")
def records(record: Make) -> dict[str, dict[str, Any]]:
    """One row: a sweep whose third rate is best, MECHANIC, and two peers."""
    made = []
    for seed in FULL[0].seeds:
        for place, rate in enumerate(start_of_sweep(ROW)):
            training = Training(ROW, sweep(rate), seed)
            made.append(record(training, val=80.0 + 5.0 * (place == 2), test=88.0 + seed + 10.0 * (place == 4), scale=rate))
        arms = [arm for arm in (MECHANIC, *PEER_ARMS) if arm.name in TEST]
        made += [record(Training(ROW, arm, seed), test=TEST[arm.name][seed], scale=0.006) for arm in arms]
    return {each["key"]: each for each in made}


@pytest.fixture(scope="module")
def report(records: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the page, with its pictures beside it. Drawing them takes seconds, so all tests read the same ones."""
    return _report.write(tmp_path_factory.mktemp("report"), records, FULL, quick=False)


@pytest.fixture
def page(report: Path) -> str:
    return report.read_text()


def cells(page: str, name: str) -> list[str]:
    (line,) = [line for line in page.split("## Counts")[0].splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_the_numbers_of_the_file(page: str) -> None:
    found = cells(page, "logistic/letter/adamw")
    assert found == [
        "logistic/letter/adamw",
        "89.0 ± 1.0",
        "0.03",
        "92.0 ± 2.6 =",
        "70.0 ± 1.0 ▼",
        "93.0 ± 0.0 ▲",
        "–",
        "–",
        "0.2",
    ]


def test_every_row_of_the_catalogue_is_on_the_page_even_without_results(page: str) -> None:
    for experiment in FULL:
        if experiment.sweep and experiment.name != "scale":
            for row in experiment.rows:
                shown = cells(page, row.name)
                assert row == ROW or "–" in shown


def test_only_rows_that_could_be_judged_are_counted(page: str) -> None:
    assert "MECHANIC wins on 0, ties on 1 and loses on 0 of 54 problems" in page
    assert "| MECHANIC | 0 | 1 | 0 | 0 | 100 % |" in page
    assert "| D-adaptation | 0 | 0 | 1 | 0 | 0 % |" in page
    assert "Against D-adaptation it wins on 1, ties on 0 and loses on 0." in page


def test_the_page_says_what_is_missing(page: str, records: dict[str, Any]) -> None:
    total = len(_plan.trainings(FULL, records))
    assert f"{len(records)} of {total} training runs" in page
    assert f"{total - len(records)} runs have no result yet" in page
    assert "a machine of the tests" in page


def test_each_claim_has_a_verdict_and_a_picture(page: str, report: Path) -> None:
    section = page.split("## The paper's claims")[1].split("\n## ")[0]
    marks = re.findall(r"\*\*(confirmed|not confirmed|unclear)\*\* .*\((\w+\.png)\)", section)
    assert len(marks) == 10
    for _, picture in marks:
        assert report.with_name(picture).stat().st_size < 200_000
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert report.with_name(picture).exists()


def test_the_same_results_make_the_same_page_byte_for_byte(report: Path, records: dict[str, Any], tmp_path: Path) -> None:
    again = _report.write(tmp_path / "again", records, FULL, quick=False)
    for file in sorted(report.parent.iterdir()):
        assert file.read_bytes() == again.with_name(file.name).read_bytes(), file.name
